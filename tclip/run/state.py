"""The train state: everything that a step changes, and how it comes into being."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tclip.losses import Widths, init_adapters
from tclip.models import CLIPConfig, bound_logit_scale, init_params
from tclip.quant import init_quant
from tclip.run.experiment import Experiment

Params = Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "trainable", "opt_state", "ema", "skipped", "bad_steps"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of the model and the optimiser. The frozen teacher is not part of it.

    Attributes:
      step: int32 scalar, batches seen.
      trainable: {"params": latent float32 weights, "quant": scales and thresholds of ternary
        weights, "adapters": projections of the distillation losses}.
      opt_state: state of the optax transformation over `trainable`.
      ema: moving average of {"params", "quant"}, or None.
      skipped: int32 scalar, bad samples skipped by the input pipeline so far.
      bad_steps: int32 scalar, steps so far that changed nothing because loss, gradient or update
        were not finite.
    """

    step: jax.Array
    trainable: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any] | None
    skipped: jax.Array
    bad_steps: jax.Array

    @property
    def weights(self) -> dict[str, Any]:
        """{"params", "quant"} to evaluate and to ship: the moving average where it is kept."""
        source = self.trainable if self.ema is None else self.ema
        return {"params": source["params"], "quant": source["quant"]}


def create_state(
    experiment: Experiment,
    teacher_model: CLIPConfig | None,
    optimizer: optax.GradientTransformation,
    start: Params | None,
) -> TrainState:
    """Returns the state before the first step; pure, to be run under jit.

    Scales and thresholds are estimated from the weights.

    Args:
      teacher_model: architecture of the teacher, or None.
      start: float32 parameters to start from, or None for random ones.
    """
    params_key, adapters_key = jax.random.split(jax.random.key(experiment.seed))
    params = init_params(experiment.model, params_key) if start is None else _copy(start)
    params = bound_logit_scale(params)
    adapters = {}
    if teacher_model is not None:
        adapters = init_adapters(
            adapters_key, widths(experiment.model), widths(teacher_model), experiment.loss
        )
    quant = init_quant(params, experiment.quant)
    trainable = {"params": params, "quant": quant, "adapters": adapters}
    keep_ema = experiment.optim.ema_decay > 0
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=optimizer.init(trainable),
        ema=_copy({"params": params, "quant": quant}) if keep_ema else None,
        skipped=jnp.zeros((), jnp.int32),
        bad_steps=jnp.zeros((), jnp.int32),
    )


def widths(model: CLIPConfig) -> Widths:
    """The widths of a model that distillation has to bridge."""
    return Widths(model.embed_dim, model.vision.width, model.text.width)


def _copy(tree: Any) -> Any:
    # The state is donated: its leaves must share no buffer with the start or with each other.
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
