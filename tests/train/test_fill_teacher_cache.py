"""Training from a teacher's stored embeddings: the same as from the teacher itself."""

import dataclasses
import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from tclip.data import View, train_batches
from tclip.data.mixture import mixture_of
from tclip.data.pipeline import draw
from tclip.folder_lock import FolderInUseError, folder_lock
from tclip.loading import load
from tclip.losses import LossConfig
from tclip.models import CLIP
from tclip.parallel.processes import put_rows
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh
from tclip.processing import PreprocessConfig
from tclip.processing.bad_sample import BadSample
from tclip.run.experiment import Experiment
from tclip.run.optim import learning_rate, make_optimizer
from tclip.run.state import create_state
from tclip.train.fill_teacher_cache import cache_teacher
from tclip.train.step import make_train_step
from tclip.train.teacher import load_teacher, open_teacher_cache, put_teacher
from tclip.train.teacher_cache import HEADER, open_cache, read_header
from tests.helpers import tiny

SHARD_SIZE = 5
CROPS = {"train_scale": (0.3, 0.9), "flip": True}


@pytest.fixture(scope="module")
def data():
    """Twelve squares, of which number 4 cannot be read."""
    squares = tiny.squares(12)
    samples = list(squares.samples)
    samples[4] = None
    return mixture_of(dataclasses.replace(squares, samples=tuple(samples)))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Distillation from a tiny teacher whose pixels are not the student's."""
    teacher = tiny.write_workdir(tmp_path_factory.mktemp("teacher") / "run")
    values = json.loads((teacher / "preprocessor_config.json").read_text())
    values["image_mean"] = [0.5, 0.4, 0.3]
    (teacher / "preprocessor_config.json").write_text(json.dumps(values))
    return dataclasses.replace(
        Experiment(),
        seed=3,
        model=tiny.config(),
        preprocess=dataclasses.replace(tiny.PREPROCESS, **CROPS),
        teacher=dataclasses.replace(Experiment().teacher, path=str(teacher)),
        loss=LossConfig(similarity_weight=1.0, logits_weight=0.5, embedding_weight=1.0),
        eval=dataclasses.replace(Experiment().eval, batch_size=3),
    )


@pytest.fixture(autouse=True)
def in_memory(data, monkeypatch):
    monkeypatch.setattr("tclip.train.fill_teacher_cache.open_mixture", lambda config: data)


