"""Layers that take their weight as its leaf is: an array, or packed ternary codes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from tclip.kernels import ternary_matmul
from tclip.kernels.fake_quant import fake_quantize_rows
from tclip.parallel.gather import GatheredWeight
from tclip.quant import Int8Activations, TernaryTensor
from tclip.quant.packing import CODES_PER_WORD, code_at

Initializer = Callable[..., jax.Array]


def _weight(
    module: nn.Module, name: str, init: Initializer, shape: tuple[int, int]
) -> jax.Array | TernaryTensor | GatheredWeight | Int8Activations:
    """The leaf `name` of `module`, of the given shape; floating-point arrays are born float32.

    A packed leaf is read directly, since `Module.param` takes only leaves that look like those of
    the initialiser.
    """
    if module.has_variable("params", name):
        leaf = module.get_variable("params", name)
        if isinstance(leaf, TernaryTensor | GatheredWeight | Int8Activations):
            if leaf.shape != shape:
                path = "/".join((*module.path, name))
                raise ValueError(f"{path}: expected a ternary {shape}, got {leaf.shape}")
            return leaf
    return module.param(name, init, shape, jnp.float32)


class Linear(nn.Module):
    """y = x @ kernel + bias, in `dtype`, for x of shape [..., K] and a kernel [K, features]."""

    features: int
    dtype: str
    kernel_init: Initializer
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _weight(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        x = x.astype(self.dtype)
        activations = "native"
        if isinstance(kernel, Int8Activations):
            activations, kernel = "int8", kernel.weight
        if isinstance(kernel, TernaryTensor):
            y = ternary_matmul(x, kernel, activations=activations)
        else:
            x = fake_quantize_rows(x) if activations == "int8" else x
            is_gathered = isinstance(kernel, GatheredWeight)
            y = kernel.matmul(x) if is_gathered else x @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(self.dtype)
        return y


class Embedding(nn.Module):
    """Rows of a table [vocab_size, features] by integer id; an id beyond the table gives NaN."""

    vocab_size: int
    features: int
    dtype: str
    embedding_init: Initializer

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        shape = (self.vocab_size, self.features)
        table = _weight(self, "embedding", self.embedding_init, shape)
        if isinstance(table, TernaryTensor):
            return _packed_rows(table, ids).astype(self.dtype)
        if isinstance(table, GatheredWeight):
            table = table.dense(self.dtype)
        return jnp.take(table, ids, axis=0, mode="fill").astype(self.dtype)


def _packed_rows(table: TernaryTensor, ids: jax.Array) -> jax.Array:
    """Rows `ids` of a packed [K, N] table, as [..., N] in the scale's dtype; reads only those."""
    words = jnp.take(table.words, ids // CODES_PER_WORD, axis=0)
    codes = code_at(words, (ids % CODES_PER_WORD)[..., None])
    rows_per_scale = table.rows // table.scale.shape[0]
    scale = jnp.take(table.scale, ids // rows_per_scale, axis=0, mode="fill")
    return codes.astype(scale.dtype) * scale
