"""One optimisation step: a pure function of (state, teacher parameters, batch)."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from tclip.losses import Outputs
from tclip.models import (
    CLIP,
    CLIPConfig,
    bound_logit_scale,
    effective_weights,
    logit_bias,
    logit_scale,
)
from tclip.parallel.gather import gather_weights, with_values
from tclip.parallel.sharding import batch_sharding
from tclip.quant import ternary_paths
from tclip.run.experiment import Experiment
from tclip.run.state import Params, TrainState
from tclip.train.bad_steps import FINITE
from tclip.train.gradients import Batch, Metrics, StudentAndTeacher, loss_gradients

NO_LAYERS: dict[str, tuple[int, ...]] = {"image": (), "text": ()}

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
        outputs: Any = CLIP(model).apply(
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
    scale, bias = logit_scale(params), logit_bias(params)
    if "teacher_image_embeddings" in batch:
        image, text = batch["teacher_image_embeddings"], batch["teacher_text_embeddings"]
        return Outputs(image=image, text=text, logit_scale=scale, logit_bias=bias)
    seen = {name: batch.get(f"teacher_{name}", batch[name]) for name in ("images", "tokens")}
    return forward(model, params, seen, hidden_layers, sharding)


def make_train_step(
    experiment: Experiment,
    teacher_model: CLIPConfig | None,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> StepFunction:
    """Returns step(state, teacher_params, batch) -> (state, metrics), not yet jitted.

    With optim.accumulate = A > 1 the batch is run in A micro-batches, one after another; the result
    is the same.

    Where loss, gradient or update are not finite, weights, moving average and optimiser stay as
    they were.

    The batch is that of `tclip.data.train_batches`; the metrics are float32 scalars, "skipped"
    and "bad_steps" count from the beginning of training.
    """
    pairs = experiment.loss.hidden_pairs
    student_layers, teacher_layers = (
        {tower: tuple(pair[side] for pair in pairs[tower]) for tower in pairs} for side in (0, 1)
    )
    batch_axis, quant = batch_sharding(mesh), experiment.quant

    def student_weights(latent: dict[str, Any]) -> Params:
        return effective_weights(latent["params"], latent["quant"], quant)

    def teacher_fn(params: Params | None, batch: Batch, hidden: bool) -> Outputs | None:
        if teacher_model is None:
            return None
        layers = teacher_layers if hidden else NO_LAYERS
        weights = gather_weights(params, mesh)
        return teacher_outputs(teacher_model, weights, batch, layers, batch_axis)

    def gradients(
        trainable: dict[str, Any], teacher_params: Params | None, batch: Batch
    ) -> tuple[dict[str, Any], Metrics]:
        # Ternarised and gathered once, however many micro-batches there are.
        latent = {key: trainable[key] for key in ("params", "quant")}
        params, pull = jax.vjp(student_weights, latent)
        paths = ternary_paths(latent["params"], quant)
        gathered = gather_weights(params, mesh, paths, quant.group)

        def student_fn(params: Params, batch: Batch, hidden: bool) -> Outputs:
            layers = student_layers if hidden else NO_LAYERS
            weights = with_values(gathered, params)
            return forward(experiment.model, weights, batch, layers, batch_axis)

        gradient, metrics = loss_gradients(
            StudentAndTeacher(student_fn, teacher_fn),
            experiment.loss,
            mesh,
            experiment.optim.accumulate,
        )({"params": params, "adapters": trainable["adapters"]}, teacher_params, batch)
        (latent_gradient,) = pull(gradient["params"])
        return latent_gradient | {"adapters": gradient["adapters"]}, metrics

    def step(
        state: TrainState, teacher_params: Params | None, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        inputs = {name: x for name, x in batch.items() if name != "skipped"}
        grads, metrics = gradients(state.trainable, teacher_params, inputs)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = cast(dict[str, Any], optax.apply_updates(state.trainable, updates))
        trainable = trainable | {"params": bound_logit_scale(trainable["params"])}
        metrics |= {"grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        is_good = jnp.isfinite(jnp.stack([metrics[name] for name in FINITE])).all()

        def if_good(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(is_good, x, y), new, old)

        new_state = TrainState(
            step=state.step + 1,
            trainable=if_good(trainable, state.trainable),
            opt_state=if_good(opt_state, state.opt_state),
            ema=if_good(update_ema(state, trainable, experiment.optim.ema_decay), state.ema),
            skipped=state.skipped + jnp.sum(batch["skipped"]),
            bad_steps=state.bad_steps + ~is_good,
        )
        return new_state, metrics | {
            # The optimiser counts its updates.
            "learning_rate": schedule(state.step - state.bad_steps),
            "skipped": new_state.skipped,
            "bad_steps": new_state.bad_steps,
        }

    return step


def update_ema(state: TrainState, trainable: dict[str, Any], decay: float) -> dict | None:
    """Moving average of the weights, with a decay that warms up as (1 + t) / (10 + t).

    t counts updates.
    """
    if state.ema is None:
        return None
    t = (state.step - state.bad_steps).astype(jnp.float32)
    warmed = jnp.minimum(decay, (1 + t) / (10 + t))
    new = {key: trainable[key] for key in state.ema}
    return jax.tree.map(lambda e, x: warmed * e + (1 - warmed) * x, state.ema, new)
