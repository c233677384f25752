"""The step on any mesh does what the step on one device does, and its share of the work."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tclip.losses import LossConfig
from tclip.models import with_layout
from tclip.parallel.sharding import (
    MeshConfig,
    batch_sharding,
    make_mesh,
    param_shardings,
    state_shardings,
)
from tclip.run.experiment import Experiment, TeacherConfig, TrainConfig
from tclip.run.optim import OptimConfig
from tclip.train.sharded_step import make_sharded_step
from tests.helpers import tiny

BATCH = 32


def make_experiment(accumulate: int, negatives: str) -> Experiment:
    return Experiment(
        model=dataclasses.replace(tiny.config(), scan_layers=True),
        preprocess=tiny.PREPROCESS,
        quant=dataclasses.replace(tiny.POLICY, estimator="twn"),
        teacher=TeacherConfig(path="given as an argument"),
        loss=LossConfig(
            similarity_weight=1,
            embedding_weight=1,
            hidden_weight=1,
            hidden_layers=((0, 1),),
            text_hidden_layers=((0, 1), (1, 0)),
            negatives=negatives,
        ),
        optim=OptimConfig(warmup_steps=2, accumulate=accumulate, ema_decay=0.9),
        train=TrainConfig(steps=10),
    )


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    colours = list(tiny.COLOURS)
    captions = [f"a photo of a {colours[i]} square" for i in rng.integers(3, size=BATCH)]
    return {
        "images": rng.standard_normal((BATCH, 32, 32, 3)).astype(np.float32),
        "tokens": tiny.tokenizer().encode(captions),
        "skipped": np.ones(BATCH, np.int32),
    }


def teacher_params(experiment: Experiment) -> dict:
    return with_layout(tiny.params(seed=1), experiment.model)


ONE = MeshConfig(data=1)
EIGHT = MeshConfig(data=8)


@functools.cache
def run(config: MeshConfig, accumulate: int = 1, negatives: str = "gathered"):
    """State and metrics after a step, and the compiled jitted."""
    experiment = make_experiment(accumulate, negatives)
    mesh = make_mesh(config)
    teacher = teacher_params(experiment)
    teacher = jax.device_put(teacher, param_shardings(teacher, mesh))
    jitted = make_sharded_step(experiment, experiment.model, mesh, teacher)
    state = jitted.init(teacher)
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    step = jitted.step.lower(state, teacher, batch).compile()
    return *step(state, teacher, batch), step


@pytest.mark.parametrize(
    ("mesh", "accumulate", "negatives"),
    [
        (MeshConfig(data=2), 1, "gathered"),
        (MeshConfig(data=1, fsdp=2), 1, "gathered"),
        (MeshConfig(data=1, fsdp=2, tensor=2), 1, "gathered"),
        (EIGHT, 1, "gathered"),
        (MeshConfig(data=1, fsdp=8), 1, "gathered"),
        (MeshConfig(slice=2, data=2, fsdp=2), 1, "ring"),
        (MeshConfig(slice=2, data=2, tensor=2), 1, "gathered"),
        (MeshConfig(slice=2, data=1, fsdp=2, tensor=2), 1, "gathered"),
        (MeshConfig(data=2, fsdp=2, tensor=2), 1, "gathered"),
        (ONE, 4, "gathered"),
        (MeshConfig(data=2, fsdp=2, tensor=2), 2, "ring"),
    ],
    ids=lambda value: str(value).removeprefix("MeshConfig"),
)
def test_every_mesh_and_every_number_of_micro_batches_equals_one(mesh, accumulate, negatives):
    one, metrics_of_one, _ = run(ONE)
    many, metrics_of_many, _ = run(mesh, accumulate, negatives)
    assert float(metrics_of_many["skipped"]) == BATCH
    for name, value in metrics_of_one.items():
        np.testing.assert_allclose(metrics_of_many[name], value, rtol=1e-5, err_msg=name)
    # The first moment after one step is a multiple of the clipped gradient; its global norm is 0.1.
    # Sums in another order differ by the rounding of float32 on the scale of their terms: for most
    # leaves that is the leaf's own, but where terms cancel (a bias of the keys changes nothing in
    # a softmax) all that is left is rounding, some 1e-8 on the scale of the whole gradient.
    gradients = (state.opt_state[1].mu for state in (one, many))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * abs(a).max() + 1e-8)


@pytest.mark.parametrize("mesh", [EIGHT, MeshConfig(slice=2, data=1, fsdp=2, tensor=2)])
def test_state_stays_where_the_rules_put_it(mesh):
    state, _, _ = run(mesh)
    shardings = state_shardings(state, make_mesh(mesh))
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert len(leaf.sharding.device_set) == 8


def flops(mesh: MeshConfig) -> float:
    return run(mesh)[2].cost_analysis()["flops"]


def test_no_device_repeats_the_work_of_another():
    # On a data mesh the weights are ternarised and updated on every device; the rest is split.
    assert flops(EIGHT) < flops(ONE) / 4


def test_ema_after_one_step_is_between_start_and_end():
    state, _, _ = run(ONE)
    start = tiny.params(seed=1)["vision"]["projection"]["kernel"]
    end = state.trainable["params"]["vision"]["projection"]["kernel"]
    decay = min(0.9, (1 + 0) / (10 + 0))
    expected = decay * np.asarray(start) + (1 - decay) * np.asarray(end)
    average = state.ema["params"]["vision"]["projection"]["kernel"]
    np.testing.assert_allclose(average, expected, rtol=1e-6, atol=1e-8)
