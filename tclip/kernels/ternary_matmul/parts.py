"""A packed matrix a part of its columns at a time, so that it is never expanded whole."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tclip.quant.groups import expand

# Of the columns, one part in so many is expanded at a time.
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
    width = -(-columns // PARTS)

    def split(array: jax.Array) -> jax.Array:
        """[..., N] -> [PARTS, ..., width]."""
        array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, PARTS * width - columns)])
        return jnp.moveaxis(array.reshape(*array.shape[:-1], PARTS, width), -2, 0)

    def step(carry, part):
        return function(carry, *part)

    carry, results = jax.lax.scan(step, carry, tuple(map(split, arrays)))
    joined = jnp.moveaxis(results, 0, -2)
    return carry, joined.reshape(*joined.shape[:-2], PARTS * width)[..., :columns]


def block_scales(scale: jax.Array, columns: int) -> jax.Array:
    """A scale in any grouping of [K, N] as float32 [1 or K-blocks, N]."""
    groups = scale.shape[0] if scale.ndim else 1
    scale = expand(scale.astype(jnp.float32), (groups, columns))
    return jnp.broadcast_to(scale, (groups, columns))
