"""Ternary weights over a whole parameter tree.

Any pytree of arrays will do (Linen dicts, NNX states): a leaf is known by the names of its keys,
joined by "/". What is trained besides the latent weights is a flat dict, here called quant, from
the path of a ternary leaf to the logarithms of its scale and threshold.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from tclip.quant.estimators import ESTIMATORS, MIN_SCALE
from tclip.quant.groups import group_shape
from tclip.quant.op import ternarize, ternary_codes
from tclip.quant.packing import pack
from tclip.quant.policy import TernaryPolicy
from tclip.quant.tensor import Int8Activations, TernaryTensor

Quant = dict[str, dict[str, jax.Array]]

# Learned values stay within the positive float16, whatever a gradient step does to their logarithm.
_LOG_RANGE = (math.log(MIN_SCALE), math.log(float(jnp.finfo(jnp.float16).max)))


def ternary_paths(params: Any, policy: TernaryPolicy) -> tuple[str, ...]:
    """Paths of the leaves that the policy makes ternary, in the tree's order; () for "none".

    Works on abstract trees (`jax.eval_shape`) too.

    Raises:
      ValueError: a pattern that matches no leaf; a matching leaf that is not a floating-point array
        of two axes or more, whose input dimension the block size does not divide, or that the
        policy's own `check` refuses.
    """
    leaves = _leaves_by_path(params)
    for pattern in policy.patterns:
        if not any(re.fullmatch(pattern, path) for path in leaves):
            raise ValueError(
                f"pattern {pattern!r} of ternary policy {policy.policy!r} matches no parameter; "
                f"use {', '.join(policy.names)}, or regular expressions for whole paths such "
                f"as {', '.join(list(leaves)[:3])}"
            )
    paths = tuple(path for path in leaves if policy.matches(path))
    for path in paths:
        policy.check(path)
        leaf = leaves[path]
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path}: only float weights can be ternary, this is {leaf.dtype}")
        try:
            group_shape(leaf.shape, policy.group)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return paths


def init_quant(params: Any, policy: TernaryPolicy) -> Quant:
    """Estimates from the weights what the policy learns.

    Returns:
      {path: {"log_scale": ..., "log_threshold": ...}} of float32 arrays of the group shape, without
      what is not learned; {} if nothing is.

    Raises:
      ValueError: as `ternary_paths`.
    """
    paths = ternary_paths(params, policy)
    learned = _learned(policy)
    if not learned:
        return {}
    leaves = _leaves_by_path(params)
    quant = {}
    for path in paths:
        scale, threshold = _estimate(leaves[path], policy)
        logs = {"log_scale": _log(scale), "log_threshold": _log(threshold)}
        quant[path] = {name: logs[name] for name in learned}
    return quant


def ternarize_params(params: Any, quant: Quant, policy: TernaryPolicy) -> Any:
    """Replaces the ternary leaves by `ternarize` of them; same tree, shapes and dtypes.

    Differentiable in params and quant. Scales and thresholds that are not
    learned are estimated anew from the weights, and no gradient flows through the estimate.

    Raises:
      ValueError: as `ternary_paths`, or quant does not belong to these params and this policy.
    """

    def leaf(path: str, w: jax.Array) -> jax.Array:
        scale, threshold = _scale_and_threshold(path, w, quant, policy)
        return ternarize(w, scale, threshold, policy.clip)

    return _map_ternary(leaf, params, policy)


def is_kernel(path: str) -> bool:
    """Whether a leaf multiplies activations; a table of embeddings does not."""
    return path.rpartition("/")[2] == "kernel"


def quantize_params(
    params: Any, quant: Quant, policy: TernaryPolicy, dtype: jnp.dtype = jnp.float16
) -> Any:
    """Replaces the ternary leaves by `TernaryTensor`s with the codes of `ternarize_params`.

    Args:
      dtype: of the scales.

    Raises:
      ValueError: as `ternarize_params`; outside of jit also a leaf with weights that are not
        finite, or with scales that overflow or vanish in dtype.
    """

    def leaf(path: str, w: jax.Array) -> TernaryTensor:
        scale, threshold = _scale_and_threshold(path, w, quant, policy)
        packed_scale = scale.astype(dtype)
        if not isinstance(packed_scale, Tracer):
            _check_packable(path, w, threshold, packed_scale)
        return TernaryTensor(pack(ternary_codes(w, threshold)), packed_scale, rows=w.shape[-2])

    return _map_ternary(leaf, params, policy)


def with_int8_activations(params: Any, policy: TernaryPolicy | None = None) -> Any:
    """Marks ternary kernels to be multiplied by int8 activations, for `tclip.kernels.linear`.

    Args:
      params: a tree with packed weights, which are marked; or, with a policy, of arrays.
      policy: marks the kernels that it makes ternary.
    """
    paths = frozenset() if policy is None else frozenset(ternary_paths(params, policy))

    def visit(keys, leaf):
        path = _path(keys)
        is_ternary = isinstance(leaf, TernaryTensor) or path in paths
        return Int8Activations(leaf) if is_ternary and is_kernel(path) else leaf

    return jax.tree_util.tree_map_with_path(
        visit, params, is_leaf=lambda leaf: isinstance(leaf, TernaryTensor)
    )


def _map_ternary(
    function: Callable[[str, jax.Array], Any], params: Any, policy: TernaryPolicy
) -> Any:
    """Replaces every ternary leaf by function(path, leaf)."""
    paths = frozenset(ternary_paths(params, policy))

    def visit(keys, leaf):
        path = _path(keys)
        return function(path, leaf) if path in paths else leaf

    return jax.tree_util.tree_map_with_path(visit, params)


def _path(keys: tuple[Any, ...]) -> str:
    # An NNX variable is a node of its own, whose only child is its value.
    if keys and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _leaves_by_path(params: Any) -> dict[str, Any]:
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _learned(policy: TernaryPolicy) -> list[str]:
    chosen = {"log_scale": policy.learn_scale, "log_threshold": policy.learn_threshold}
    return [name for name, learned in chosen.items() if learned]


@partial(jax.jit, static_argnums=1)
def _estimate(w: jax.Array, policy: TernaryPolicy) -> tuple[jax.Array, jax.Array]:
    return ESTIMATORS[policy.estimator](jax.lax.stop_gradient(w), policy.group)


def _log(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.log(values.astype(jnp.float32)), *_LOG_RANGE)


def _exp(logs: jax.Array) -> jax.Array:
    # Clipped before, not after: the gradient of a clipped infinity is NaN.
    return jnp.exp(jnp.clip(logs, *_LOG_RANGE))


def _scale_and_threshold(
    path: str, w: jax.Array, quant: Quant, policy: TernaryPolicy
) -> tuple[jax.Array, jax.Array]:
    """The scale (positive) and the threshold (not negative), learned or estimated."""
    entry = quant.get(path, {})
    if sorted(entry) != _learned(policy):
        raise ValueError(
            f"{path}: the policy learns {_learned(policy)}, quant has {sorted(entry)}; "
            "make it with init_quant from these params and this policy"
        )
    if policy.learn_scale and policy.learn_threshold:
        return _exp(entry["log_scale"]), _exp(entry["log_threshold"])
    scale, threshold = _estimate(w, policy)
    if policy.learn_scale:
        scale = _exp(entry["log_scale"])
    if policy.learn_threshold:
        threshold = _exp(entry["log_threshold"])
    return scale, threshold


def _check_packable(path: str, w: jax.Array, threshold: jax.Array, scale: jax.Array) -> None:
    if not (jnp.isfinite(w).all() and jnp.isfinite(threshold).all()):
        raise ValueError(f"{path}: weights that are not finite cannot be packed")
    if not (jnp.isfinite(scale) & (scale > 0)).all():
        raise ValueError(
            f"{path}: a scale overflows or vanishes in {scale.dtype}; pack it as float32"
        )
