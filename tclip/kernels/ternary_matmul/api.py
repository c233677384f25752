"""The call that models make, whatever the backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tclip.kernels.ternary_matmul import reference
from tclip.quant.groups import check_grouping
from tclip.quant.tensor import TernaryTensor

IMPLEMENTATIONS: dict[str, Callable[[jax.Array, TernaryTensor], jax.Array]] = {
    "xla": reference.ternary_matmul,
}


def ternary_matmul(x: jax.Array, w: TernaryTensor, implementation: str | None = None) -> jax.Array:
    """Returns `x @ w` without expanding w to a float matrix.

    Args:
      x: float [..., K].
      w: packed [K, N].
      implementation: a name in `IMPLEMENTATIONS`; None chooses one.

    Returns:
      [..., N] in x.dtype; products are accumulated in float32.

    Raises:
      ValueError: shapes that do not fit, x not floating point, or an unknown implementation.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}; use one of {list(IMPLEMENTATIONS)}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"ternary_matmul needs a floating-point x, got {x.dtype}")
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.rows:
        raise ValueError(f"cannot multiply x {x.shape} by a ternary weight {w.shape}")
    check_grouping("scale", w.scale.shape, w.shape)
    return IMPLEMENTATIONS[implementation or "xla"](x, w)
