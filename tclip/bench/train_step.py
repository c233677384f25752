"""What training ternary costs: a quantisation-aware step against the float step."""

import dataclasses
import statistics
import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from tclip.experiment import Experiment
from tclip.models import CLIPConfig, architecture
from tclip.optim import learning_rate, make_optimizer
from tclip.quant import TernaryPolicy
from tclip.sharding import MeshConfig, make_mesh
from tclip.state import create_state
from tclip.step import make_train_step
from tclip.tables import markdown_table


def run(
    arch: Annotated[str, "architecture whose widths are used"] = "ViT-B/16",
    layers: Annotated[int, "layers of each tower, to fit small machines"] = 12,
    batch_size: Annotated[int, "image-caption pairs a step"] = 16,
    repeats: Annotated[int, "timed steps of each kind, after one with its compilation"] = 5,
    dtype: Annotated[str, "what is computed in: float32 or bfloat16"] = "float32",
) -> dict[str, Any]:
    """Times both steps in turn (float, ternary, float, ...) on one device, the same random batch.

    Both are contrastive training of the same architecture without a teacher; the ternary step has
    the policy "all" with a learned scale and threshold for every output channel.

    Returns:
      The median seconds of each step, the median of the pairwise ratios, and their range.
    """
    model = architecture(arch)
    model = dataclasses.replace(
        model,
        dtype=dtype,
        vision=dataclasses.replace(model.vision, layers=layers),
        text=dataclasses.replace(model.text, layers=layers),
    )
    steps = {"float": _Step(model, "none", batch_size), "ternary": _Step(model, "all", batch_size)}
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(step.timed())
    ratios = [t / f for f, t in zip(seconds["float"], seconds["ternary"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [(name, f"{1e3 * median:.0f} ms") for name, median in medians.items()]
    rows.append(("ternary / float", f"{statistics.median(ratios):.3f}"))
    print(f"{arch} widths, {layers} layers, batch {batch_size}, {dtype}, {repeats} pairs of steps")
    print(markdown_table(("training step", "median"), rows))
    return {
        "arch": arch,
        "layers": layers,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "seconds": medians,
        "ratio": statistics.median(ratios),
        "ratio_range": (min(ratios), max(ratios)),
    }


class _Step:
    """A compiled training step with a state and a batch to run it on."""

    def __init__(self, model: CLIPConfig, policy: str, batch_size: int):
        experiment = Experiment(
            model=model,
            preprocess=dataclasses.replace(
                Experiment().preprocess, image_size=model.vision.image_size
            ),
            quant=TernaryPolicy(policy=policy),
        )
        total_steps = experiment.train.steps
        optimizer = make_optimizer(experiment.optim, total_steps)
        schedule = learning_rate(experiment.optim, total_steps)
        mesh = make_mesh(MeshConfig(data=1))
        step = make_train_step(experiment, None, optimizer, schedule, mesh)
        self._step = jax.jit(step, donate_argnums=0)
        self._state = jax.jit(lambda: create_state(experiment, None, optimizer, None))()
        self._batch = _random_batch(model, batch_size)
        self.timed()

    def timed(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, None, self._batch)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def _random_batch(model: CLIPConfig, batch_size: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    size, text = model.vision.image_size, model.text
    tokens = rng.integers(1, text.eot_token_id, (batch_size, text.context_length))
    tokens[:, -1] = text.eot_token_id
    return {
        "images": jnp.asarray(rng.standard_normal((batch_size, size, size, 3)), jnp.float32),
        "tokens": jnp.asarray(tokens, jnp.int32),
        "skipped": jnp.zeros(batch_size, jnp.int32),
    }
