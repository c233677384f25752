"""The text tower: a transformer pooled at the end-of-text token (CLIP) or the last one (SigLIP)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tclip.models.architectures import CLIPConfig
from tclip.models.layers import Embedding, Linear
from tclip.models.transformer import layer_norm, run_blocks


class TextTower(nn.Module):
    """Tokens [B, L] -> embedding [B, embed_dim], and the hidden layers asked for.

    L is at most the context length. What follows the first end-of-text token is invisible to it
    under a causal mask, so any padding will do; pooled at the last token, a text has to be padded
    as in training.
    """

    config: CLIPConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, hidden_layers: tuple[int, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        config, tower = self.config, self.config.text
        context, width, dtype = tower.context_length, tower.width, config.dtype
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens: expected integers [batch, length], got {tokens.dtype} {tokens.shape}"
            )
        if tokens.shape[1] > context:
            raise ValueError(
                f"tokens: {tokens.shape[1]} a text are more than the context length {context}"
            )

        # Deviations of the embeddings as in CLIP's published code (see transformer.py).
        normal = nn.initializers.normal
        x = Embedding(tower.vocab_size, width, dtype, normal(0.02), name="token_embedding")(tokens)
        positions = self.param("position_embedding", normal(0.01), (context, width), jnp.float32)
        x += positions[: tokens.shape[1]].astype(dtype)
        x, hidden = run_blocks(config, tower, x, tower.causal, hidden_layers)
        if tower.pooling == "eot":
            eot_B = jnp.argmax(tokens == tower.eot_token_id, axis=-1)
            x = jnp.take_along_axis(x, eot_B[:, None, None], axis=1)[:, 0]
        else:
            x = x[:, -1]
        x = layer_norm(config, "ln_final")(x)
        project = Linear(
            config.embed_dim,
            dtype,
            normal(width**-0.5),
            use_bias=tower.projection_bias,
            name="projection",
        )
        return project(x), hidden
