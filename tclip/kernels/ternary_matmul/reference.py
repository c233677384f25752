"""Ternary matmul in plain jax.numpy, for every backend."""

import jax
import jax.numpy as jnp

from tclip.quant.groups import expand
from tclip.quant.packing import unpack
from tclip.quant.tensor import TernaryTensor

# Of the columns of w, one part in so many is expanded to floats at a time.
PARTS = 16


def ternary_matmul(x: jax.Array, w: TernaryTensor) -> jax.Array:
    """`x [..., K] @ w [K, N]`, a part of the columns after the other."""
    columns = w.words.shape[-1]
    width = -(-columns // PARTS)

    def parts(values: jax.Array) -> jax.Array:
        """[rows, N] -> [PARTS, rows, width], the last columns padded with zeros."""
        values = jnp.pad(values, [(0, 0), (0, PARTS * width - columns)])
        return jnp.moveaxis(values.reshape(-1, PARTS, width), 1, 0)

    def multiply(words: jax.Array, scale: jax.Array) -> jax.Array:
        codes = unpack(words, w.rows)
        if scale.shape[0] == 1:
            product = jnp.matmul(x, codes.astype(x.dtype), preferred_element_type=jnp.float32)
            return (product * scale[0]).astype(x.dtype)
        # Several scales along the sum have to go into the weights, and those into float32.
        weights = codes * expand(scale, codes.shape)
        return jnp.matmul(x.astype(jnp.float32), weights).astype(x.dtype)

    groups = w.scale.shape[0] if w.scale.ndim else 1
    scale = jnp.broadcast_to(
        expand(w.scale.astype(jnp.float32), (groups, columns)), (groups, columns)
    )
    y_parts = jax.lax.map(lambda part: multiply(*part), (parts(w.words), parts(scale)))
    return jnp.moveaxis(y_parts, 0, -2).reshape(*x.shape[:-1], PARTS * width)[..., :columns]
