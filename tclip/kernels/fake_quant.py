"""Training with the values that 8-bit activations stand for."""

import jax

from tclip.kernels.int8 import quantize_rows


@jax.custom_vjp
def fake_quantize_rows(x: jax.Array) -> jax.Array:
    """The values that `quantize_rows` stands for, in x.dtype; its gradient is the identity."""
    codes, scale = quantize_rows(x)
    return (codes * scale).astype(x.dtype)


def _forward(x):
    return fake_quantize_rows(x), None


def _backward(_, g):
    return (g,)


fake_quantize_rows.defvjp(_forward, _backward)
