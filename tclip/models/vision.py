"""The image tower: a vision transformer (arXiv 2010.11929) as CLIP or as SigLIP has it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tclip.models.architectures import CLIPConfig
from tclip.models.layers import Linear
from tclip.models.transformer import Attention, Mlp, layer_norm, run_blocks

# Uniform within +-fan_in^-1/2, as CLIP's patch convolution starts.
_patch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def patchify(images_BxHxWx3: jax.Array, patch_size: int) -> jax.Array:
    """[B, H, W, 3] -> [B, N, p*p*3]: patches row by row, flattened as (row, column, channel).

    Pixels beyond the last whole patch are left out, as a convolution without padding does.
    """
    B, H, W, C = images_BxHxWx3.shape
    p = patch_size
    rows, columns = H // p, W // p
    x = images_BxHxWx3[:, : rows * p, : columns * p].reshape(B, rows, p, columns, p, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, p * p * C)


class AttentionPool(nn.Module):
    """Multi-head attention pooling (arXiv 2106.04560) of x [B, T, W] into [B, W].

    A learned probe attends to the tokens; a feed-forward with a residual connection follows.
    """

    config: CLIPConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, tower = self.config, self.config.vision
        normal = nn.initializers.normal(tower.width**-0.5)
        probe = self.param("probe", normal, (tower.width,), jnp.float32)
        probe_Bx1xW = jnp.broadcast_to(probe.astype(x.dtype), (x.shape[0], 1, tower.width))
        x = Attention(config, tower, causal=False, name="attn")(probe_Bx1xW, x)
        y = layer_norm(config, "ln_mlp")(x)
        return (x + Mlp(config, tower, name="mlp")(y))[:, 0]


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
        has_class = tower.pooling == "cls"
        x = Linear(width, dtype, _patch_init, use_bias=not has_class, name="patch_embed")(patches)
        if has_class:
            cls = self.param("class_embedding", normal, (width,), jnp.float32)
            cls_Bx1xW = jnp.broadcast_to(cls.astype(dtype), (x.shape[0], 1, width))
            x = jnp.concatenate([cls_Bx1xW, x], axis=1)
        positions = self.param("position_embedding", normal, (tower.num_tokens, width), jnp.float32)
        x += positions.astype(dtype)
        if has_class:
            x = layer_norm(config, "ln_pre")(x)
        x, hidden = run_blocks(config, tower, x, False, hidden_layers)
        ln_post = layer_norm(config, "ln_post")
        if has_class:
            project = Linear(config.embed_dim, dtype, normal, use_bias=False, name="projection")
            return project(ln_post(x[:, 0])), hidden
        return AttentionPool(config, name="attn_pool")(ln_post(x)), hidden
