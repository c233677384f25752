"""What the losses are computed from."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model says about a batch of B pairs; any floating dtype.

    Attributes:
      image, text: embeddings [B, D], not normalised.
      logit_scale: scalar factor of the cosines (not its logarithm).
      logit_bias: scalar added to the logits.
      image_hidden, text_hidden: outputs [B, T, W] of the layers in `LossConfig.hidden_pairs`.
    """

    image: jax.Array
    text: jax.Array
    logit_scale: jax.Array | float
    logit_bias: jax.Array | float = 0.0
    image_hidden: tuple[jax.Array, ...] = ()
    text_hidden: tuple[jax.Array, ...] = ()


def unit(x: jax.Array) -> jax.Array:
    """Rows of unit norm, in float32; a zero row stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
