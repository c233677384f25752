"""Symmetric 8-bit quantisation of activations."""

import jax
import jax.numpy as jnp

LARGEST = 127
# Rows of smaller magnitudes round to zero; 127 divided by less may not be a float32.
SMALLEST = 1e-30


def row_scales(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s = max|row| / 127 of each row of x [..., K], and 1 / s, both float32 [..., 1]."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32)
    largest = jnp.maximum(largest, SMALLEST)
    return largest * (1 / LARGEST), LARGEST / largest


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row of x [..., K] in 8 bits: int8 x / s, rounded half to even, and s of `row_scales`.

    Of a row with a NaN or an infinity s is such a value, which shows in its products.
    """
    scale, inverse = row_scales(x)
    # The maximum that XLA computes on a CPU can lose a NaN.
    scale = jnp.where(jnp.isnan(x).any(axis=-1, keepdims=True), jnp.nan, scale)
    return jnp.round(x.astype(jnp.float32) * inverse).astype(jnp.int8), scale
