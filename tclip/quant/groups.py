"""Groups of weights that share a scale and a threshold.

One rule covers them all: along every axis the size of a group array divides the size of the weight,
and each of its entries serves a contiguous block of the weight. For w [K, N] a tensor has scale
[1, 1], a channel [1, N], and blocks of B inputs [K/B, N]; leading axes (layers under scan) keep
their size, so every layer has groups of its own.
"""

import jax
import jax.numpy as jnp


def block_size(group: str) -> int | None:
    """The B of "block:B", None for "tensor" and "channel"; ValueError for anything else."""
    if group in ("tensor", "channel"):
        return None
    kind, _, size = group.partition(":")
    if kind == "block" and size.isdecimal() and int(size) > 0:
        return int(size)
    raise ValueError(f"unknown group {group!r}; use 'tensor', 'channel' or 'block:<size>'")


def group_shape(shape: tuple[int, ...], group: str) -> tuple[int, ...]:
    """Shape of the scales of a weight of shape [..., K, N].

    Raises:
      ValueError: fewer than two axes, or a block size that does not divide K.
    """
    if len(shape) < 2:
        raise ValueError(
            f"a weight of shape {shape} has no input and output axis; "
            "ternary weights are [..., inputs, outputs]"
        )
    *layers, rows, columns = shape
    size = block_size(group)
    if size is None:
        return (*layers, 1, columns if group == "channel" else 1)
    if rows % size:
        divisor = next(d for d in range(min(rows, size), 0, -1) if rows % d == 0)
        raise ValueError(
            f"blocks of {size} do not divide the input dimension {rows}; "
            f"use a divisor of it, such as 'block:{divisor}'"
        )
    return (*layers, rows // size, columns)


def check_grouping(name: str, group: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """ValueError unless an array of shape `group` can serve a weight of shape `shape`."""
    divides = len(group) == len(shape) and all(
        g > 0 and d % g == 0 for g, d in zip(group, shape, strict=True)
    )
    if group and not divides:
        raise ValueError(
            f"{name} of shape {group} does not group a weight of shape {shape}; "
            "it has to be a scalar, or divide the weight along every axis"
        )


def expand(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats the entries of a group array over the weights that share them: [group] -> [shape].

    Axes of size 1 are left to broadcasting.
    """
    for axis, (size, full) in enumerate(zip(values.shape, shape, strict=False)):
        if 1 < size < full:
            values = jnp.repeat(values, full // size, axis=axis)
    return values


def group_sum(values: jax.Array, group: tuple[int, ...]) -> jax.Array:
    """The transpose of `expand` and broadcasting: sums [shape] over each group -> [group]."""
    if not group:
        return values.sum()
    blocks = [(g, d // g) for g, d in zip(group, values.shape, strict=True)]
    values = values.reshape([n for block in blocks for n in block])
    return values.sum(axis=tuple(range(1, values.ndim, 2)))


def block_scales(scale: jax.Array, columns: int) -> jax.Array:
    """A scale in any grouping of [K, N] as float32 [1 or K-blocks, N]."""
    groups = scale.shape[0] if scale.ndim else 1
    scale = expand(scale.astype(jnp.float32), (groups, columns))
    return jnp.broadcast_to(scale, (groups, columns))
