"""Training steps to be timed: compiled, with a state and a random batch to run on."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tclip.experiment import Experiment
from tclip.models import CLIPConfig, architecture
from tclip.program import make_program
from tclip.sharding import MeshConfig, make_mesh
from tclip.state import Params
from tclip.step import Batch


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
        program = make_program(experiment, teacher_model, mesh)
        self._step = program.step
        self._state = program.init(None)
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
    size, text = model.vision.image_size, model.text
    tokens = rng.integers(1, text.eot_token_id, (batch_size, text.context_length))
    tokens[:, -1] = text.eot_token_id
    return {
        "images": jnp.asarray(rng.standard_normal((batch_size, size, size, 3)), jnp.float32),
        "tokens": jnp.asarray(tokens, jnp.int32),
        "skipped": jnp.zeros(batch_size, jnp.int32),
    }
