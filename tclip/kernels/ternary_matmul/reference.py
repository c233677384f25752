"""Ternary matmul in plain jax.numpy, for every backend."""

import jax
import jax.numpy as jnp

from tclip.quant.groups import expand
from tclip.quant.packing import CODES_PER_WORD, code_at
from tclip.quant.tensor import TernaryTensor


def ternary_matmul(x: jax.Array, w: TernaryTensor) -> jax.Array:
    """`x [..., K] @ w [K, N]`, one code position of the words at a time.

    Position i of the words holds rows i, 16 + i, 32 + i, ...; the product is the sum over i of
    those columns of x times those rows of w, so that only a sixteenth of w is ever expanded.
    """
    words, columns = w.words.shape
    padding = [(0, 0)] * (x.ndim - 1) + [(0, words * CODES_PER_WORD - w.rows)]
    x_by_position = jnp.moveaxis(
        jnp.pad(x, padding).reshape(*x.shape[:-1], words, CODES_PER_WORD), -1, 0
    )
    blocks = w.scale.shape[0] if w.scale.ndim else 1
    scale = expand(w.scale.astype(jnp.float32), (blocks, columns))

    def add_position(total, position_and_x):
        position, x_part = position_and_x
        w_part = code_at(w.words, position)
        if blocks > 1:
            # Several scales along the sum: they go into the weights, and those into float32.
            row = position + CODES_PER_WORD * jnp.arange(words)
            w_part = w_part * jnp.take(scale, row // (w.rows // blocks), axis=0, mode="clip")
            x_part = x_part.astype(jnp.float32)
        product = jnp.matmul(
            x_part, w_part.astype(x_part.dtype), preferred_element_type=jnp.float32
        )
        return total + product, None

    zero = jnp.zeros((*x.shape[:-1], columns), jnp.float32)
    positions = jnp.arange(CODES_PER_WORD, dtype=jnp.int32)
    total, _ = jax.lax.scan(add_position, zero, (positions, x_by_position))
    return (total if blocks > 1 else total * jnp.squeeze(scale)).astype(x.dtype)
