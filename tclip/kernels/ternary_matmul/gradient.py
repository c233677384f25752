"""The products with which gradients go back through a ternary matmul."""

from typing import cast

import jax
import jax.numpy as jnp

from tclip.kernels.shard_map import vary_together
from tclip.kernels.ternary_matmul.scan_columns import scan_columns
from tclip.quant.groups import block_scales, expand, group_sum
from tclip.quant.packing import unpack
from tclip.quant.tensor import TernaryTensor


def transposed_products(
    x_MxK: jax.Array, g_MxN: jax.Array, w: TernaryTensor
) -> tuple[jax.Array, jax.Array]:
    """The cotangents of x and of the scale of w, from that of x @ w.

    Args:
      x_MxK: the input.
      g_MxN: the cotangent of the product, float32.
      w: packed [K, N]; a part of its columns is expanded at a time.

    Returns:
      g @ w^T [M, K], in x.dtype; and x^T g * codes summed over each group of the scale, in its
      dtype and shape.
    """
    x = x_MxK.astype(jnp.float32)
    scale = block_scales(w.scale, w.shape[-1])

    def part(dx, g, words, scale):
        codes = unpack(words, w.rows)
        dx += jnp.matmul(g, (codes * expand(scale, codes.shape)).T)
        return dx, group_sum(jnp.matmul(x.T, g) * codes, scale.shape)

    zeros = cast(jax.Array, vary_together(jnp.zeros_like(x), x)[0])
    dx, dscale = scan_columns(part, zeros, g_MxN, w.words, scale)
    return dx.astype(x_MxK.dtype), group_sum(dscale, w.scale.shape).astype(w.scale.dtype)
