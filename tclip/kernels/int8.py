"""Symmetric 8-bit quantisation of activations."""

import jax
import jax.numpy as jnp

LARGEST = 127
# Rows whose largest magnitude is smaller count as zero: 127 divided by it is not a float32.
SMALLEST = 1e-36


def quantize_rows(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantises each row of x [..., K] by its own scale s = max|row| / 127.

    Returns:
      int8 [..., K], x / s rounded half to even; and s, float32 [..., 1]: 0 for a row of
      zeros, NaN or infinite for a row with such a value, which then shows in its products.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    factor = jnp.where(largest > SMALLEST, LARGEST / largest, 0)
    return jnp.round(x * factor).astype(jnp.int8), largest / LARGEST
