"""Estimators of the scale and the threshold of a group from the magnitudes of its weights.

Each maps a weight [..., K, N] and a group name ("tensor", "channel", "block:B") to a pair of arrays
of `group_shape(w.shape, group)`, in float32 (float64 for float64 weights). A group of zeros gets
the scale `MIN_SCALE` and the threshold 0, hence the codes 0. NaN or infinity in a group gives a
scale that is not finite, which shows in every weight of the group.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tclip.quant.groups import group_shape

# The smallest positive float16: as a scale it is as good as zero, yet packs without vanishing.
MIN_SCALE = 2.0**-24

Estimator = Callable[[jax.Array, str], tuple[jax.Array, jax.Array]]


def twn(w: jax.Array, group: str) -> tuple[jax.Array, jax.Array]:
    """Threshold 0.7 mean|w|, scale the mean of |w| above it (TWN, arXiv 1605.04711)."""
    magnitudes = _grouped_magnitudes(w, group)
    threshold = _twn_threshold(magnitudes)
    return _mean_above(magnitudes, threshold), threshold


def optimal(w: jax.Array, group: str) -> tuple[jax.Array, jax.Array]:
    """The pair that minimises sum (w - scale * T(w, threshold))^2, exactly, by sorting.

    With the k largest magnitudes in the support and S_k their sum, the best scale is S_k / k and
    the error sum w^2 - S_k^2 / k, so the best k maximises S_k / sqrt(k).
    """
    magnitudes = _grouped_magnitudes(w, group)
    descending = jnp.flip(_sort(magnitudes), axis=-2)
    following = jnp.concatenate(
        [descending[..., 1:, :], jnp.zeros_like(descending[..., :1, :])], axis=-2
    )
    counts = jnp.arange(1, descending.shape[-2] + 1, dtype=descending.dtype)[:, None]
    gain = jnp.cumsum(descending, axis=-2) / jnp.sqrt(counts)
    # No threshold separates equal magnitudes. The optimum never asks for it; rounded sums might.
    gain = jnp.where(descending <= following, -jnp.inf, gain)
    best = jnp.argmax(gain, axis=-2, keepdims=True)
    inside = jnp.take_along_axis(descending, best, axis=-2)
    outside = jnp.take_along_axis(following, best, axis=-2)
    middle = outside + (inside - outside) / 2
    # Between neighbouring floats the middle rounds to one of them; `outside` separates as well.
    threshold = jnp.where(middle < inside, middle, outside).squeeze(-2)
    return _mean_above(magnitudes, threshold), threshold


def absmean(w: jax.Array, group: str) -> tuple[jax.Array, jax.Array]:
    """Scale mean|w|, codes round(w / scale): threshold scale / 2 (BitNet, arXiv 2402.17764)."""
    scale = _grouped_magnitudes(w, group).mean(axis=-2)
    return _positive(scale), scale / 2


def l1_over_support(w: jax.Array, group: str) -> tuple[jax.Array, jax.Array]:
    """Threshold 0.7 mean|w|, scale sum|w| / count(|w| > threshold) (arXiv 2510.21879)."""
    magnitudes = _grouped_magnitudes(w, group)
    threshold = _twn_threshold(magnitudes)
    support = (magnitudes > threshold[..., None, :]).sum(axis=-2)
    return _ratio(magnitudes.sum(axis=-2), support), threshold


ESTIMATORS: dict[str, Estimator] = {
    "twn": twn,
    "optimal": optimal,
    "absmean": absmean,
    "l1_over_support": l1_over_support,
}


def _grouped_magnitudes(w: jax.Array, group: str) -> jax.Array:
    """|w| as [..., groups, members, columns], so that reducing axis -2 leaves the group shape."""
    *layers, groups, columns = group_shape(w.shape, group)
    w = jnp.asarray(w, jnp.promote_types(w.dtype, jnp.float32))
    return jnp.abs(w).reshape(*layers, groups, -1, columns)


def _sort(magnitudes: jax.Array) -> jax.Array:
    """Sorts along axis -2, NaN last."""
    # Non-negative floats order as their bits do. XLA's CPU sort is five times faster on integers,
    # and faster still along the last axis.
    integer = jnp.dtype(f"int{8 * magnitudes.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(magnitudes.mT, integer)
    return jax.lax.bitcast_convert_type(jnp.sort(bits), magnitudes.dtype).mT


def _twn_threshold(magnitudes: jax.Array) -> jax.Array:
    return 0.7 * magnitudes.mean(axis=-2)


def _mean_above(magnitudes: jax.Array, threshold: jax.Array) -> jax.Array:
    # "not below" rather than "above": NaN then counts, and shows in the sum.
    outside = magnitudes <= threshold[..., None, :]
    total = jnp.where(outside, 0, magnitudes).sum(axis=-2)
    mean = _ratio(total, (~outside).sum(axis=-2))
    # Nothing is above an infinite threshold, yet its group is anything but zero.
    return jnp.where(jnp.isinf(threshold), jnp.inf, mean)


def _ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    return _positive(total / jnp.maximum(count, 1))


def _positive(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, MIN_SCALE, scale)
