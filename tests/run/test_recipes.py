"""Every shipped config and every point of its sweep builds: state and step, by shapes alone."""

import dataclasses
import functools
import io
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tclip.interop import save_huggingface
from tclip.models import init_params, with_layout
from tclip.parallel.sharding import MeshConfig, check_batch, make_mesh
from tclip.quant import ternary_paths
from tclip.run.checkpoint import load_trained
from tclip.run.experiment import experiment_from_config
from tclip.run.optim import learning_rate, make_optimizer
from tclip.run.recipe import load_recipe
from tclip.run.state import create_state
from tclip.train.loop import train
from tclip.train.step import make_train_step
from tests.helpers import tiny

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def points():
    for file in CONFIGS:
        module = load_recipe(file)
        for role in module.ROLES:
            yield pytest.param(file, role, {}, id=f"{file.stem}-{role}")
        for number, overrides in enumerate(module.sweep()):
            yield pytest.param(file, "student", overrides, id=f"{file.stem}-sweep-{number}")


@pytest.mark.parametrize(("file", "role", "overrides"), list(points()))
def test_builds(file, role, overrides):
    config = load_recipe(file).get_config(role)
    config.update_from_flattened_dict(overrides)
    experiment = experiment_from_config(config)
    mesh = make_mesh(MeshConfig(data=1))
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
    module = load_recipe(file)
    with pytest.raises(ValueError, match=f"choose one of {', '.join(module.ROLES)}"):
        module.get_config("pupil")


@pytest.fixture(scope="module")
def float_clips(tmp_path_factory):
    """Folders of Hugging Face: a tiny CLIP, and a teacher of other widths and other pixels."""
    folder = tmp_path_factory.mktemp("clips")
    config = tiny.config()
    save_huggingface(folder / "clip", config, tiny.params(), tiny.tokenizer(), tiny.PREPROCESS)
    vision = dataclasses.replace(config.vision, width=64, image_size=48)
    config = dataclasses.replace(config, embed_dim=24, vision=vision, activation="gelu")
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(1))
    pixels = dataclasses.replace(tiny.PREPROCESS, image_size=48, mean=(0.5, 0.5, 0.5))
    save_huggingface(folder / "teacher", config, params, tiny.tokenizer(), pixels)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two tar shards of captioned squares."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(2):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for i, sample in enumerate(tiny.squares(8).samples):
                for suffix, data in (("jpg", sample.image), ("txt", sample.captions[0].encode())):
                    info = tarfile.TarInfo(f"{number}{i:04}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"wds:{folder}/{{00000..00001}}.tar"


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("vit_b16_cc12m", {"init": "clip", "teacher.path": "teacher"}),
        ("vit_b32", {"teacher.path": "clip"}),
        ("vit_h14", {"teacher.path": "clip"}),
    ],
)
def test_two_steps_with_shrunken_widths(recipe, overrides, float_clips, shards, tmp_path):
    config = load_recipe(CONFIGS[0].with_name(f"{recipe}.py")).get_config()
    config.update_from_flattened_dict({k: str(float_clips / v) for k, v in overrides.items()})
    small = {"batch_size": 8, "steps": 2, "log_every": 1, "num_workers": 0}
    config.train.update(small)
    config.optim.warmup_steps = 1
    config.mesh.fsdp = min(config.mesh.fsdp, 2)
    config.train_data.update({"source": shards, "data_dir": str(tmp_path / "data")})
    experiment = experiment_from_config(config)
    result = train(experiment, tmp_path / "run")
    assert result["step"] == 2
    assert 0 < result["loss"] < 100
    assert (result["embedding_l2"] > 0) and (result["similarity_kl"] > 0)
    saved, params, quant = load_trained(tmp_path / "run")
    # Architecture and weights are those of the float CLIP, computed as the recipe says.
    computed = {"dtype": "bfloat16", "scan_layers": True, "remat": config.model.remat}
    expected = dataclasses.replace(tiny.config(), **computed)
    assert saved.model == expected
    assert saved.preprocess.image_size == 32
    assert saved.preprocess.train_scale == experiment.preprocess.train_scale
    start = with_layout(tiny.params(), expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-3), params, start)
    assert set(quant) == set(ternary_paths(params, saved.quant))
