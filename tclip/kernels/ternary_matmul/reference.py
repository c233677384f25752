"""Ternary matmul in plain jax.numpy, for every backend.

On a GPU it is what multiplies many rows. As compiled for an H100, one operation expands the weight
to 8 bits, and a product reads those and scales its result. Derived from bytes, operations and
peaks, not measured: that takes up to 1.6 times as long as a dense bfloat16 product at 200 to 300
rows, 1.12 times at 1576, 1.09 times at 2048, and less than 1.05 from 3700 rows on.
"""

import functools

import jax
import jax.numpy as jnp

from tclip.kernels.activations import activate
from tclip.kernels.int8 import quantize_rows
from tclip.kernels.target import target_device
from tclip.kernels.ternary_matmul.scan_columns import scan_columns
from tclip.quant.groups import block_scales, expand
from tclip.quant.packing import unpack
from tclip.quant.tensor import TernaryTensor


def unavailable(
    x_MxK: jax.Array, w: TernaryTensor, activations: str, device: jax.sharding.AbstractDevice
) -> str:
    """Never: "" for anything."""
    del x_MxK, w, activations, device
    return ""


def matmul(
    x_MxK: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    *,
    rows: int,
    activations: str,
    activation: str | None,
) -> jax.Array:
    """`activation(x @ w + bias)`, a part of the columns after the other; see `ternary_matmul`."""
    if target_device().platform == "gpu":
        # Otherwise XLA expands the weights of all layers before it multiplies by the first.
        x_MxK, words = jax.lax.optimization_barrier((x_MxK, words))
    if activations == "int8":
        multiply = functools.partial(_int8_product, *quantize_rows(x_MxK))
    else:
        multiply = functools.partial(_native_product, x_MxK)

    def part(_, words, scale, *bias):
        y = multiply(unpack(words, rows), scale)
        y = y + bias[0].astype(jnp.float32) if bias else y
        y = activate(y, activation) if activation else y
        return None, y.astype(x_MxK.dtype)

    operands = [words, block_scales(scale, words.shape[-1])] + ([] if bias is None else [bias])
    return scan_columns(part, None, *operands)[1]


def _native_product(x_MxK: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """float32 x @ (scale * codes), for a scale [1 or K-blocks, columns]."""
    if scale.shape[0] == 1:
        product = jnp.matmul(x_MxK, codes.astype(x_MxK.dtype), preferred_element_type=jnp.float32)
        return product * scale
    # Several scales along the sum have to go into the weights, and those into float32.
    return jnp.matmul(x_MxK.astype(jnp.float32), codes * expand(scale, codes.shape))


def _int8_product(
    q_MxK: jax.Array, row_scale: jax.Array, codes: jax.Array, scale: jax.Array
) -> jax.Array:
    """float32 (row_scale * q) @ (scale * codes), with a sum in int32 for each K-block."""
    blocks = scale.shape[0]
    q_GxMxB = q_MxK.reshape(q_MxK.shape[0], blocks, -1).swapaxes(0, 1)
    codes_GxBxN = codes.reshape(blocks, -1, codes.shape[-1])
    sums_GxMxN = jnp.matmul(q_GxMxB, codes_GxBxN, preferred_element_type=jnp.int32)
    return (sums_GxMxN.astype(jnp.float32) * scale[:, None]).sum(axis=0) * row_scale
