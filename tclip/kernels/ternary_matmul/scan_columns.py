"""A weight expanded a part of its columns at a time."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from tclip.kernels.target import target_device

# Of the columns, one part in so many is expanded at a time. Not on a GPU: it would stand idle for
# the most part over products of a sixteenth of a layer, so there a whole weight is expanded.
PARTS = 16

Carry = TypeVar("Carry", bound=jax.Array | None)


def scan_columns(
    function: Callable[..., tuple[Carry, jax.Array]], carry: Carry, *arrays: jax.Array
) -> tuple[Carry, jax.Array]:
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
