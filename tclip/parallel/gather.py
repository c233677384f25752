"""Weights that fsdp spreads over the devices, gathered where a layer multiplies by them.

Ternary weights travel as packed codes, two bits an entry, once a step; floats in the dtype that is
computed in, once in the forward and once in the backward pass. Gradients are summed into shards.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tclip.kernels.linear import linear, take_rows, with_bias
from tclip.parallel.sharding import FSDP, divisible, param_spec, path_name
from tclip.quant import Int8Activations, TernaryTensor
from tclip.quant.tensor import pack_ternary


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FloatCopy:
    """A float weight that is gathered whenever it is read."""

    value: jax.Array
    gathered: NamedSharding = field(metadata={"static": True})

    def dequantize(self, dtype: jnp.dtype) -> jax.Array:
        """The weight in dtype, on every device."""
        return jax.lax.with_sharding_constraint(self.value.astype(dtype), self.gathered)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GatheredWeight:
    """A weight [..., K, N] that is read from `copy` and whose gradient goes to `value`.

    Attributes:
      value: float [..., K, N], spread over the devices.
      copy: the same numbers for every device to read.
      sharding: of the last two axes of value; static under jit.
    """

    value: jax.Array
    copy: TernaryTensor | FloatCopy
    sharding: NamedSharding = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, [..., K, N]."""
        return self.value.shape

    def dense(self, dtype: jnp.dtype) -> jax.Array:
        """The weight [K, N] in dtype."""
        return _dense(dtype, self.sharding, self.value, self.copy)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [..., K] @ weight [K, N] in x.dtype; the backward pass reads the copy again."""
        return _matmul(self.sharding, x, self.value, self.copy)


@linear.register
def _(
    weight: GatheredWeight,
    x: jax.Array,
    bias: jax.Array | None = None,
    activation: str | None = None,
) -> jax.Array:
    return with_bias(weight.matmul(x), bias, activation)


@take_rows.register
def _(table: GatheredWeight, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return take_rows(table.dense(dtype), ids, dtype)


def gather_weights(
    params: Any, mesh: Mesh, ternary: Collection[str] = (), group: str = "channel"
) -> Any:
    """Makes `GatheredWeight`s of all leaves that are spread over fsdp; without fsdp of none.

    Ternary weights are packed where they lie, and their words gathered here.

    Args:
      params: a parameter tree of CLIP; what is ternary in it as `ternarize_params` returns it.
      ternary: paths of the ternary leaves.
      group: of their scales.
    """
    if mesh.shape[FSDP] == 1:
        return params

    def visit(keys: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(keys)
        if isinstance(leaf, Int8Activations):
            # In training every weight is an array.
            return Int8Activations(_gather(cast(jax.Array, leaf.weight), name))
        return _gather(leaf, name)

    def _gather(w: jax.Array, name: str) -> Any:
        spec = param_spec(name, w.shape, mesh)
        if _without_fsdp(spec) == spec:
            return w
        sharding = NamedSharding(mesh, PartitionSpec(*spec[-2:]))
        if name not in ternary:
            gathered = NamedSharding(mesh, _without_fsdp(sharding.spec))
            return GatheredWeight(w, FloatCopy(w, gathered), sharding)
        packed = pack_ternary(w, group)
        words, scale = (_replicate(x, spec, mesh) for x in (packed.words, packed.scale))
        return GatheredWeight(w, TernaryTensor(words, scale, packed.rows), sharding)

    return jax.tree_util.tree_map_with_path(
        visit, params, is_leaf=lambda leaf: isinstance(leaf, Int8Activations)
    )


def with_values(gathered: Any, params: Any) -> Any:
    """The weights of `gather_weights(params)` for gradients with respect to `params`.

    They read the copies in `gathered`, which has to be made of the same numbers.
    """

    def leaf(weight: Any, value: jax.Array) -> Any:
        return replace(weight, value=value) if isinstance(weight, GatheredWeight) else value

    return jax.tree.map(
        leaf, gathered, params, is_leaf=lambda weight: isinstance(weight, GatheredWeight)
    )


def _replicate(x: jax.Array, weight_spec: PartitionSpec, mesh: Mesh) -> jax.Array:
    """Gathers x, made where the weight lies, along fsdp."""
    spec = divisible(weight_spec, x.shape, mesh)
    # Without the first the partitioner may gather what x is made of.
    x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _without_fsdp(spec)))


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    def rest(axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(axes, tuple):
            axes = tuple(axis for axis in axes if axis != FSDP)
            return axes[0] if len(axes) == 1 else axes or None
        return None if axes == FSDP else axes

    return PartitionSpec(*map(rest, spec))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense(dtype, sharding, value, copy):
    return copy.dequantize(dtype)


def _dense_forward(dtype, sharding, value, copy):
    return copy.dequantize(dtype), (copy, value)


def _dense_backward(dtype, sharding, residuals, g):
    copy, value = residuals
    return _cotangents(sharding, copy, value, g)


_dense.defvjp(_dense_forward, _dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(sharding, x, value, copy):
    return x @ copy.dequantize(x.dtype)


def _matmul_forward(sharding, x, value, copy):
    return _matmul(sharding, x, value, copy), (x, copy, value)


def _matmul_backward(sharding, residuals, g):
    x, copy, value = residuals
    dx = g @ copy.dequantize(x.dtype).T
    dw = jnp.einsum("...k,...n->kn", x, g)
    return dx, *_cotangents(sharding, copy, value, dw)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _cotangents(sharding, copy, value, dw):
    """Of value, summed over the devices into its shards; and of its copy, none."""
    # Before the conversion: what travels is as small as dw.
    dvalue = jax.lax.with_sharding_constraint(dw, sharding).astype(value.dtype)

    def zeros(x: jax.Array) -> jax.Array | np.ndarray:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        return np.zeros(x.shape, jax.dtypes.float0)

    return dvalue, jax.tree.map(zeros, copy)
