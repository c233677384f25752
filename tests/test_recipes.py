"""Every shipped config and every point of its sweep builds: state and step, by shapes alone."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tclip.experiment import experiment_from_config
from tclip.optim import learning_rate, make_optimizer
from tclip.sharding import MeshConfig, check_batch, make_mesh
from tclip.state import create_state
from tclip.step import make_train_step

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points():
    for file in CONFIGS:
        module = load(file)
        for role in module.ROLES:
            yield pytest.param(file, role, {}, id=f"{file.stem}-{role}")
        for number, overrides in enumerate(module.sweep()):
            yield pytest.param(file, "student", overrides, id=f"{file.stem}-sweep-{number}")


@pytest.mark.parametrize(("file", "role", "overrides"), list(points()))
def test_builds(file, role, overrides):
    config = load(file).get_config(role)
    config.update_from_flattened_dict(overrides)
    experiment = experiment_from_config(config)
    mesh = make_mesh(MeshConfig(1))
    check_batch(experiment.train.batch_size, experiment.optim.accumulate, mesh)
    optimizer = make_optimizer(experiment.optim, experiment.train.steps)
    schedule = learning_rate(experiment.optim, experiment.train.steps)
    model = experiment.model
    teacher_model = model if role == "student" else None
    init = functools.partial(create_state, experiment, teacher_model, optimizer)
    without = functools.partial(create_state, experiment, None, optimizer, None)
    teacher = jax.eval_shape(without).trainable["params"] if teacher_model else None
    state = jax.eval_shape(init, teacher)
    batch, size = experiment.train.batch_size, model.vision.image_size
    inputs = {
        "images": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32),
        "tokens": jax.ShapeDtypeStruct((batch, model.text.context_length), jnp.int32),
        "skipped": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    step = make_train_step(experiment, teacher_model, optimizer, schedule, mesh)
    new_state, metrics = jax.eval_shape(step, state, teacher, inputs)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert metrics["loss"].shape == ()
    assert bool(state.trainable["quant"]) == (role == "student")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_an_unknown_role_is_refused(file):
    with pytest.raises(ValueError, match="choose one of teacher, student"):
        load(file).get_config("pupil")