@pytest.fixture(scope="module")
def cache_dir(experiment, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tclip.train.fill_teacher_cache.open_mixture", lambda config: data)
        counts = cache_teacher(experiment, path, augmentations=2, shard_size=SHARD_SIZE)
    assert counts == {"embeddings": 24, "skipped": 2}
    return path


def with_cache(experiment, path):
    return dataclasses.replace(
        experiment, teacher=dataclasses.replace(experiment.teacher, cache=str(path))
    )


def test_the_embeddings_are_the_teachers_of_the_augmented_samples(experiment, data, cache_dir):
    teacher = load(experiment.teacher.path)
    cache = open_teacher_cache(with_cache(experiment, cache_dir), teacher, data)
    pixels = dataclasses.replace(teacher.preprocess, **CROPS)
    assert (cache.augmentations, cache.header.samples) == (2, 12)
    for augmentation, number in ((0, 0), (0, 11), (1, 0), (1, 7)):
        drawn = draw(
            data[number],
            {"images": pixels},
            {"tokens": teacher.tokenizer},
            (experiment.seed, augmentation, number),
        )
        image, text = cache.at(augmentation, number)
        expected = teacher.encode_image(drawn["images"][None])[0]
        np.testing.assert_allclose(image, expected, rtol=2**-8, atol=1e-6)
        embedding = CLIP(teacher.config).apply(
            {"params": teacher.params}, drawn["tokens"][None], method="encode_text"
        )[0]
        expected = embedding / np.linalg.norm(embedding)
        np.testing.assert_allclose(text, expected, rtol=2**-8, atol=1e-6)
    assert not np.array_equal(cache.at(0, 0)[0], cache.at(1, 0)[0])
    with pytest.raises(BadSample, match="number 4"):
        cache.at(1, 4)


def rounded(embeddings_BxD):
    return np.asarray(embeddings_BxD).astype(ml_dtypes.bfloat16).astype(np.float32)


def test_a_step_with_the_cache_equals_the_step_with_the_teacher(experiment, data, cache_dir):
    mesh = make_mesh(MeshConfig(data=1))
    rows = batch_sharding(mesh)
    teacher = load_teacher(experiment)
    cache = open_teacher_cache(with_cache(experiment, cache_dir), teacher, data)
    optimizer = make_optimizer(experiment.optim, 1000)
    schedule = learning_rate(experiment.optim, 1000)
    step = jax.jit(make_train_step(experiment, teacher.config, optimizer, schedule, mesh))
    init = functools.partial(create_state, experiment, teacher.config, optimizer)
    view = View(teacher.preprocess, teacher.tokenizer)
    make = functools.partial(
        train_batches, data, View(experiment.preprocess, tiny.tokenizer()), 8, experiment.seed
    )
    live, stored = iter(make(teacher=view)), iter(make(embeddings=cache))
    params = {"live": put_teacher(teacher, None, mesh), "stored": put_teacher(teacher, cache, mesh)}
    assert set(params["stored"]) == {"logit_scale"}

    # 24 positions are two epochs: the augmentations of the cache are those of the live teacher.
    for _ in range(3):
        state = jax.jit(init)(tiny.params(seed=1))
        live_batch, stored_batch = next(live), next(stored)
        assert live_batch.keys() == {"images", "tokens", "skipped", "teacher_images"}
        _, by_teacher = step(state, params["live"], put_rows(live_batch, 8, rows))
        _, by_cache = step(state, params["stored"], put_rows(stored_batch, 8, rows))
        np.testing.assert_allclose(by_cache["embedding_l2"], by_teacher["embedding_l2"], rtol=2**-8)
        # Every term equals that of the teacher whose embeddings were rounded, and nothing else.
        towers = jax.jit(CLIP(teacher.config).apply)
        image, text = towers(
            {"params": teacher.params}, live_batch.pop("teacher_images"), live_batch["tokens"]
        )
        norms = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        image, text = (rounded(x / norm) for x, norm in zip((image, text), norms, strict=True))
        live_batch |= {"teacher_image_embeddings": image, "teacher_text_embeddings": text}
        _, by_rounded = step(state, params["stored"], put_rows(live_batch, 8, rows))
        for key, value in by_rounded.items():
            np.testing.assert_allclose(by_cache[key], value, rtol=1e-5, err_msg=key)


def test_later_epochs_take_the_augmentations_in_turn(experiment, data, cache_dir):
    teacher = load_teacher(experiment)
    cache = open_teacher_cache(with_cache(experiment, cache_dir), teacher, data)
    student = View(experiment.preprocess, tiny.tokenizer())
    iterator = iter(train_batches(data, student, 12, experiment.seed, embeddings=cache))
    seen = {}
    for epoch in range(4):
        batch = next(iterator)
        for image, tokens, teacher_image in zip(
            batch["images"], batch["tokens"], batch["teacher_image_embeddings"], strict=True
        ):
            key = image.tobytes(), tokens.tobytes()
            # The same crop and caption always come with the same embedding.
            assert np.array_equal(seen.setdefault(key, (epoch, teacher_image))[1], teacher_image)
    assert {first for first, _ in seen.values()} == {0, 1}
    assert len(seen) == 22


def test_a_killed_run_goes_on_where_it_stopped(experiment, cache_dir, tmp_path):
    for path in cache_dir.iterdir():
        if path.name not in ("000-00002.npy", "001-00002.npy"):
            shutil.copy2(path, tmp_path)
    with pytest.raises(ValueError, match="2 of 6 files are missing"):
        open_cache(tmp_path, read_header(tmp_path))
    # What a killed process leaves is not taken for a file.
    (tmp_path / ".001-00002.npy.77").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    counts = cache_teacher(experiment, tmp_path, 2, SHARD_SIZE)
    assert counts["embeddings"] == 24 - sum(len(np.load(tmp_path / name)) for name in before)
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in before} == before
    for path in sorted(cache_dir.glob("*.npy")):
        ours = np.load(tmp_path / path.name).view(ml_dtypes.bfloat16).astype(np.float32)
        theirs = np.load(path).view(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 4}, "seed was 3 and is now 4"),
        (
            {"model": dataclasses.replace(tiny.config(), dtype="bfloat16")},
            "dtype was 'float32' and is now 'bfloat16'",
        ),
        (
            {"preprocess": PreprocessConfig(image_size=32, train_scale=(0.5, 0.9), flip=True)},
            r"train_scale was \(0.3, 0.9\) and is now \(0.5, 0.9\)",
        ),
    ],
)
def test_a_cache_of_other_crops_is_refused(experiment, data, cache_dir, change, reason):
    other = dataclasses.replace(with_cache(experiment, cache_dir), **change)
    with pytest.raises(ValueError, match=reason):
        open_teacher_cache(other, load_teacher(other), data)
    with pytest.raises(ValueError, match=reason):
        cache_teacher(other, cache_dir, 2, SHARD_SIZE)


