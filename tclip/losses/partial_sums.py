"""Sums that are put together from parts: within a device, and over devices.

A tree of sums has arrays for leaves, and `Scaled` where float32 cannot hold the terms.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Axes = tuple[str, ...]


class Scaled(NamedTuple):
    """The array exp(exponent) * value, as of an online softmax (arXiv 1805.02867)."""

    exponent: jax.Array
    value: jax.Array

    def rescaled(self, exponent: jax.Array) -> jax.Array:
        """The value to another exponent, that of a larger sum."""
        return jnp.exp(self.exponent - exponent) * self.value


def exp_sum(x_RxC: jax.Array, factors_RxC: jax.Array | float = 1.0) -> Scaled:
    """Sums over the columns of exp(x) times factors: [R]."""
    # The sum does not depend on its exponent, so neither does a derivative.
    exponent_R = jax.lax.stop_gradient(jnp.max(x_RxC, axis=-1))
    return Scaled(exponent_R, jnp.sum(jnp.exp(x_RxC - exponent_R[:, None]) * factors_RxC, axis=-1))


def add(a: Any, b: Any) -> Any:
    """Adds two trees of sums."""

    def add_leaves(a, b):
        if not isinstance(a, Scaled):
            return a + b
        exponent = jnp.maximum(a.exponent, b.exponent)
        return Scaled(exponent, a.rescaled(exponent) + b.rescaled(exponent))

    return jax.tree.map(add_leaves, a, b, is_leaf=_is_scaled)


def scatter_sum(tree: Any, axes: Axes) -> Any:
    """Sums a tree [N, ...] over devices, and leaves each with its part of the leading axis."""

    def scatter(x):
        if isinstance(x, Scaled):
            exponent = jax.lax.pmax(x.exponent, axes)
            return Scaled(scatter_part(exponent), scatter(x.rescaled(exponent)))
        return jax.lax.psum_scatter(x, axes, tiled=True)

    def scatter_part(x):
        size = x.shape[0] // jax.lax.axis_size(axes)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size)

    return jax.tree.map(scatter, tree, is_leaf=_is_scaled)


def empty_sums(shapes: Any, axes: Axes) -> Any:
    """Sums of nothing, to begin with: on every device along `axes` its own."""

    def empty(s):
        if isinstance(s, Scaled):
            return Scaled(jnp.full(s.exponent.shape, -jnp.inf), empty(s.value))
        return jnp.zeros(s.shape, s.dtype)

    sums = jax.tree.map(empty, shapes, is_leaf=_is_scaled)
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), sums)


def _is_scaled(x: Any) -> bool:
    return isinstance(x, Scaled)
