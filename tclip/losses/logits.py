"""The logits of images against texts, of which all pairwise losses are made."""

import dataclasses

import jax
import jax.numpy as jnp

from tclip.losses.outputs import Outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """Logits of R rows against C columns: images against texts, or, as `T`, the other way round.

    Attributes:
      student, teacher: float32 [R, C]; no teacher where no loss needs it.
      positive: booleans [R, C], row and column have the same caption.
    """

    student: jax.Array
    teacher: jax.Array | None
    positive: jax.Array

    @property
    def T(self) -> "Block":
        return jax.tree.map(jnp.transpose, self)


def make_block(
    student: Outputs,
    teacher: Outputs | None,
    image_captions: jax.Array,
    text_captions: jax.Array,
) -> Block:
    """Compares R images with C texts.

    Args:
      student, teacher: unit embeddings of the images [R, D] and of the texts [C, D].
      image_captions, text_captions: int32 tokens [R, L] and [C, L].
    """
    return Block(
        logits(student),
        None if teacher is None else logits(teacher),
        equal_captions(image_captions, text_captions),
    )


def logits(outputs: Outputs) -> jax.Array:
    """Scaled and biased products of the embeddings: float32 [R, C]."""
    # At a scale of 100 the rounding of a reduced-precision product would reach the first decimal.
    products = jnp.matmul(outputs.image, outputs.text.T, precision=jax.lax.Precision.HIGHEST)
    return outputs.logit_scale * products + outputs.logit_bias


def equal_captions(a_RxL: jax.Array, b_CxL: jax.Array) -> jax.Array:
    """Which captions have all int32 tokens in common: booleans [R, C].

    By the squared distances of their bytes, which are exact: all pairs of tokens [R, C, L] would
    fill the memory, or, compared one by one, the program.
    """
    a, b = _bytes(a_RxL), _bytes(b_CxL)
    products_RxC = jax.lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    a_R, b_C = (jnp.sum(jnp.square(x.astype(jnp.int32)), axis=1) for x in (a, b))
    return a_R[:, None] + b_C == 2 * products_RxC


def _bytes(tokens_NxL: jax.Array) -> jax.Array:
    """The bytes of int32, as int8: [N, 4 L]."""
    parts = [(tokens_NxL >> shift).astype(jnp.int8) for shift in (0, 8, 16, 24)]
    return jnp.concatenate(parts, axis=1)
