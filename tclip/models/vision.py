"""The image tower: a vision transformer (arXiv 2010.11929) as CLIP has it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tclip.models.architectures import CLIPConfig
from tclip.models.layers import Linear
from tclip.models.transformer import layer_norm, run_blocks

# Uniform within +-fan_in^-1/2, as CLIP's patch convolution starts.
_patch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def patchify(images_BxHxWx3: jax.Array, patch_size: int) -> jax.Array:
    """[B, H, W, 3] -> [B, N, p*p*3]: patches row by row, flattened as (row, column, channel)."""
    B, H, W, C = images_BxHxWx3.shape
    p = patch_size
    x = images_BxHxWx3.reshape(B, H // p, p, W // p, p, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // p) * (W // p), p * p * C)


class VisionTower(nn.Module):
    """Images [B, S, S, 3] -> embedding [B, embed_dim], and the hidden layers asked for."""

    config: CLIPConfig

    @nn.compact
    def __call__(
        self, images: jax.Array, hidden_layers: tuple[int, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        config, tower = self.config, self.config.vision
        size, width, dtype = tower.image_size, tower.width, config.dtype
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images: expected [batch, {size}, {size}, 3], got {images.shape}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"images: expected normalised floats, got {images.dtype}")

        normal = nn.initializers.normal(width**-0.5)
        patches = patchify(images, tower.patch_size)
        x = Linear(width, dtype, _patch_init, use_bias=False, name="patch_embed")(patches)
        cls = self.param("class_embedding", normal, (width,), jnp.float32)
        cls_Bx1xW = jnp.broadcast_to(cls.astype(dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([cls_Bx1xW, x], axis=1)
        positions = self.param("position_embedding", normal, (tower.num_tokens, width), jnp.float32)
        x += positions.astype(dtype)
        x = layer_norm(config, "ln_pre")(x)
        x, hidden = run_blocks(config, tower, x, False, hidden_layers)
        x = layer_norm(config, "ln_post")(x[:, 0])
        return Linear(config.embed_dim, dtype, normal, use_bias=False, name="projection")(x), hidden
