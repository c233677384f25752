"""The pipeline: one stream of batches, whoever reads it and with how many workers."""

import dataclasses
import functools
import io
import itertools
import multiprocessing

import numpy as np
import pytest
from PIL import Image

from tclip.data import Sample, View, batch_keys, eval_batches, train_batches
from tclip.data.pipeline import MAX_CONSECUTIVE_BAD
from tclip.processing import PreprocessConfig, preprocess

CFG = PreprocessConfig(image_size=16)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Sample i is a flat image of grey level i with captions that name it; some are bad."""

    length: int
    broken: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    name: str = "numbers"
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out: int = 0
    fingerprint: str = "numbers"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        out = io.BytesIO()
        Image.new("RGB", (20, 20), (index, index, index)).save(out, format="PNG")
        data = out.getvalue()[:50] if index in self.broken else out.getvalue()
        captions = ("", "  ") if index in self.silent else ("a red star", "two blue rings")
        return Sample(f"n{index}", data, captions, index)


def numbers_of(batch, cfg=CFG):
    """Which sample each row shows."""
    levels = (batch["images"][:, 0, 0, 0] * cfg.std[0] + cfg.mean[0]) * 255
    return np.rint(levels).astype(int).tolist()


def take(dataset, count):
    iterator = iter(dataset)
    batches = list(itertools.islice(iterator, count))
    close(iterator)
    return batches


def close(iterator):
    if hasattr(iterator, "close"):
        iterator.close()


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype
        np.testing.assert_array_equal(left[key], right[key])


def test_shapes_and_dtypes(tiny_shapes, tokenizer):
    (batch,) = take(train_batches(tiny_shapes("train"), View(CFG, tokenizer), 6, seed=0), 1)
    described = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert described == {
        "images": ((6, 16, 16, 3), np.float32),
        "tokens": ((6, 24), np.int32),
        "skipped": ((6,), np.int32),
    }


def test_every_epoch_is_another_permutation(tokenizer):
    batches = take(train_batches(Numbers(12), View(CFG, tokenizer), 8, seed=1), 6)
    stream = [number for batch in batches for number in numbers_of(batch)]
    epochs = [stream[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seed_changes_order_crops_and_captions(tiny_shapes, tokenizer):
    source = tiny_shapes("train")
    a, again, b = (
        take(train_batches(source, View(CFG, tokenizer), 8, seed=seed), 1)[0] for seed in (0, 0, 1)
    )
    assert_equal(a, again)
    assert not np.array_equal(a["images"], b["images"])


def test_all_captions_get_their_turn(tokenizer):
    batches = take(train_batches(Numbers(4), View(CFG, tokenizer), 4, seed=0), 10)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    rows, counts = np.unique(tokens, axis=0, return_counts=True)
    assert {tuple(row) for row in rows} == {
        tuple(row) for row in tokenizer.encode(["a red star", "two blue rings"])
    }
    assert counts.min() > 8


def test_one_worker_process_gives_the_same_data_as_threads(tiny_shapes, tokenizer):
    source = tiny_shapes("train")
    threads, worker = (
        take(train_batches(source, View(CFG, tokenizer), 8, seed=3, num_workers=workers), 5)
        for workers in (0, 1)
    )
    for ours, theirs in zip(threads, worker, strict=True):
        assert_equal(ours, theirs)


def test_a_worker_that_is_killed_is_an_error_that_names_the_setting():
    before = set(multiprocessing.active_children())
    batches = iter(eval_batches(Numbers(400), CFG, 2, num_workers=1))
    try:
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
        worker.kill()
        with pytest.raises(ChildProcessError, match=r"train\.num_workers.* -9"):
            for _ in range(200):
                next(batches)
    finally:
        close(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_can_begin_with_any_batch(tiny_shapes, tokenizer, workers):
    source = tiny_shapes("train")
    read = functools.partial(train_batches, source, View(CFG, tokenizer), 8, seed=3)
    expected = take(read(), 7)
    for first in (3, 4):
        later = take(read(num_workers=workers, first_batch=first), 7 - first)
        for ours, theirs in zip(later, expected[first:], strict=True):
            assert_equal(ours, theirs)


@pytest.mark.parametrize("parts", [((0, 1, 2, 3), (4, 5, 6, 7)), ((1, 2, 6), (0, 3, 4, 5, 6, 7))])
def test_processes_read_their_rows_of_every_global_batch(tiny_shapes, tokenizer, parts):
    source = tiny_shapes("train")
    read = functools.partial(train_batches, source, View(CFG, tokenizer), 8, seed=3)
    whole = take(read(), 4)
    for rows in parts:
        for batch, part in zip(whole, take(read(rows=rows), 4), strict=True):
            assert_equal(part, {key: value[list(rows)] for key, value in batch.items()})


def test_bad_samples_give_way_to_the_next_and_are_counted(tokenizer):
    source = Numbers(10, broken=(3, 4), silent=(7,))
    batches = take(train_batches(source, View(CFG, tokenizer), 5, seed=2), 2)
    shown = [number for batch in batches for number in numbers_of(batch)]
    skipped = [count for batch in batches for count in batch["skipped"].tolist()]
    assert sorted(shown) == sorted([0, 1, 2, 5, 5, 5, 6, 8, 8, 9])
    assert sorted(zip(shown, skipped, strict=True))[3:6] == [(5, 0), (5, 1), (5, 2)]
    assert sum(skipped) == 1 + 2 + 1


def test_the_keys_of_a_batch_are_those_of_its_rows(tokenizer):
    source = Numbers(10, broken=(3,))
    batches = take(train_batches(source, View(CFG, tokenizer), 4, seed=2), 6)
    for number, batch in enumerate(batches):
        keys = batch_keys(source, 4, seed=2, batch=number, most=9)
        for key, shown, skipped in zip(keys, numbers_of(batch), batch["skipped"], strict=True):
            # Of a sample that gave way its own.
            assert key == ("n3" if skipped else f"n{shown}")


def test_no_more_samples_are_read_than_are_named(monkeypatch):
    source, read, get = Numbers(10), [], Numbers.__getitem__
    monkeypatch.setattr(Numbers, "__getitem__", lambda s, i: read.append(i) or get(s, i))
    keys = batch_keys(source, 8, seed=2, batch=1, most=3)
    assert keys == [f"n{number}" for number in read]
    assert len(read) == 3


def test_nothing_but_bad_samples_is_an_error(tokenizer):
    source = Numbers(5, broken=(0, 1, 2), silent=(3, 4))
    message = f"{MAX_CONSECUTIVE_BAD} unusable samples in a row in 'numbers'"
    with pytest.raises(ValueError, match=message):
        take(train_batches(source, View(CFG, tokenizer), 2, seed=0), 1)


def test_evaluation_sees_every_sample_once_and_pads():
    source = Numbers(11, broken=(4,), silent=(2,))
    batches = take(eval_batches(source, CFG, 4), 99)
    assert len(batches) == 3
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert joined["index"].tolist() == list(range(12))
    assert joined["valid"].tolist() == [i not in (4, 11) for i in range(12)]
    assert joined["labels"].tolist() == [i if i not in (4, 11) else -1 for i in range(12)]
    assert (joined["labels"].dtype, joined["valid"].dtype) == (np.int32, np.bool_)
    image = Image.new("RGB", (20, 20), (9, 9, 9))
    np.testing.assert_array_equal(joined["images"][9], preprocess(image, CFG))
    for batch, part in zip(
        batches, take(eval_batches(source, CFG, 4, rows=(1, 2)), 99), strict=True
    ):
        assert_equal(part, {key: value[1:3] for key, value in batch.items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed"),
        ({"rows": (3, 4)}, "are not some of a batch of 4"),
        ({"rows": ()}, "are not some of a batch of 4"),
        ({"source": Numbers(0)}, "'numbers' is empty"),
    ],
)
def test_wrong_arguments_are_refused_at_once(tokenizer, options, message):
    arguments = {"source": Numbers(5), "batch_size": 4, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        train_batches(student=View(CFG, tokenizer), **arguments)