def test_a_cache_of_another_teacher_or_other_data_is_refused(experiment, data, cache_dir):
    cached = with_cache(experiment, cache_dir)
    teacher = load_teacher(experiment)
    changed = dataclasses.replace(teacher, params=tiny.params(seed=9))
    with pytest.raises(ValueError, match="made for something else: teacher was"):
        open_teacher_cache(cached, changed, data)
    more = mixture_of(dataclasses.replace(tiny.squares(12), fingerprint="rendered anew"))
    with pytest.raises(ValueError, match="made for something else: data was"):
        open_teacher_cache(cached, teacher, more)


def test_a_damaged_cache_is_named(experiment, data, cache_dir, tmp_path):
    cached = with_cache(experiment, tmp_path)
    teacher = load_teacher(experiment)
    with pytest.raises(FileNotFoundError, match=f"no teacher cache: it has no {HEADER}"):
        open_teacher_cache(cached, teacher, data)
    for path in cache_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "001-00002.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"001-00002.npy is damaged"):
        open_teacher_cache(cached, teacher, data)
    np.save(tmp_path / "001-00002.npy", np.zeros((5, 2, 32), np.uint16))
    with pytest.raises(ValueError, match=r"uint16\[5, 2, 32\] instead of uint16\[2, 2, 32\]"):
        open_teacher_cache(cached, teacher, data)
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps(header | {"shard_size": 0}))
    with pytest.raises(ValueError, match="shard_size 0 of a teacher cache is not positive"):
        open_teacher_cache(cached, teacher, data)
    (tmp_path / HEADER).write_text("[]")
    with pytest.raises(ValueError, match=f"{HEADER}: not a JSON object"):
        open_teacher_cache(cached, teacher, data)


def test_a_full_disk_leaves_the_whole_files(experiment, tmp_path):
    with tiny.little_disk(1200), pytest.raises(OSError, match=r"000-00000\.npy"):
        cache_teacher(experiment, tmp_path, 1, shard_size=12)
    assert not list(tmp_path.glob("0*.npy"))
    assert cache_teacher(experiment, tmp_path, 1, shard_size=12)["embeddings"] == 12


def test_the_checksum_is_of_the_function_not_of_how_it_is_computed(experiment):
    teacher = load_teacher(experiment)
    scanned = dataclasses.replace(experiment.model, scan_layers=True, dtype="bfloat16")
    other = load_teacher(dataclasses.replace(experiment, model=scanned))
    assert "blocks" in other.params["vision"]
    assert other.fingerprint == teacher.fingerprint


def test_hidden_layers_cannot_be_taught_from_a_cache():
    teacher = dataclasses.replace(Experiment().teacher, path="a", cache="b")
    loss = LossConfig(hidden_weight=1.0, hidden_layers=((0, 0),))
    with pytest.raises(ValueError, match=r"teacher\.cache holds no hidden layers"):
        Experiment(teacher=teacher, loss=loss)


def test_a_cache_that_another_program_fills_is_refused(experiment, tmp_path):
    with folder_lock(tmp_path), pytest.raises(FolderInUseError, match=f"{tmp_path} is in use"):
        cache_teacher(experiment, tmp_path, augmentations=1, shard_size=SHARD_SIZE)
    assert not list(tmp_path.iterdir())
