"""The call that models make, whatever the backend."""

import dataclasses
import functools
import math
from types import ModuleType
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from tclip.kernels.activations import ACTIVATIONS, activate
from tclip.kernels.shard_map import vary_together
from tclip.kernels.target import target_device
from tclip.kernels.ternary_matmul import gpu, reference, tpu
from tclip.kernels.ternary_matmul.gradient import transposed_products
from tclip.quant.groups import check_grouping
from tclip.quant.tensor import TernaryTensor

# The first that is available runs, unless x has more rows than it is good for. Each has
#   matmul(x_MxK, words, scale, bias, *, rows, activations, activation) -> [M, N] in x.dtype,
#   unavailable(x_MxK, w, activations, device) -> why it cannot run there, "" if it can.
IMPLEMENTATIONS: dict[str, ModuleType] = {"pallas_tpu": tpu, "pallas_gpu": gpu, "xla": reference}
MOST_ROWS = {"pallas_gpu": gpu.MOST_ROWS}


def ternary_matmul(
    x: jax.Array,
    w: TernaryTensor,
    *,
    activations: str = "native",
    bias: jax.Array | None = None,
    activation: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Returns activation(x @ w + bias) without expanding w to a float matrix.

    Gradients reach x, the scale of w and bias. Those of int8 activations are those of native ones:
    the rounding counts as the identity (straight-through).

    Under `jax.shard_map` every device multiplies what it holds. Outputs are sharded by splitting
    words, bias, and a scale [G, N] along N. Inputs are sharded by splitting x along K, words along
    K/16 and a scale of K-blocks along the blocks, with `rows` the inputs of one device, a multiple
    of 16; the results are summed with `jax.lax.psum`, and bias and activation follow the sum. Int8
    activations are quantised where they lie: each device has a scale of its own for its part of a
    row, which is finer than one for the whole.

    Args:
      x: bfloat16, float32 or float16 [..., K].
      w: packed [K, N].
      activations: "native" multiplies x as it is. "int8" rounds each row of x to 8 bits
        (`quantize_rows`), accumulates in int32 and scales once.
      bias: [N], added in float32.
      activation: None or a name in `ACTIVATIONS`, applied in float32.
      implementation: a name in `IMPLEMENTATIONS`; None takes the first that can run on the device
        that the program is for (`target_device`), and that is meant for as many rows (`MOST_ROWS`).

    Returns:
      [..., N] in x.dtype; products are accumulated in float32 or int32.

    Raises:
      ValueError: shapes that do not fit, x not floating point, an unknown name, or an
        implementation that cannot run.
    """
    _check(x, w, activations, bias, activation)
    x_MxK = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    config = _Config(
        rows=w.rows,
        activations=activations,
        activation=activation,
        implementation=_choose(x_MxK, w, activations, implementation),
    )
    y_MxN = cast(jax.Array, _matmul(config, *vary_together(x_MxK, w.words, w.scale, bias)))
    return y_MxN.reshape(*x.shape[:-1], w.shape[-1])


def _check(
    x: jax.Array,
    w: TernaryTensor,
    activations: str,
    bias: jax.Array | None,
    activation: str | None,
) -> None:
    if x.dtype not in (jnp.bfloat16, jnp.float32, jnp.float16):
        raise ValueError(f"x has to be bfloat16, float32 or float16, not {x.dtype}")
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.rows:
        raise ValueError(f"cannot multiply x {x.shape} by a ternary weight {w.shape}")
    check_grouping("scale", w.scale.shape, w.shape)
    if bias is not None and bias.shape != w.shape[1:]:
        raise ValueError(f"bias of shape {bias.shape} does not fit a ternary weight {w.shape}")
    if activations not in ("native", "int8"):
        raise ValueError(f"unknown activations {activations!r}; use 'native' or 'int8'")
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"unknown activation {activation!r}; use one of {list(ACTIVATIONS)}")


def _choose(x_MxK: jax.Array, w: TernaryTensor, activations: str, name: str | None) -> str:
    """The implementation that was named, or the first that can run."""
    device = target_device()
    if name is None:
        return next(
            name
            for name, module in IMPLEMENTATIONS.items()
            if x_MxK.shape[0] <= MOST_ROWS.get(name, {}).get(activations, math.inf)
            and not module.unavailable(x_MxK, w, activations, device)
        )
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {name!r}; use one of {list(IMPLEMENTATIONS)}")
    if reason := IMPLEMENTATIONS[name].unavailable(x_MxK, w, activations, device):
        raise ValueError(f"implementation {name!r} cannot run: {reason}")
    return name


@dataclasses.dataclass(frozen=True)
class _Config:
    """What is static in a product."""

    rows: int
    activations: str
    activation: str | None
    implementation: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(
    config: _Config,
    x_MxK: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    return IMPLEMENTATIONS[config.implementation].matmul(
        x_MxK,
        words,
        scale,
        bias,
        rows=config.rows,
        activations=config.activations,
        activation=config.activation,
    )


def _forward(config, x_MxK, words, scale, bias):
    return _matmul(config, x_MxK, words, scale, bias), (x_MxK, words, scale, bias)


def _backward(config, residuals, g_MxN):
    x_MxK, words, scale, bias = residuals
    g_MxN = g_MxN.astype(jnp.float32)
    if config.activation is not None:
        linear = dataclasses.replace(config, activation=None)
        z_MxN = cast(jax.Array, _matmul(linear, x_MxK, words, scale, bias)).astype(jnp.float32)
        _, vjp = jax.vjp(lambda z: activate(z, config.activation), z_MxN)
        (g_MxN,) = vjp(g_MxN)
    dx, dscale = transposed_products(x_MxK, g_MxN, TernaryTensor(words, scale, config.rows))
    dbias = None if bias is None else g_MxN.sum(axis=0).astype(bias.dtype)
    return dx, np.zeros(words.shape, jax.dtypes.float0), dscale, dbias


_matmul.defvjp(_forward, _backward)
