"""Training steps to be timed: compiled, with a state and a random batch to run on."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tclip.data.batch_layout import batch_layout
from tclip.models import CLIPConfig, architecture
from tclip.parallel.sharding import MeshConfig, make_mesh
from tclip.run.experiment import Experiment
from tclip.run.state import Params
from tclip.train.sharded_step import make_sharded_step
from tclip.train.step import Batch


def cut_architecture(arch: str, layers: int, dtype: str) -> CLIPConfig:
    """Returns a named architecture with at most so many layers a tower; the widths stay."""
    model = architecture(arch)
    vision, text = (
        dataclasses.replace(tower, layers=min(layers, tower.layers))
        for tower in (model.vision, model.text)
    )
    return dataclasses.replace(model, dtype=dtype, vision=vision, text=text)


class TimedStep:
    """One kind of step, on one device or on those of a mesh."""

    def __init__(
        self,
        experiment: Experiment,
        batch: Batch,
        teacher_model: CLIPConfig | None = None,
        teacher_params: Params | None = None,
        mesh: Mesh | None = None,
    ):
        mesh = mesh or make_mesh(MeshConfig(data=1))
        jitted = make_sharded_step(experiment, teacher_model, mesh)
        self._step = jitted.step
        self._state = jitted.init(None)
        self._inputs = teacher_params, batch
        self.seconds()

    def seconds(self, steps: int = 1) -> float:
        """Runs so many steps back to back and returns how long they took."""
        start = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, *self._inputs)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def experiment_of(model: CLIPConfig, **groups) -> Experiment:
    """An experiment that trains `model`, with these groups of its config."""
    preprocess = dataclasses.replace(Experiment().preprocess, image_size=model.vision.image_size)
    return Experiment(model=model, preprocess=preprocess, **groups)


def random_batch(model: CLIPConfig, batch_size: int) -> Batch:
    """Noise and random tokens."""
    rng = np.random.default_rng(0)
    layout, eot = batch_layout(batch_size, model), model.text.eot_token_id
    tokens = rng.integers(1, eot, layout["tokens"].shape)
    tokens[:, -1] = eot
    values = {
        "images": rng.standard_normal(layout["images"].shape),
        "tokens": tokens,
        "skipped": np.zeros(layout["skipped"].shape),
    }
    return {name: jnp.asarray(values[name], entry.dtype) for name, entry in layout.items()}
