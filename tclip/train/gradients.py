"""Gradients of the loss of a batch: at once, or by micro-batches with the same result.

The losses compare every sample with every other one, so that the gradient of a batch is not the
mean of those of its parts. But it reaches the weights through the embeddings alone, which are small
(GradCache, arXiv 2101.06983): the embeddings of all parts come first, then the loss of all of them
and its gradient with respect to them, then part by part the gradient of the weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tclip.losses import LossConfig, Outputs, embedding_loss, hidden_loss, total_loss
from tclip.models import logit_bias, logit_scale
from tclip.parallel.sharding import BATCH_AXES, batch_sharding

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# {"params": those that the student's towers see, "adapters": projections of the losses}
Weights = dict[str, Any]
# gradients(weights, teacher_params, batch) -> (gradient of the weights, metrics)
GradientFunction = Callable[[Weights, Any, Batch], tuple[Weights, Metrics]]


class StudentAndTeacher(NamedTuple):
    """Functions of (params, batch, whether hidden layers are wanted); no teacher is None."""

    student: Callable[[Any, Batch, bool], Outputs]
    teacher: Callable[[Any, Batch, bool], Outputs | None]


def loss_gradients(
    models: StudentAndTeacher, loss: LossConfig, mesh: Mesh, micro_batches: int
) -> GradientFunction:
    """Returns the function for a batch that is run in so many parts, one after another.

    With more than one the student runs twice, once without a gradient; so does a teacher whose
    hidden layers are compared with.
    """
    if micro_batches == 1:
        return _batch_gradients(models, loss, mesh)
    return _micro_batch_gradients(models, loss, mesh, micro_batches)


def _batch_gradients(models: StudentAndTeacher, loss: LossConfig, mesh: Mesh) -> GradientFunction:
    def loss_fn(weights: Weights, teacher_params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        student = models.student(weights["params"], batch, True)
        teacher = models.teacher(teacher_params, batch, True)
        value, terms = total_loss(
            loss, student, teacher, batch["tokens"], weights["adapters"], mesh
        )
        return value, terms | {"loss": value, "logit_scale": student.logit_scale}

    return jax.grad(loss_fn, has_aux=True)


def _micro_batch_gradients(
    models: StudentAndTeacher, loss: LossConfig, mesh: Mesh, count: int
) -> GradientFunction:
    over_batch = batch_sharding(mesh)
    over_parts = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(x: jax.Array) -> jax.Array:
        # Sample i goes to micro-batch i % A, so that no device has to send its samples away.
        x_MxA = x.reshape(x.shape[0] // count, count, *x.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.swapaxes(x_MxA, 0, 1), over_parts)

    def join(x_AxM: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x_AxM, 0, 1)
        return jax.lax.with_sharding_constraint(x.reshape(-1, *x.shape[2:]), over_batch)

    def whole(outputs: Outputs) -> Outputs:
        """The outputs of all parts, without hidden layers, as those of one batch."""
        scale, bias = (jnp.asarray(x)[0] for x in (outputs.logit_scale, outputs.logit_bias))
        return Outputs(join(outputs.image), join(outputs.text), scale, bias)

    def gradients(weights: Weights, teacher_params: Any, batch: Batch) -> tuple[Weights, Metrics]:
        parts = jax.tree.map(split, batch)

        def embed(part: Batch) -> tuple[Outputs, Outputs | None]:
            student = models.student(weights["params"], part, False)
            return student, models.teacher(teacher_params, part, False)

        students, teachers = jax.lax.map(embed, parts)
        student, teacher = whole(students), None if teachers is None else whole(teachers)

        def embedding_loss_fn(weights: Weights, image: jax.Array, text: jax.Array):
            params = weights["params"]
            outputs = Outputs(image, text, logit_scale(params), logit_bias(params))
            return embedding_loss(
                loss, outputs, teacher, batch["tokens"], weights["adapters"], mesh
            )

        (value, terms), (gradient, *of_embeddings) = jax.value_and_grad(
            embedding_loss_fn, argnums=(0, 1, 2), has_aux=True
        )(weights, student.image, student.text)

        def backpropagate(total: Weights, inputs: Any) -> tuple[Weights, Any]:
            part, of_embeddings = inputs

            def outputs(weights: Weights) -> Any:
                student = models.student(weights["params"], part, True)
                teacher = models.teacher(teacher_params, part, True) if loss.hidden_weight else None
                hidden, terms = hidden_loss(loss, student, teacher, weights["adapters"])
                return (student.image, student.text, hidden), (hidden, terms)

            _, pull, hidden = jax.vjp(outputs, weights, has_aux=True)
            (gradient,) = pull((*of_embeddings, jnp.full((), 1 / count)))
            return jax.tree.map(jnp.add, total, gradient), hidden

        gradient, hidden = jax.lax.scan(
            backpropagate, gradient, (parts, jax.tree.map(split, of_embeddings))
        )
        # Parts are of equal size: a mean over samples is the mean of theirs.
        hidden, hidden_terms = jax.tree.map(jnp.mean, hidden)
        metrics = {"loss": value + hidden, "logit_scale": student.logit_scale}
        return gradient, terms | hidden_terms | metrics

    return gradients
