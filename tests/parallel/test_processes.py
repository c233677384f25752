"""One run by several processes: the batches, losses, checkpoints and scores of one process."""

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from tclip.run.checkpoint import CHECKPOINTS
from tests.helpers import benchmark_folders, processes, tiny
from tests.helpers.runs import assert_same_bits, rows_of, run_config, samples_in, state_of

STEPS = 6
SAVED = 3
# Sums over the devices of several processes, and of another mesh, are in another order.
TOLERANCE = 1e-5

# What others than process 0 see of a workdir may be out of date.
TRAIN = """
import jax
from tclip.train import loop
from tclip.train.fill_teacher_cache import cache_teacher
from tclip.config import build
from tclip.run.experiment import Experiment

if number:
    loop.has_checkpoint = lambda workdir: False
for values, out, workdir in arguments:
    experiment = build(Experiment, values)
    print(json.dumps(cache_teacher(experiment, out, augmentations=1, shard_size=4)))
    loop.train(experiment, workdir)
"""

ROWS = """
import jax, numpy as np
from tclip.parallel.processes import local_rows, put_rows
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh

held = []
for shape in arguments:
    sharding = batch_sharding(make_mesh(MeshConfig(**shape)))
    rows = local_rows(sharding, 8)
    local = np.stack([np.full(3, row) for row in rows])
    batch = put_rows({"x": local}, 8, sharding)["x"]
    assert batch.shape == (8, 3)
    whole = jax.jit(lambda x: x, out_shardings=sharding.update(spec=jax.P()))(batch)
    np.testing.assert_array_equal(whole, np.arange(8)[:, None].repeat(3, axis=1))
    held.append(rows)
print(json.dumps(held))
"""

# Each process holds, and has written, a half of the kernel.
RESTORE = """
from pathlib import Path
import jax, numpy as np
from orbax.checkpoint import v1 as ocp
from tclip.parallel import processes
from tclip.run import checkpoint
from tclip.parallel.sharding import MeshConfig, make_mesh, placed, state_shardings
from tclip.run.state import TrainState

def state_of(step):
    kernel = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    trainable = {"params": {"a": {"fc1": {"kernel": kernel}}}, "quant": {}}
    return TrainState(np.int32(step), trainable, (), None, np.int32(0), np.int32(0))

def restore():
    with checkpoint.Checkpoints(workdir, keep_last=2, best_metric="x") as checkpoints:
        try:
            print(int(checkpoints.restore(placed(state_of(0), shardings)).step))
        except checkpoint.CheckpointError as error:
            print(error)

def refuse(*_):
    raise PermissionError("denied")

workdir = Path(arguments)
shardings = state_shardings(state_of(0), make_mesh(MeshConfig(fsdp=2)))
with checkpoint.Checkpoints(workdir, keep_last=2, best_metric="x") as checkpoints:
    for step in (3, 4):
        checkpoints.save(step, processes.put_whole(state_of(step), shardings), None)
load = ocp.load_checkpointables
if number == 1:
    for file in workdir.glob("checkpoints/4/state/ocdbt.process_1/d/*"):
        file.write_bytes(b"")
    ocp.load_checkpointables = refuse
processes.wait_for_all("damage")
restore()
ocp.load_checkpointables = load
restore()
"""


def make_config(folder: Path, cache: Path, **mesh: int) -> dict:
    """Distillation from stored embeddings into a ternary student, with an evaluation."""
    source = samples_in(folder, f"index_of_{cache.name}")
    return run_config(
        source,
        quant={"policy": "ffn"},
        teacher={"path": str(folder / "teacher"), "cache": str(cache)},
        loss={"similarity_weight": 1.0},
        # A gradient that is zero but for rounding, such as that of the keys' biases, moves nothing.
        optim={"ema_decay": 0.9, "eps": 1e-4},
        mesh=mesh,
        train={
            "steps": STEPS,
            "batch_size": 8,
            "log_every": 1,
            "eval_every": STEPS,
            "checkpoint_every": SAVED,
            "keep_last": 2,
        },
        eval={"data": source, "batch_size": 8},
    )


