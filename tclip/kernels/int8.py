"""Symmetric 8-bit quantisation of activations."""

import jax
import jax.numpy as jnp

LARGEST = 127
# Rows of smaller magnitudes round to zero; the inverse of their scale may not be a float32. Exact
# in bfloat16 too.
SMALLEST = 2.0**-100


def row_scales(x: jax.Array) -> jax.Array:
    """s = max|row| / 127 of each row of x [..., K], float32 [..., 1]."""
    return scales_of(jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32))


def scales_of(largest: jax.Array) -> jax.Array:
    """`row_scales` of rows with these max|row|, float32 or bfloat16."""
    largest = jnp.maximum(largest, SMALLEST)
    return largest.astype(jnp.float32) * (1 / LARGEST)


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row of x [..., K] in 8 bits: int8 x / s, rounded half to even, and s of `row_scales`.

    Of a row with a NaN or an infinity s is such a value, which shows in its products.
    """
    scale = row_scales(x)
    q = jnp.round(x.astype(jnp.float32) * (1 / scale)).astype(jnp.int8)
    # The maximum that XLA computes on a CPU can lose a NaN.
    return q, jnp.where(jnp.isnan(x).any(axis=-1, keepdims=True), jnp.nan, scale)
