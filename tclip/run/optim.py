"""AdamW with decay masked by parameter path, and learning-rate schedules."""

import dataclasses
import re
from typing import Annotated, Any

import jax
import optax

from tclip.config import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range, check_ranges
from tclip.parallel.sharding import path_name

SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Options of the optimiser.

    Attributes:
      lr: peak learning rate.
      warmup_steps: steps of linear warm-up from 0.
      schedule: "cosine" falls from the peak to the end of training; "constant" stays at the peak
        and falls linearly over the last `decay_fraction` of training.
      decay_fraction: length of the tail of "constant", as a fraction of all steps.
      final_lr_fraction: the learning rate at the last step, as a fraction of the peak.
      b1, b2, eps: of Adam.
      weight_decay: decoupled decay, multiplied by the learning rate.
      no_decay: regular expressions over "/"-joined paths of the trainable tree
        ("params/...", "quant/...", "adapters/...") of the leaves that do not decay.
      grad_clip: largest global norm of the gradient; 0 turns clipping off.
      quant_lr_multiplier: factor on the learning rate of scales and thresholds.
      ema_decay: decay of the moving average of the weights; 0 keeps none.
      accumulate: micro-batches a step, to save memory: the loss and its gradient are those of the
        whole batch. More than one costs a second forward pass.
    """

    lr: Annotated[float, POSITIVE] = 1e-3
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 100
    schedule: str = "cosine"
    decay_fraction: Annotated[float, FRACTION] = 0.2
    final_lr_fraction: Annotated[float, FRACTION] = 0.0
    b1: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    b2: Annotated[float, Range(0, 1, open_high=True)] = 0.98
    eps: Annotated[float, POSITIVE] = 1e-6
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.1
    no_decay: tuple[str, ...] = (
        r".*/bias",
        r".*/ln_[^/]+/scale",
        r".*/(class|position)_embedding",
        r".*/attn_pool/probe",
        r".*/logit_(scale|bias)",
        r"quant/.*",
    )
    grad_clip: Annotated[float, NOT_NEGATIVE] = 1.0
    quant_lr_multiplier: Annotated[float, NOT_NEGATIVE] = 1.0
    ema_decay: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    accumulate: Annotated[int, COUNT] = 1

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule={self.schedule!r}: choose from {SCHEDULES}")
        check_ranges(self, "optim")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"optim.no_decay: {pattern!r} is no regular expression: {error}"
                ) from None


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the schedule: step (from 0) -> learning rate, for a run of `steps` steps.

    Raises:
      ValueError: the warm-up (and the tail) leave no room in `steps`.
    """
    final_lr = config.lr * config.final_lr_fraction
    tail = 0 if config.schedule == "cosine" else round(config.decay_fraction * steps)
    if config.warmup_steps + tail >= steps:
        raise ValueError(
            f"optim.warmup_steps={config.warmup_steps} and a decay tail of {tail} steps do not fit "
            f"into train.steps={steps}"
        )
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    if config.schedule == "cosine":
        decay_steps = steps - config.warmup_steps
        decay = optax.cosine_decay_schedule(config.lr, decay_steps, config.final_lr_fraction)
        return optax.join_schedules([warmup, decay], [config.warmup_steps])
    parts = [warmup, optax.constant_schedule(config.lr)]
    boundaries = [config.warmup_steps]
    if tail:
        parts.append(optax.linear_schedule(config.lr, final_lr, tail))
        boundaries.append(steps - tail)
    return optax.join_schedules(parts, boundaries)


def decay_mask(trainable: Any, no_decay: tuple[str, ...]) -> Any:
    """Returns a tree of bools, True for the leaves that decay."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = path_name(path)
        return not any(re.fullmatch(pattern, name) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(decays, trainable)


def quant_mask(trainable: Any) -> Any:
    """Returns a tree of bools, True for scales and thresholds of ternary weights."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_name(path).startswith("quant/"), trainable
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov & Hutter, 2019) over the trainable tree of a TrainState."""
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda tree: decay_mask(tree, config.no_decay)
        ),
        optax.masked(optax.scale(config.quant_lr_multiplier), quant_mask),
        optax.scale_by_learning_rate(learning_rate(config, steps)),
    )
