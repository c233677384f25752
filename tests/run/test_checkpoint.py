"""Saving and restoring: exact, all or nothing, on any mesh."""

import dataclasses
import errno
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import tclip
from tclip.config import build
from tclip.export import export_packed
from tclip.loading import load
from tclip.losses import LossConfig
from tclip.models import architecture
from tclip.parallel.sharding import MeshConfig, make_mesh, placed, state_shardings
from tclip.run.checkpoint import (
    CHECKPOINTS,
    CheckpointError,
    Checkpoints,
    has_checkpoint,
    load_trained,
)
from tclip.run.experiment import Experiment, TeacherConfig, write_experiment
from tclip.run.optim import OptimConfig
from tclip.run.state import TrainState
from tclip.train.sharded_step import make_sharded_step
from tests.helpers import tiny
from tests.helpers.logs import own_messages


def make_state(value: float, size: int = 1000) -> TrainState:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32) + np.float32(value)
    return TrainState(
        step=jnp.asarray(int(value), jnp.int32),
        trainable={
            "params": {"a": {"fc1": {"bias": jnp.asarray(values)}}},
            "quant": {"a/fc1/bias": {"log_scale": jnp.full((1, 3), value)}},
            "adapters": {},
        },
        opt_state=({"params": {"a": {"fc1": {"bias": jnp.asarray(values * 2)}}}},),
        ema=None,
        skipped=jnp.asarray(7, jnp.int32),
        bad_steps=jnp.asarray(1, jnp.int32),
    )


def abstract(state: TrainState, devices: int) -> TrainState:
    shardings = state_shardings(state, make_mesh(MeshConfig(data=devices)))
    return placed(state, shardings)


def steps_of(workdir) -> set[int]:
    return {int(path.name) for path in (workdir / CHECKPOINTS).iterdir() if path.name.isdigit()}


def test_restores_every_bit_onto_another_mesh(tmp_path):
    state = make_state(1.5)
    state = jax.device_put(state, state_shardings(state, make_mesh(MeshConfig(data=8))))
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        checkpoints.save(3, state, None)
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        restored = checkpoints.restore(abstract(state, devices=2))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.sharding.device_set == set(jax.devices()[:2])


def test_saves_what_the_state_was_although_it_is_donated_meanwhile(tmp_path):
    state = make_state(1.0, size=3_000_000)
    expected = np.array(state.trainable["params"]["a"]["fc1"]["bias"])
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        checkpoints.save(1, state, None)
        for _ in range(3):
            state = overwrite(state)
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        restored = checkpoints.restore(abstract(state, devices=1))
    np.testing.assert_array_equal(restored.trainable["params"]["a"]["fc1"]["bias"], expected)


def test_keeps_the_newest_and_the_best(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: None, 5: 0.3, 6: None}
    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"top1": score}
            checkpoints.save(step, make_state(step), metrics)
    assert steps_of(tmp_path) == {2, 5, 6}
    # Across a restart as well.
    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        checkpoints.save(7, make_state(7), {"top1": 0.5})
    assert steps_of(tmp_path) == {2, 6, 7}


def test_a_half_written_checkpoint_is_ignored_with_a_warning_and_removed(tmp_path, caplog):
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        checkpoints.save(1, make_state(1), None)
    directory = tmp_path / CHECKPOINTS
    half = directory / "2.orbax-checkpoint-tmp"
    shutil.copytree(directory / "1", half)
    assert has_checkpoint(tmp_path)
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        assert int(checkpoints.restore(abstract(make_state(0), devices=1)).step) == 1
        checkpoints.save(2, make_state(2), None)
    assert f"{half} was left half-written; it is removed" in caplog.messages
    assert not half.exists()
    assert steps_of(tmp_path) == {1, 2}


def test_only_a_half_written_checkpoint_is_none(tmp_path):
    assert not has_checkpoint(tmp_path)
    (tmp_path / CHECKPOINTS / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)


def test_an_older_checkpoint_that_was_being_deleted_does_no_harm(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"top1": 0.1})
    shutil.rmtree(tmp_path / CHECKPOINTS / "1" / "state")
    shutil.rmtree(tmp_path / CHECKPOINTS / "1" / "metrics")
    with Checkpoints(tmp_path, keep_last=1, best_metric="top1") as checkpoints:
        state = checkpoints.restore(abstract(make_state(0), devices=1))
        assert int(state.step) == 2
        checkpoints.save(3, make_state(3), {"top1": 0.2})
    assert steps_of(tmp_path) == {3}


