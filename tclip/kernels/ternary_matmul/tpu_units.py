"""The parts of the TPU kernel that are made for the vector and matrix units of a chip."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tclip.kernels.int8 import row_scales, scales_of
from tclip.kernels.ternary_matmul.blocks import INT8_ROWS, LANES

# Adding it to a float32 of magnitude up to 2^22 leaves the rounded integer in the lowest bits.
ROUND = 1.5 * 2**23
# Rows and columns of a matrix unit of v6e.
UNIT = 256

# What comes to the matrix unit is what it takes, and the compiler refuses to do that any better.
unit_dot = functools.partial(jnp.dot, precision=jax.lax.Precision.DEFAULT)


def has_paired_units() -> bool:
    """Whether `paired_dot` helps on the device that is traced for: v6e, of those with int8."""
    info = pltpu.get_tpu_info()
    return info.int8_ops_per_second > 0 and info.mxu_column_size == UNIT


def paired_dot(q: jax.Array, codes: jax.Array) -> jax.Array:
    """int32 q @ codes, in an order that suits the two matrix units of v6e.

    Products of 256 of K go to one and the other in turn, and the last two of a sum are added as
    they return, without an instruction, if the first unit has the first of them. So of three
    products the one that comes first is shared, by halves of the rows.
    """
    dot = functools.partial(unit_dot, preferred_element_type=jnp.int32)
    rows, k = q.shape
    pair = 2 * UNIT
    if rows < UNIT // 2 or not pair < k <= 3 * UNIT:
        return dot(q, codes)
    halves = q[: rows // 2, pair:], q[rows // 2 :, pair:]
    tiles = []
    for column in range(0, codes.shape[1], UNIT):
        tile = codes[:, column : column + UNIT]
        shared = jnp.concatenate([dot(half, tile[pair:]) for half in halves])
        tiles.append(shared + dot(q[:, :pair], tile[:pair]))
    return jnp.concatenate(tiles, axis=1)


def quantize_block(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """`quantize_rows` in fewer instructions, with the integers in int8 or bfloat16."""
    if not has_paired_units():
        scale = row_scales(x)
        return _round(x, scale, dtype), scale
    # Scales that are put together lie in one lane each, which is what the schedule likes best.
    halves = _halves(x)
    scales = [scales_of(_row_maxima(half)) for half in halves]
    q = [_round(half, scale, dtype) for half, scale in zip(halves, scales, strict=True)]
    return jnp.concatenate(q), jnp.concatenate(scales)


def _round(x: jax.Array, scale: jax.Array, dtype: jnp.dtype) -> jax.Array:
    x = x.astype(jnp.float32) * pl.reciprocal(scale, full_range=False)
    if dtype == jnp.int8:
        return pltpu.bitcast(x + ROUND, jnp.int32).astype(jnp.int8)
    return jnp.round(x).astype(jnp.int8).astype(dtype)


def _row_maxima(x: jax.Array) -> jax.Array:
    """max|row| of x, [rows, 1].

    A register of v6e that is loaded from bfloat16 has 8 rows of 256 columns. They are compared as
    they are, and only what is left is rearranged, as a maximum over columns wants it.
    """
    width = 2 * LANES
    parts = [x[:, first : first + width] for first in range(0, x.shape[1], width)]
    rest = [jnp.abs(parts.pop())] if x.shape[1] % width else []
    whole = [functools.reduce(jnp.maximum, map(jnp.abs, parts))] if parts else []
    maxima = [jnp.max(part, axis=1, keepdims=True) for part in whole + rest]
    return functools.reduce(jnp.maximum, maxima)


def _halves(x: jax.Array) -> list[jax.Array]:
    """The rows of x in two parts, of whole tiles of int8."""
    size = -(-x.shape[0] // (2 * INT8_ROWS)) * INT8_ROWS
    return [x[first : first + size] for first in range(0, x.shape[0], size)]
