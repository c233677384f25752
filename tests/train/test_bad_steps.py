"""Steps without a finite loss or gradient: they change nothing, are counted, and end a run."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from tclip.config import build
from tclip.losses import LossConfig
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh, state_shardings
from tclip.run.checkpoint import CHECKPOINTS, load_trained
from tclip.run.experiment import Experiment
from tclip.run.optim import OptimConfig, learning_rate, make_optimizer
from tclip.run.state import TrainState, create_state
from tclip.train.bad_steps import BAD_BATCHES, BadSteps
from tclip.train.loop import train
from tclip.train.metric_writer import read_metrics
from tclip.train.step import make_train_step
from tests.helpers import benchmark_folders, tiny
from tests.helpers.logs import own_messages
from tests.helpers.runs import assert_same_bits, run_config, samples_in

BATCH = 8
LR = OptimConfig().lr
GOOD = {"loss": 1.0, "grad_norm": 1.0, "update_norm": 1.0}


def make_batch(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.standard_normal((BATCH, 32, 32, 3)).astype(np.float32),
        "tokens": tiny.tokenizer().encode([f"a photo {i}" for i in range(BATCH)]),
        "skipped": np.ones(BATCH, np.int32),
    }


@functools.cache
def compiled(mesh: MeshConfig, weight: float, lr: float) -> tuple[TrainState, Callable]:
    """The state at the beginning, and the step."""
    config = tiny.config()
    vision, text = (dataclasses.replace(tower, layers=1) for tower in (config.vision, config.text))
    experiment = Experiment(
        model=dataclasses.replace(config, vision=vision, text=text),
        preprocess=tiny.PREPROCESS,
        quant=dataclasses.replace(tiny.POLICY, policy="ffn", estimator="twn"),
        loss=LossConfig(contrastive_weight=weight),
        optim=OptimConfig(lr=lr, warmup_steps=4 if lr == LR else 0, ema_decay=0.9),
    )
    mesh = make_mesh(mesh)
    optimizer = make_optimizer(experiment.optim, 10)
    schedule = learning_rate(experiment.optim, 10)
    init = functools.partial(create_state, experiment, None, optimizer, None)
    shardings = state_shardings(jax.eval_shape(init), mesh)
    state = jax.jit(init, out_shardings=shardings)()
    step = make_train_step(experiment, None, optimizer, schedule, mesh)
    return state, jax.jit(step, out_shardings=(shardings, None))


def take_steps(mesh: MeshConfig, batches: list[dict], weight: float = 1, lr: float = LR) -> tuple:
    """The state at the beginning, and state and metrics after every step."""
    state, step = compiled(mesh, weight, lr)
    taken = [(state, None)]
    for batch in batches:
        batch = jax.device_put(batch, batch_sharding(make_mesh(mesh)))
        taken.append(step(taken[-1][0], None, batch))
    return taken


def counted(state: TrainState, **counts: int) -> TrainState:
    counts = {name: np.int32(count) for name, count in counts.items()}
    return dataclasses.replace(state, **counts)


def test_a_bad_step_changes_nothing_but_its_counters():
    mesh = MeshConfig(data=2, fsdp=2)
    first, second = make_batch(0), make_batch(1)
    # Of a single pixel in the part of one device all others hear as well.
    bad = second | {"images": second["images"].copy()}
    bad["images"][-1, 3, 3, 0] = np.nan
    taken = take_steps(mesh, [first, bad, bad, second])
    _, undisturbed, expected = take_steps(mesh, [first, second])

    states, metrics = zip(*taken, strict=True)
    assert_same_bits(states[1], undisturbed[0])
    skipped = counted(states[1], step=2, bad_steps=1, skipped=2 * BATCH)
    assert_same_bits(states[2], skipped)
    assert np.isnan(metrics[2]["loss"])
    assert [int(m["bad_steps"]) for m in metrics[1:]] == [0, 1, 2, 2]
    # Learning goes on as if the bad batches had not been there.
    after = counted(expected[0], step=4, bad_steps=2, skipped=4 * BATCH)
    assert_same_bits(states[4], after)
    assert metrics[4]["loss"] == expected[1]["loss"]
    assert metrics[4]["learning_rate"] == expected[1]["learning_rate"]


def test_a_finite_loss_with_an_infinite_gradient_is_a_bad_step():
    # Squares of the gradient are beyond float32.
    (before, _), (after, metrics) = take_steps(MeshConfig(data=1), [make_batch(0)], weight=1e30)
    assert np.isfinite(metrics["loss"])
    assert np.isinf(metrics["grad_norm"])
    assert_same_bits(after, counted(before, step=1, bad_steps=1, skipped=BATCH))


def test_an_update_that_is_not_finite_is_a_bad_step():
    """As of an optimiser that divides by zero; the gradient is finite."""
    (before, _), (after, metrics) = take_steps(MeshConfig(data=1), [make_batch(0)], lr=1e38)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(metrics["update_norm"])
    assert_same_bits(after, counted(before, step=1, bad_steps=1, skipped=BATCH))


def test_the_norm_of_the_update_is_that_of_what_changes():
    (before, _), (after, metrics) = take_steps(MeshConfig(data=1), [make_batch(0)], lr=2e-3)
    change = jax.tree.map(lambda x, y: np.float64(x) - y, after.trainable, before.trainable)
    expected = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(change)))
    # The weights are rounded when the update is added.
    np.testing.assert_allclose(metrics["update_norm"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("loss", "the samples"), ("grad_norm", "the samples"), ("update_norm", r"optim\.eps")],
)
def test_the_message_blames_the_first_that_is_not_finite(tmp_path, name, remedy):
    names = list(GOOD)
    bad = GOOD | dict.fromkeys(names[names.index(name) :], float("nan"))
    with pytest.raises(FloatingPointError, match=rf"^{name} not finite .*{remedy}"):
        BadSteps(1, tmp_path, lambda step: []).check(1, bad)


@pytest.mark.parametrize("name", GOOD)
def test_bad_steps_in_a_row_end_the_run_with_their_samples(tmp_path, caplog, name):
    steps = BadSteps(2, tmp_path, lambda step: [f"{step}-{i}" for i in range(BATCH)])
    bad = GOOD | {name: float("nan")}
    for step, metrics in enumerate([bad, GOOD, bad, GOOD, GOOD, bad], start=1):
        steps.check(step, metrics)
    messages = own_messages(caplog)
    assert len(messages) == 3
    assert messages[0].startswith("step 1 is skipped: ")
    file = tmp_path / BAD_BATCHES
    message = (
        rf"at steps 6, 7 \(train\.max_bad_steps=2\); .* {file} \(the last begin with 7-0, 7-1, "
    )
    with pytest.raises(FloatingPointError, match=message):
        steps.check(7, bad)
    keys = json.loads(file.read_text())
    assert keys == {str(step): [f"{step}-{i}" for i in range(BATCH)] for step in (6, 7)}


def test_a_run_that_diverges_stops_and_keeps_what_was_good(tmp_path, caplog):
    samples = benchmark_folders.captioned()
    benchmark_folders.write_dataset(tmp_path / "data", samples, "retrieval")
    config = run_config(
        samples_in(tmp_path),
        # After the first update nothing is finite any more.
        optim={"lr": 1e15, "warmup_steps": 0},
        train={
            "steps": 9,
            "batch_size": 8,
            "log_every": 1,
            "checkpoint_every": 1,
            "keep_last": 1,
            "max_bad_steps": 3,
        },
    )
    run = tmp_path / "run"
    with (
        caplog.at_level(logging.WARNING, "tclip.train.bad_steps"),
        pytest.raises(FloatingPointError, match="not finite at steps 2, 3, 4 "),
    ):
        train(build(Experiment, config), run)
    assert [message.partition(":")[0] for message in own_messages(caplog)] == [
        f"step {step} is skipped" for step in (2, 3, 4)
    ]
    rows = read_metrics(run)
    assert [row["bad_steps"] for row in rows] == [0, 1, 2, 3]
    # What is not finite is no JSON.
    assert ["loss" in row for row in rows] == [True, False, False, False]
    # What was saved before is not rotated out by what changes nothing.
    assert [path.name for path in (run / CHECKPOINTS).iterdir()] == ["1"]
    _, params, _ = load_trained(run)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
    keys = json.loads((run / BAD_BATCHES).read_text())
    assert list(keys) == ["2", "3", "4"]
    known = {f"s{i:07}" for i in range(len(samples))}
    for batch in keys.values():
        assert len(batch) == 8
        assert {Path(key).name for key in batch} <= known
