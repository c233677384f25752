"""What the implementations share: one form of scales, and a weight expanded in parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tclip.kernels.target import target_device
from tclip.quant.groups import expand

# Of the columns, one part in so many is expanded at a time. Not on a GPU: it would stand idle for
# the most part over products of a sixteenth of a layer, so there a whole weight is expanded.
PARTS = 16


def scan_columns(
    function: Callable[..., tuple[jax.Array | None, jax.Array]],
    carry: jax.Array | None,
    *arrays: jax.Array,
) -> tuple[jax.Array | None, jax.Array]:
    """Applies `function` to parts of the columns of arrays [..., N], one after the other.

    Args:
      function: takes the carry and a part [..., width] of each array; returns the next carry and an
        array [..., width]. The last part ends with columns of zeros.
      carry: the first carry.

    Returns:
      The last carry, and the results together, [..., N].
    """
    columns = arrays[0].shape[-1]
    parts = 1 if target_device().platform == "gpu" else PARTS
    width = -(-columns // parts)

    def split(array: jax.Array) -> jax.Array:
        """[..., N] -> [parts, ..., width]."""
        array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, parts * width - columns)])
        return jnp.moveaxis(array.reshape(*array.shape[:-1], parts, width), -2, 0)

    def step(carry, part):
        return function(carry, *part)

    carry, results = jax.lax.scan(step, carry, tuple(map(split, arrays)))
    joined = jnp.moveaxis(results, 0, -2)
    return carry, joined.reshape(*joined.shape[:-2], parts * width)[..., :columns]


def block_scales(scale: jax.Array, columns: int) -> jax.Array:
    """A scale in any grouping of [K, N] as float32 [1 or K-blocks, N]."""
    groups = scale.shape[0] if scale.ndim else 1
    scale = expand(scale.astype(jnp.float32), (groups, columns))
    return jnp.broadcast_to(scale, (groups, columns))


def float32_is_exact() -> bool:
    """Whether `jax.default_matmul_precision` asks for products of float32 in all their bits."""
    precision = jax.config.jax_default_matmul_precision
    return precision not in (None, "default", "fastest", "bfloat16")
