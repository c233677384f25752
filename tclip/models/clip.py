"""The two towers together, and the scale and bias of their logits."""

import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tclip.models.architectures import CLIPConfig
from tclip.models.text import TextTower
from tclip.models.vision import VisionTower

MAX_LOGIT_SCALE = 100.0


class CLIP(nn.Module):
    """CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343), as the config says.

    The leaves of its parameters may be arrays or `TernaryTensor`s.
    """

    config: CLIPConfig

    def setup(self):
        self.vision = VisionTower(self.config)
        self.text = TextTower(self.config)
        self.log_scale = self.param(
            "logit_scale", nn.initializers.constant(math.log(1 / 0.07)), (), jnp.float32
        )
        if self.config.logit_bias:
            # The start of SigLIP (arXiv 2303.15343): nearly all pairs are negatives.
            self.bias = self.param("logit_bias", nn.initializers.constant(-10.0), (), jnp.float32)

    def encode_image(
        self, images: jax.Array, hidden_layers: tuple[int, ...] = ()
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]:
        """Embeds normalised images [B, S, S, 3], floats.

        Returns:
          Embeddings [B, embed_dim] in the compute dtype, not of unit norm; with `hidden_layers`
          also a tuple of the outputs [B, T, W] of these blocks (0-based).

        Raises:
          ValueError: images of another size or an integer dtype; a layer that does not exist.
        """
        embedding, hidden = self.vision(images, hidden_layers)
        return (embedding, hidden) if hidden_layers else embedding

    def encode_text(
        self, tokens: jax.Array, hidden_layers: tuple[int, ...] = ()
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]:
        """Embeds texts, integers [B, L] with L at most the context length.

        Pooled at the first end-of-text token, which every text has to have, or at the last token.

        Returns:
          As `encode_image`.

        Raises:
          ValueError: tokens that are not integers, or too many; a layer that does not exist.
        """
        embedding, hidden = self.text(tokens, hidden_layers)
        return (embedding, hidden) if hidden_layers else embedding

    def __call__(self, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both embeddings, [B, embed_dim] each."""
        return self.vision(images, ())[0], self.text(tokens, ())[0]


def init_params(config: CLIPConfig, key: jax.Array) -> dict:
    """Returns fresh float32 parameters; pure, to be jitted or shape-evaluated at will."""
    size = config.vision.image_size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    tokens = jnp.zeros((1, config.text.context_length), jnp.int32)
    return cast(dict, CLIP(config).init(key, images, tokens)["params"])


def logit_scale(params: dict) -> jax.Array:
    """The float32 factor of the cosines: exp of the parameter."""
    return jnp.exp(params["logit_scale"].astype(jnp.float32))


def bound_logit_scale(params: dict) -> dict:
    """Returns the parameters with the factor of the cosines at most `MAX_LOGIT_SCALE`, as CLIP is
    trained.

    SigLIP, a model with a bias of the logits, has no bound: published ones reach 117.
    """
    if "logit_bias" in params:
        return params
    bound = math.log(MAX_LOGIT_SCALE)
    return params | {"logit_scale": jnp.minimum(params["logit_scale"], bound)}


def logit_bias(params: dict) -> jax.Array:
    """The float32 bias of the logits; zero for a model that has none."""
    return jnp.asarray(params.get("logit_bias", 0.0), jnp.float32)
