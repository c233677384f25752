"""The sharding of every array of a run, as recorded in tests/golden.

After a change that is meant: UPDATE_GOLDEN=1 launch/test.sh tests/parallel/test_sharding_golden.py
"""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import pytest

from tclip.losses import LossConfig
from tclip.models import ClipPolicy, architecture
from tclip.parallel.sharding import MeshConfig, make_mesh, path_name, state_shardings
from tclip.run.experiment import Experiment, TeacherConfig
from tclip.run.optim import OptimConfig, make_optimizer
from tclip.run.state import create_state

GOLDEN = Path(__file__).parents[1] / "golden"
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "fsdp_tensor": MeshConfig(fsdp=4, tensor=2),
}
# A student and its teacher; where their widths differ there are adapters.
MODELS = {"vit_b16": ("ViT-B/16", "ViT-L/14"), "vit_h14": ("ViT-H/14", "ViT-H/14")}


@functools.cache
def abstract_state(student: str, teacher: str):
    model = dataclasses.replace(architecture(student), scan_layers=True)
    experiment = Experiment(
        model=model,
        preprocess=dataclasses.replace(Experiment().preprocess, image_size=224),
        quant=ClipPolicy(policy="all", group="channel"),
        teacher=TeacherConfig(path="given as an argument"),
        loss=LossConfig(embedding_weight=1.0),
        optim=OptimConfig(ema_decay=0.99),
    )
    optimizer = make_optimizer(experiment.optim, 1000)
    init = functools.partial(create_state, experiment, architecture(teacher), optimizer, None)
    return jax.eval_shape(init)


def describe(state, shardings) -> str:
    lines = (
        f"{path_name(path)} {list(leaf.shape)} {tuple(sharding.spec)}\n"
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(state), jax.tree.leaves(shardings), strict=True
        )
    )
    return "".join(lines)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_every_array_lives_where_it_is_recorded_to(model, mesh):
    state = abstract_state(*MODELS[model])
    text = describe(state, state_shardings(state, make_mesh(MESHES[mesh])))
    path = GOLDEN / f"sharding_{model}_{mesh}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.is_file(), f"{path.name} is missing; UPDATE_GOLDEN=1 records it"
    assert text == path.read_text()
