"""Activation functions that layers apply and kernels fuse."""

import jax

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")


def activate(x: jax.Array, activation: str) -> jax.Array:
    """gelu, x * Phi(x), exact or by its tanh formula, or quick_gelu, x * sigmoid(1.702 x), all of
    arXiv 1606.08415."""
    if activation == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")
