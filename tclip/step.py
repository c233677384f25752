"""One optimisation step: a pure function of (state, teacher parameters, batch)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tclip.experiment import Experiment
from tclip.gather import gather_weights
from tclip.losses import Outputs, caption_positives, total_loss
from tclip.models import CLIP, CLIPConfig, logit_bias, logit_scale
from tclip.quant import TernaryPolicy, ternarize_params, ternary_paths
from tclip.sharding import BATCH_AXES, batch_sharding
from tclip.state import Params, TrainState

MAX_LOGIT_SCALE = math.log(100.0)

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Params | None, Batch], tuple[TrainState, Metrics]]


def forward(
    model: CLIPConfig,
    params: Params,
    batch: Batch,
    hidden_layers: dict[str, tuple[int, ...]],
    sharding: NamedSharding,
) -> Outputs:
    """Runs both towers.

    Args:
      batch: {"images" float32 [B, S, S, 3], "tokens" int32 [B, L]}.
      hidden_layers: blocks whose outputs are wanted, of the towers "image" and "text".
      sharding: of arrays with a leading batch axis.
    """

    def encode(inputs: jax.Array, tower: str) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        layers = hidden_layers[tower]
        outputs = CLIP(model).apply(
            {"params": params}, inputs, hidden_layers=layers, method=f"encode_{tower}"
        )
        embedding_BxD, hidden = outputs if layers else (outputs, ())
        # Left alone, the partitioner may gather the batch and repeat the losses on every device.
        return jax.lax.with_sharding_constraint(embedding_BxD, sharding), hidden

    image, image_hidden = encode(batch["images"], "image")
    text, text_hidden = encode(batch["tokens"], "text")
    return Outputs(
        image=image,
        text=text,
        logit_scale=logit_scale(params),
        logit_bias=logit_bias(params),
        image_hidden=image_hidden,
        text_hidden=text_hidden,
    )


def student_params(trainable: dict[str, Any], policy: TernaryPolicy, mesh: Mesh) -> Params:
    """The weights that the student's towers are run with."""
    params = ternarize_params(trainable["params"], trainable["quant"], policy)
    return gather_weights(params, mesh, ternary_paths(trainable["params"], policy), policy.group)


def teacher_outputs(
    model: CLIPConfig,
    params: Params,
    batch: Batch,
    hidden_layers: dict[str, tuple[int, ...]],
    sharding: NamedSharding,
) -> Outputs:
    """What the teacher says of a batch: stored embeddings if there are any, else both towers' run.

    Args:
      params: with stored embeddings only "logit_scale" and "logit_bias" are read.
      batch: as of `make_train_step`.
    """
    # A teacher's scale may lie beyond the bound of training (SigLIP's does).
    scale, bias = jnp.exp(params["logit_scale"]), logit_bias(params)
    if "teacher_image_embeddings" in batch:
        image, text = batch["teacher_image_embeddings"], batch["teacher_text_embeddings"]
        return Outputs(image=image, text=text, logit_scale=scale, logit_bias=bias)
    seen = {name: batch.get(f"teacher_{name}", batch[name]) for name in ("images", "tokens")}
    outputs = forward(model, params, seen, hidden_layers, sharding)
    return dataclasses.replace(outputs, logit_scale=scale)


def make_train_step(
    experiment: Experiment,
    teacher_model: CLIPConfig | None,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> StepFunction:
    """Returns step(state, teacher_params, batch) -> (state, metrics), not yet jitted.

    With optim.accumulate = A > 1 the batch is split into A micro-batches that run one after another
    under lax.scan; gradients and metrics are their means. Negatives are those of the micro-batch.

    The batch is that of `tclip.data.train_batches`; the metrics are float32 scalars, "skipped"
    counts from the beginning of training.
    """
    pairs = experiment.loss.hidden_pairs
    student_layers, teacher_layers = (
        {tower: tuple(pair[side] for pair in pairs[tower]) for tower in pairs} for side in (0, 1)
    )
    batch_axis = batch_sharding(mesh)
    micro_axis = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    accumulate = experiment.optim.accumulate

    def loss_fn(
        trainable: dict[str, Any], teacher_params: Params | None, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        params = student_params(trainable, experiment.quant, mesh)
        student = forward(experiment.model, params, batch, student_layers, batch_axis)
        teacher = None
        if teacher_model is not None:
            weights = gather_weights(teacher_params, mesh)
            teacher = teacher_outputs(teacher_model, weights, batch, teacher_layers, batch_axis)
        positives_BxB = jax.lax.with_sharding_constraint(
            caption_positives(batch["tokens"]), batch_axis
        )
        loss, metrics = total_loss(
            experiment.loss, student, teacher, positives_BxB, trainable["adapters"]
        )
        return loss, metrics | {"loss": loss, "logit_scale": student.logit_scale}

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def micro_batches(x: jax.Array) -> jax.Array:
        # Sample i goes to micro-batch i % A, so that no device has to send its samples away.
        x_MxA = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.swapaxes(x_MxA, 0, 1), micro_axis)

    def gradients(
        trainable: dict[str, Any], teacher_params: Params | None, batch: Batch
    ) -> tuple[Any, Metrics]:
        if accumulate == 1:
            return grad_fn(trainable, teacher_params, batch)

        def add(total: Any, batch: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad_fn(trainable, teacher_params, batch)), None

        batches = jax.tree.map(micro_batches, batch)
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(grad_fn, trainable, teacher_params, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(
        state: TrainState, teacher_params: Params | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        inputs = {name: x for name, x in batch.items() if name != "skipped"}
        grads, metrics = gradients(state.trainable, teacher_params, inputs)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable = trainable | {"params": _bound_logit_scale(trainable["params"])}
        skipped = state.skipped + jnp.sum(batch["skipped"])
        new_state = TrainState(
            step=state.step + 1,
            trainable=trainable,
            opt_state=opt_state,
            ema=update_ema(state, trainable, experiment.optim.ema_decay),
            skipped=skipped,
        )
        return new_state, metrics | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(state.step),
            "skipped": skipped,
        }

    return step


def _bound_logit_scale(params: Params) -> Params:
    # With a bias, as in SigLIP, the scale has no bound (see `logit_scale`).
    if "logit_bias" in params:
        return params
    return params | {"logit_scale": jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)}


def update_ema(state: TrainState, trainable: dict[str, Any], decay: float) -> dict | None:
    """Moving average of the weights, with a decay that warms up as (1 + t) / (10 + t)."""
    if state.ema is None:
        return None
    t = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + t) / (10 + t))
    new = {key: trainable[key] for key in state.ema}
    return jax.tree.map(lambda e, x: decay * e + (1 - decay) * x, state.ema, new)