def test_a_full_disk_is_one_clear_error_and_leaves_the_last_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, keep_last=1, best_metric="x")
    checkpoints.save(1, make_state(1.0, size=1_000_000), None)
    checkpoints.wait()
    # A file cannot grow beyond the limit: the same failing write as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="step 1 is whole") as error, checkpoints:
            checkpoints.save(2, make_state(2.0, size=1_000_000), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / CHECKPOINTS) in str(error.value)
    assert "\n" not in str(error.value)
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        state = checkpoints.restore(abstract(make_state(0, 1_000_000), 1))
    assert int(state.step) == 1
    expected = make_state(1.0, size=1_000_000).trainable["params"]["a"]["fc1"]["bias"]
    np.testing.assert_array_equal(state.trainable["params"]["a"]["fc1"]["bias"], expected)


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (empty, "state/**/*"),
        (cut, "state/**/d/*"),
        (spoil, "state/**/d/*"),
        (shutil.rmtree, "state"),
    ],
)
def test_behind_a_damaged_checkpoint_is_the_one_before(tmp_path, caplog, damage, pattern):
    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, make_state(step), {"top1": 0.5})
    broken = tmp_path / CHECKPOINTS / "4"
    paths = [path for path in broken.glob(pattern) if path.is_file() or damage is shutil.rmtree]
    assert paths
    for path in paths:
        damage(path)
    left = sorted(path.relative_to(broken) for path in broken.rglob("*"))

    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        state = checkpoints.restore(abstract(make_state(0), devices=2))
        (aside,) = (tmp_path / CHECKPOINTS).glob("damaged-4-*")
        (message,) = own_messages(caplog)
        assert f"{broken} is damaged" in message
        assert "the checkpoint before is used" in message
        # The run saves that step again.
        checkpoints.save(4, make_state(4), None)
    for x, y in zip(*map(jax.tree.leaves, (state, make_state(3))), strict=True):
        np.testing.assert_array_equal(x, y)
    # Nothing is lost, and nothing is in the way.
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left
    with Checkpoints(tmp_path, keep_last=2, best_metric="top1") as checkpoints:
        assert int(checkpoints.restore(abstract(make_state(0), devices=2)).step) == 4
    assert steps_of(tmp_path) == {3, 4}


def test_where_all_checkpoints_are_damaged_the_newest_is_named_and_all_stay(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, make_state(step), None)
    for path in (tmp_path / CHECKPOINTS).glob("*/state/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints,
        pytest.raises(CheckpointError, match=f"{CHECKPOINTS}/4 is damaged"),
    ):
        checkpoints.restore(abstract(make_state(1), devices=1))
    assert steps_of(tmp_path) == {3, 4}


def test_a_checkpoint_of_another_shape_is_no_damage(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, make_state(step), None)
    other = make_state(0)
    other.trainable["quant"]["b/fc1/bias"] = other.trainable["quant"].pop("a/fc1/bias")
    name = r"trainable/quant/a/fc1/bias/log_scale is \(1, 3\) there, absent here"
    bias = r"opt_state/0/params/a/fc1/bias is \(1000,\) there, \(1008,\) here"
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        for wanted, message in ((other, name), (make_state(0, size=1008), bias)):
            with pytest.raises(CheckpointError, match=f"/4 is of another .*: {message}"):
                checkpoints.restore(abstract(wanted, devices=1))
    assert [path.name for path in sorted((tmp_path / CHECKPOINTS).iterdir())] == ["3", "4"]


def test_the_arrays_of_a_whole_run_are_found_by_name(tmp_path):
    """So that damage, which is looked for first, is not taken for another shape."""
    experiment = Experiment(
        model=tiny.config(),
        preprocess=tiny.PREPROCESS,
        quant=tiny.POLICY,
        teacher=TeacherConfig("teacher"),
        loss=LossConfig(embedding_weight=1.0),
        optim=OptimConfig(ema_decay=0.9),
    )
    teacher = dataclasses.replace(tiny.config(), embed_dim=16)
    state = make_sharded_step(experiment, teacher, make_mesh(MeshConfig(data=1))).init(None)
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        checkpoints.save(4, state, None)
    data = [*(tmp_path / CHECKPOINTS).glob("4/state/ocdbt.process_0/d/*")]
    assert data
    for path in data:
        cut(path)
    with (
        Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints,
        pytest.raises(CheckpointError, match="/4 is damaged"),
    ):
        checkpoints.restore(abstract(state, devices=1))


