"""How a layer multiplies by its weight, whatever kind of leaf that is.

`linear` and `take_rows` are the protocol of a weight: a room that brings another kind of leaf
registers how it does both. Layers know no kind.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from tclip.kernels.activations import activate
from tclip.kernels.fake_quant import fake_quantize_rows
from tclip.kernels.ternary_matmul import ternary_matmul
from tclip.quant.packing import CODES_PER_WORD, code_at
from tclip.quant.tensor import Int8Activations, TernaryTensor


@functools.singledispatch
def linear(
    weight: Any, x: jax.Array, bias: jax.Array | None = None, activation: str | None = None
) -> jax.Array:
    """Returns activation(x @ weight + bias), [..., N] in x.dtype.

    Args:
      weight: [K, N], an array or a registered kind of leaf.
      x: [..., K], floating point.
      bias: [N], or None.
      activation: None or a name in `tclip.kernels.activations.ACTIVATIONS`.
    """
    return with_bias(x @ weight.astype(x.dtype), bias, activation)


@linear.register
def _(
    weight: TernaryTensor,
    x: jax.Array,
    bias: jax.Array | None = None,
    activation: str | None = None,
) -> jax.Array:
    return ternary_matmul(x, weight, bias=bias, activation=activation)


@linear.register
def _(
    weight: Int8Activations,
    x: jax.Array,
    bias: jax.Array | None = None,
    activation: str | None = None,
) -> jax.Array:
    inner = weight.weight
    if isinstance(inner, TernaryTensor):
        return ternary_matmul(x, inner, activations="int8", bias=bias, activation=activation)
    return linear(inner, fake_quantize_rows(x), bias, activation)


@functools.singledispatch
def take_rows(table: Any, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns rows of a table [K, N] by integer ids [...], as [..., N] in dtype.

    An id beyond the table gives NaN.
    """
    return jnp.take(table, ids, axis=0, mode="fill").astype(dtype)


@take_rows.register
def _(table: TernaryTensor, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    # Only the words of these rows are read.
    words = jnp.take(table.words, ids // CODES_PER_WORD, axis=0)
    codes = code_at(words, (ids % CODES_PER_WORD)[..., None])
    rows_per_scale = table.rows // table.scale.shape[0]
    scale = jnp.take(table.scale, ids // rows_per_scale, axis=0, mode="fill")
    return (codes.astype(scale.dtype) * scale).astype(dtype)


def with_bias(y: jax.Array, bias: jax.Array | None, activation: str | None) -> jax.Array:
    """Returns activation(y + bias) in y.dtype."""
    if bias is not None:
        y += bias.astype(y.dtype)
    return y if activation is None else activate(y, activation)
