"""Layers that take their weight as its leaf is: an array, or anything that `linear` multiplies."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tclip.kernels.linear import linear, take_rows

Initializer = Callable[..., jax.Array]


def _weight(module: nn.Module, name: str, init: Initializer, shape: tuple[int, int]) -> Any:
    """The leaf `name` of `module`, of the given shape; floating-point arrays are born float32.

    A leaf that is no array is read directly, since `Module.param` takes only leaves that look like
    those of the initialiser.
    """
    if module.has_variable("params", name):
        leaf = module.get_variable("params", name)
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            if leaf.shape != shape:
                path = "/".join((*module.path, name))
                raise ValueError(f"{path}: expected a ternary {shape}, got {leaf.shape}")
            return leaf
    return module.param(name, init, shape, jnp.float32)


class Linear(nn.Module):
    """activation(x @ kernel + bias), in `dtype`, for x [..., K] and a kernel [K, features]."""

    features: int
    dtype: str
    kernel_init: Initializer
    use_bias: bool = True
    activation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _weight(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return linear(kernel, x.astype(self.dtype), bias, self.activation)


class Embedding(nn.Module):
    """Rows of a table [vocab_size, features] by integer id; an id beyond the table gives NaN."""

    vocab_size: int
    features: int
    dtype: str
    embedding_init: Initializer

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        shape = (self.vocab_size, self.features)
        return take_rows(_weight(self, "embedding", self.embedding_init, shape), ids, self.dtype)