@pytest.mark.parametrize(
    "reason",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        # As tensorstore has it.
        ValueError("UNAVAILABLE: Error opening local file: Input/output error"),
        RuntimeError("INVALID_ARGUMENT: no device for the output"),
    ],
    ids=lambda reason: type(reason).__name__,
)
def test_what_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch, reason):
    def refuse(*_):
        raise KeyError("state") from reason

    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, make_state(step), None)
    with Checkpoints(tmp_path, keep_last=2, best_metric="x") as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp, "load_checkpointables", refuse)
            with pytest.raises(CheckpointError, match=r"/4 cannot be read, .*: .*(denied|output)"):
                checkpoints.restore(abstract(make_state(0), devices=1))
        assert int(checkpoints.restore(abstract(make_state(0), devices=1)).step) == 4
        # Elsewhere than where it was seen.
        (tmp_path / CHECKPOINTS / "4").rename(tmp_path / "4")
        with pytest.raises(CheckpointError, match="/4 cannot be read"):
            checkpoints.restore(abstract(make_state(0), devices=1))
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["3"]


def test_a_new_run_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        assert checkpoints.restore(abstract(make_state(1), devices=1)) is None


def test_weights_of_another_architecture_are_refused(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, best_metric="x") as checkpoints:
        checkpoints.save(4, make_state(1), None)
    experiment = build(Experiment, {"preprocess": {"image_size": 32}, "model": TINY})
    write_experiment(experiment, tmp_path)
    with pytest.raises(CheckpointError, match=r"/4 .*of another architecture than config\.json"):
        load_trained(tmp_path)


def test_load_trained_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_trained(tmp_path)
    experiment = build(Experiment, {"preprocess": {"image_size": 32}, "model": TINY})
    write_experiment(experiment, tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: no valid JSON"):
        load_trained(tmp_path)


TINY = {
    "embed_dim": architecture("tiny").embed_dim,
    "vision": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "heads": 2},
}


SCORES = {2: 0.3, 4: 0.7, 6: None, 8: 0.7, 9: 0.1}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A run whose checkpoint of step N has the weights of seed N."""
    workdir = tiny.write_workdir(tmp_path_factory.mktemp("scored") / "run")
    shutil.rmtree(workdir / CHECKPOINTS)
    with Checkpoints(workdir, keep_last=9, best_metric="zeroshot_top1") as checkpoints:
        for step, score in SCORES.items():
            metrics = None if score is None else {"zeroshot_top1": score, "other": -score}
            weights = {"params": tiny.params(step), "quant": {}}
            checkpoints.save(step, {"trainable": weights}, metrics)
    return workdir


@pytest.mark.parametrize(
    ("step", "expected"), [("last", 9), ("best", 8), (4, 4), ("6", 6), (None, 9)]
)
def test_a_run_is_loaded_from_the_checkpoint_that_is_asked_for(scored, step, expected):
    params = load(scored, step=step).params
    for ours, theirs in zip(*map(jax.tree.leaves, (params, tiny.params(expected))), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("step", [5, "5", "newest", "-2", "", "2.0"])
def test_a_checkpoint_that_is_not_there_names_those_that_are(scored, step):
    with pytest.raises(ValueError, match=rf"step={step!r}: {scored} .* 2, 4, 6, 8, 9; use 'last'"):
        load(scored, step=step)


def test_without_evaluation_there_is_no_best(tmp_path):
    workdir = tiny.write_workdir(tmp_path / "run")
    with pytest.raises(ValueError, match="none of which was evaluated by zeroshot_top1"):
        load(workdir, step="best")


def test_only_a_run_has_steps(scored, tmp_path):
    policy = dataclasses.replace(tiny.POLICY, learn_scale=False, learn_threshold=False)
    export_packed(scored, tmp_path / "packed", policy=policy, step="best")
    expected = np.float16(tiny.params(8)["logit_scale"])
    np.testing.assert_array_equal(load(tmp_path / "packed").params["logit_scale"], expected)
    for backend in (None, "jax", "engine"):
        with pytest.raises(ValueError, match=r"step='last': .*packed is no training workdir"):
            tclip.load(tmp_path / "packed", backend=backend, step="last")