def cut(workdir: Path, copy: Path) -> Path:
    """Copies a finished run as it was when its first checkpoint had been saved."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / CHECKPOINTS / str(STEPS))
    (copy / "result.json").unlink()
    return copy


def assert_same_run(workdir: Path, other: Path, after: int, tolerance: float) -> None:
    """Compares losses and scores step by step, and the last checkpoints leaf by leaf."""
    ours, theirs = rows_of(workdir, after), rows_of(other, after)
    assert [row["step"] for row in ours] == [*range(after + 1, STEPS + 1), STEPS]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=0)
    ours, theirs = (jax.tree.leaves_with_path(state_of(w, STEPS)) for w in (workdir, other))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    # Beside the largest of their kind: a gradient may be zero but for rounding.
    kinds = [jax.tree_util.keystr(path).partition("params")[0] for path, _ in ours]
    largest = dict.fromkeys(kinds, 0.0)
    for kind, (_, x) in zip(kinds, theirs, strict=True):
        largest[kind] = max(largest[kind], np.abs(x).max())
    for kind, (path, a), (_, b) in zip(kinds, ours, theirs, strict=True):
        bound = tolerance * largest[kind]
        np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, and 21 squares with classes and captions, of which number 4 cannot be read."""
    path = tmp_path_factory.mktemp("processes")
    tiny.write_workdir(path / "teacher")
    captions = [f"a {list(tiny.COLOURS)[i % 3]} square {i}".encode() for i in range(21)]
    samples = zip(benchmark_folders.labelled(21), captions, strict=True)
    samples = [sample | {"txt": caption} for sample, caption in samples]
    benchmark_folders.write_dataset(path / "data", samples)
    return path


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Path]:
    """A run of two processes, one of one process, and two that go on after half of the first."""
    runs = {name: folder / name for name in ("two", "one", "four", "other_mesh")}

    def work(name: str, learns_from: str, **mesh: int) -> tuple[dict, str, str]:
        out = folder / f"stored_by_{name}"
        config = make_config(folder, folder / f"stored_by_{learns_from}", **mesh)
        return config, str(out), str(runs[name])

    printed = processes.run(TRAIN, [work("two", "two")], 2, 2)
    # Six files of four samples (the last has one): a process makes three of them.
    assert [json.loads(text) for text in printed] == [
        {"embeddings": 12, "skipped": 0},
        {"embeddings": 9, "skipped": 1},
    ]
    cut(runs["two"], runs["four"])
    cut(runs["two"], runs["other_mesh"])
    processes.run(TRAIN, [work("four", "two")], 4, 1)
    alone = [work("one", "one"), work("other_mesh", "two", fsdp=2, tensor=2)]
    processes.run(TRAIN, alone, 1, 4)
    return runs


@pytest.mark.slow
def test_two_processes_do_what_one_does(runs):
    assert_same_run(runs["two"], runs["one"], 0, TOLERANCE)
    scores = json.loads((runs["two"] / "result.json").read_text())
    assert scores["eval/zeroshot_n"] == scores["eval/retrieval_n"] == 20
    assert scores["eval/skipped"] == 1


@pytest.mark.slow
def test_four_processes_continue_a_run_of_two(runs):
    assert_same_run(runs["four"], runs["one"], SAVED, TOLERANCE)
    # The same devices in the same mesh, in other processes.
    assert rows_of(runs["four"]) == rows_of(runs["two"])
    assert_same_bits(state_of(runs["four"], STEPS), state_of(runs["two"], STEPS))


@pytest.mark.slow
def test_one_process_continues_a_run_of_two_on_another_mesh(runs):
    assert_same_run(runs["other_mesh"], runs["one"], SAVED, TOLERANCE)


@pytest.mark.slow
def test_the_processes_store_the_embeddings_that_one_stores(folder, runs):
    files = sorted((folder / "stored_by_one").iterdir())
    assert len(files) == 7
    for name in ("two", "four"):
        others = sorted((folder / f"stored_by_{name}").iterdir())
        assert [path.name for path in others] == [path.name for path in files]
        for ours, theirs in zip(others[:-1], files[:-1], strict=True):
            ours, theirs = (np.load(file).view(ml_dtypes.bfloat16) for file in (ours, theirs))
            # A device of one process computes other rows together than a device of several.
            np.testing.assert_allclose(
                ours.astype(np.float32), theirs.astype(np.float32), rtol=2**-7, atol=1e-6
            )
        assert others[-1].read_bytes() == files[-1].read_bytes()


@pytest.mark.slow
def test_processes_read_the_rows_that_their_devices_hold():
    shapes = [{"data": 4}, {"fsdp": 2}, {"tensor": 2}, {"tensor": 4}]
    first, second = map(json.loads, processes.run(ROWS, shapes, 2, 2))
    low, high, whole = [0, 1, 2, 3], [4, 5, 6, 7], list(range(8))
    assert first == [low, low, low, whole]
    assert second == [high, high, high, whole]


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_read_by_none(tmp_path):
    first, second = processes.run(RESTORE, str(tmp_path), 2, 1)
    newest = tmp_path / CHECKPOINTS / "4"
    assert first == f"{newest} is read by this process, not by another\n3\n"
    assert second.startswith(f"{newest} cannot be read")
    assert second.endswith("PermissionError: denied\n3\n")
    names = sorted(path.name.partition("-")[0] for path in newest.parent.iterdir())
    assert names == ["3", "damaged"]
