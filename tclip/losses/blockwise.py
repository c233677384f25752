"""The pairwise losses by blocks of the logits, none of which outlives its use.

Every block is computed twice: for the sums over its rows and columns that the losses are made of,
and, when these are complete, for its part of the gradient.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tclip.losses.config import LossConfig
from tclip.losses.exchange import Visit, chunked, ring
from tclip.losses.logits import Block, logits, make_block
from tclip.losses.outputs import Outputs
from tclip.losses.terms import pairwise_terms
from tclip.parallel.sharding import BATCH_AXES

_OVER_BATCH, _EVERYWHERE = PartitionSpec(BATCH_AXES), PartitionSpec()
# A tree of specs instead of arrays.
_OUTPUTS = Outputs(
    *(_OVER_BATCH, _OVER_BATCH, _EVERYWHERE, _EVERYWHERE)  # pyright: ignore[reportArgumentType]
)


class Texts(NamedTuple):
    """What of N texts goes from device to device: unit embeddings [N, D] and tokens [N, L]."""

    student: jax.Array
    teacher: jax.Array | None
    captions: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def blockwise(
    config: LossConfig, mesh: Mesh, student: Outputs, teacher: Outputs | None, captions: jax.Array
) -> dict[str, jax.Array]:
    """The terms of `pairwise_terms`, as scalars. Teacher and captions are taken as constants.

    Args:
      student, teacher: unit embeddings of the whole batch of B pairs, split over the mesh.
      captions: int32 tokens [B, L], likewise.
    """
    return _forward(config, mesh, student, teacher, captions)[0]


def _forward(
    config: LossConfig, mesh: Mesh, student: Outputs, teacher: Outputs | None, captions: jax.Array
) -> tuple[dict[str, jax.Array], Any]:
    batch_size = len(captions)
    terms = pairwise_terms(config, batch_size)

    def local(student: Outputs, teacher: Outputs | None, captions: jax.Array) -> Any:
        def visit(texts: Texts) -> tuple[Any, Any]:
            block = make_block(*_against(student, teacher, texts), captions, texts.captions)
            of_images, of_texts = (
                {name: term.sums(side) for name, term in terms.items()} for side in (block, block.T)
            )
            return of_images, of_texts

        sums = _sweep(config, batch_size, visit, _texts(student, teacher, captions))
        losses = {
            name: sum(jnp.sum(term.losses(side[name])) for side in sums) / (2 * batch_size)
            for name, term in terms.items()
        }
        return jax.lax.psum(losses, BATCH_AXES), sums

    losses, sums = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=_specs(teacher),
        out_specs=(_EVERYWHERE, _OVER_BATCH),
    )(student, teacher, captions)
    return losses, (student, teacher, captions, sums)


def _backward(config: LossConfig, mesh: Mesh, residuals: Any, weights: dict[str, jax.Array]):
    student, teacher, captions, sums = residuals
    batch_size = len(captions)
    terms = pairwise_terms(config, batch_size)

    def local(
        student: Outputs, teacher: Outputs | None, captions: jax.Array, sums: Any, weights: Any
    ) -> Outputs:
        # Each device sums its own part of the scalars' gradients.
        scale, bias = jax.lax.pcast(
            (student.logit_scale, student.logit_bias), BATCH_AXES, to="varying"
        )
        image_sums, text_sums = sums

        def visit(visitors: tuple[Texts, Any]) -> tuple[Any, Any]:
            texts, text_sums = visitors
            block = make_block(*_against(student, teacher, texts), captions, texts.captions)

            def slope(side: Block, sums: Any) -> jax.Array:
                slopes = (
                    weights[name] / (2 * batch_size) * term.gradient(side, sums[name])
                    for name, term in terms.items()
                )
                return sum(slopes, start=jnp.zeros(()))

            def student_logits(image, text, scale, bias) -> jax.Array:
                return logits(Outputs(image, text, scale, bias))

            _, pull = jax.vjp(student_logits, student.image, texts.student, scale, bias)
            image, text, *scalars = pull(slope(block, image_sums) + slope(block.T, text_sums).T)
            return (image, *scalars), text

        visitors = _texts(student, teacher, captions), text_sums
        (image, *scalars), text = _sweep(config, batch_size, visit, visitors)
        return Outputs(image, text, *jax.lax.psum(scalars, BATCH_AXES))

    gradient = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*_specs(teacher), _OVER_BATCH, _EVERYWHERE),
        out_specs=_OUTPUTS,
    )(student, teacher, captions, sums, weights)
    return gradient, None, None


blockwise.defvjp(_forward, _backward)


def _specs(teacher: Outputs | None) -> tuple[Any, ...]:
    return _OUTPUTS, None if teacher is None else _OUTPUTS, _OVER_BATCH


def _texts(student: Outputs, teacher: Outputs | None, captions: jax.Array) -> Texts:
    return Texts(student.text, None if teacher is None else teacher.text, captions)


def _against(
    student: Outputs, teacher: Outputs | None, texts: Texts
) -> tuple[Outputs, Outputs | None]:
    """The models' images together with other texts than their own."""
    student = dataclasses.replace(student, text=texts.student)
    if teacher is None or texts.teacher is None:
        return student, None
    return student, dataclasses.replace(teacher, text=texts.teacher)


def _sweep(config: LossConfig, batch_size: int, visit: Visit, texts: Any) -> tuple[Any, Any]:
    if config.negatives == "ring":
        return ring(visit, texts, BATCH_AXES)
    return chunked(visit, texts, BATCH_AXES, batch_size // config.chunk_size)
