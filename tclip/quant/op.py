"""The ternary weight `scale * T(w, threshold)` and its straight-through gradient."""

from functools import partial

import jax
import jax.numpy as jnp

from tclip.quant.groups import check_grouping, expand, group_sum


def ternarize(
    w: jax.Array, scale: jax.Array | float, threshold: jax.Array | float, clip: float = 1.0
) -> jax.Array:
    """Returns `scale * T(w)`, T = +1 where w > threshold, -1 where w < -threshold, 0 within.

    Gradients, with g the cotangent of the result (straight-through estimator, arXiv 2510.21879):

      dw         = g * 1[|w| < clip]
      dscale     = sum over the group of g * T
      dthreshold = -sum over the group of g * sign(w) * 1[| |w| - threshold | < scale / 2]

    The last is a surrogate: T is flat almost everywhere in the threshold, so each of its steps, of
    height scale, is replaced by a ramp of slope 1 and width scale centred on the threshold.

    Args:
      w: float weights of any shape.
      scale: positive; a scalar, or an array of w's rank whose size divides w's along every axis. An
        entry serves a contiguous block: for w [K, N] a tensor (1, 1), a channel (1, N), blocks of
        B inputs (K/B, N). For w [L, K, N] the leading axis groups by layer.
      threshold: non-negative, grouped by the same rule (not necessarily as scale is).
      clip: the M of the gradient, a Python number.

    Returns:
      An array of w's shape and dtype. Comparisons and sums are done in float32 (float64 for float64
      weights) whatever w's dtype. NaN in w, or in the scale or threshold of a weight, gives NaN.

    Raises:
      ValueError: w is not floating point, or scale or threshold do not group it.
    """
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"ternarize needs floating-point weights, got {w.dtype}")
    dtype = _compute_dtype(w)
    scale, threshold = jnp.asarray(scale, dtype), jnp.asarray(threshold, dtype)
    check_grouping("scale", scale.shape, w.shape)
    check_grouping("threshold", threshold.shape, w.shape)
    return _ternarize(w, scale, threshold, clip)


def ternary_codes(w: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """T(w, threshold) of `ternarize` as int8 in {-1, 0, 1}; NaN, which has no code, becomes 0."""
    w = jnp.asarray(w)
    threshold = jnp.asarray(threshold, _compute_dtype(w))
    check_grouping("threshold", threshold.shape, w.shape)
    codes = _signs(w.astype(threshold.dtype), expand(threshold, w.shape))
    return jnp.where(jnp.isnan(codes), 0, codes).astype(jnp.int8)


def _compute_dtype(w: jax.Array) -> jnp.dtype:
    return jnp.promote_types(w.dtype, jnp.float32)


def _signs(w: jax.Array, threshold: jax.Array) -> jax.Array:
    # "not above" rather than "within" the threshold: a NaN weight then keeps its NaN sign.
    return jnp.where(jnp.abs(w) <= threshold, 0, jnp.sign(w))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ternarize(w: jax.Array, scale: jax.Array, threshold: jax.Array, clip: float) -> jax.Array:
    scale_w, threshold_w = expand(scale, w.shape), expand(threshold, w.shape)
    ternary = _signs(w.astype(scale.dtype), threshold_w) * scale_w
    return jnp.where(jnp.isnan(threshold_w), jnp.nan, ternary).astype(w.dtype)


def _forward(w, scale, threshold, clip):
    return _ternarize(w, scale, threshold, clip), (w, scale, threshold)


def _backward(clip, residuals, g):
    w, scale, threshold = residuals
    dw = jnp.where(jnp.abs(w) >= clip, 0, g).astype(w.dtype)

    # Everything below is elementwise in (w, g), so that it fuses into one pass over them.
    w, g = w.astype(scale.dtype), g.astype(scale.dtype)
    scale_w, threshold_w = expand(scale, w.shape), expand(threshold, w.shape)
    on_ramp = jnp.abs(jnp.abs(w) - threshold_w) < scale_w / 2
    dscale = group_sum(g * _signs(w, threshold_w), scale.shape)
    dthreshold = group_sum(jnp.where(on_ramp, -g * jnp.sign(w), 0), threshold.shape)
    return dw, dscale, dthreshold


_ternarize.defvjp(_forward, _backward)
