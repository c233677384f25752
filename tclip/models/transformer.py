"""The pre-norm transformer that both towers share."""

import jax
from flax import linen as nn

from tclip.models.architectures import CLIPConfig, TextConfig, VisionConfig
from tclip.models.layers import Linear

TowerConfig = VisionConfig | TextConfig


# Initialisation is that of Radford et al. 2021 (arXiv 2103.00020, and the code published with it)
# for the text tower, used for both towers: deviations of width^-1/2 into attention, (2 width)^-1/2
# into the feed-forward, and (2 layers width)^-1/2 for the two that write to the residual stream.
def _normal(stddev: float):
    return nn.initializers.normal(stddev)


def _residual_init(tower: TowerConfig):
    return _normal((2 * tower.layers * tower.width) ** -0.5)


def layer_norm(config: CLIPConfig, name: str) -> nn.LayerNorm:
    """Layer normalisation with statistics in float32, by two passes since one loses digits."""
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps, dtype=config.dtype, use_fast_variance=False, name=name
    )


class Attention(nn.Module):
    """Multi-head attention of x [B, T, W] to itself, or to `context` [B, S, W] if it is given.

    `causal` hides the tokens that come later.
    """

    config: CLIPConfig
    tower: TowerConfig
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        width, heads, dtype = self.tower.width, self.tower.heads, self.config.dtype
        init, out_init = _normal(width**-0.5), _residual_init(self.tower)
        context = x if context is None else context
        q_BxTxHxD, k_BxSxHxD, v_BxSxHxD = (
            Linear(width, dtype, init, name=name)(y).reshape(*y.shape[:2], heads, width // heads)
            for name, y in (("q_proj", x), ("k_proj", context), ("v_proj", context))
        )
        # Scores and softmax are float32 inside, whatever the inputs.
        y = jax.nn.dot_product_attention(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, is_causal=self.causal)
        return Linear(width, dtype, out_init, name="out_proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    config: CLIPConfig
    tower: TowerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, mlp_dim, dtype = self.tower.width, self.tower.mlp_dim, self.config.dtype
        fc1_init, activation = _normal((2 * width) ** -0.5), self.config.activation
        x = Linear(mlp_dim, dtype, fc1_init, activation=activation, name="fc1")(x)
        return Linear(width, dtype, _residual_init(self.tower), name="fc2")(x)


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward; x is [B, T, W]."""

    config: CLIPConfig
    tower: TowerConfig
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = layer_norm(self.config, "ln_1")(x)
        x += Attention(self.config, self.tower, self.causal, name="attn")(y)
        y = layer_norm(self.config, "ln_2")(x)
        return x + Mlp(self.config, self.tower, name="mlp")(y)


def run_blocks(
    config: CLIPConfig,
    tower: TowerConfig,
    x_BxTxW: jax.Array,
    causal: bool,
    hidden_layers: tuple[int, ...],
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Applies the tower's blocks; to be called in the compact method of the module that owns them.

    Their parameters are `blocks_0`, `blocks_1`, ... of that module, or `blocks` with a leading
    layer axis where the config scans over layers.

    Returns:
      The output of the last block, and those of the blocks named in `hidden_layers` (0-based, in
      the order asked for), all [B, T, W].

    Raises:
      ValueError: a hidden layer that the tower does not have.
    """
    for layer in hidden_layers:
        if not 0 <= layer < tower.layers:
            raise ValueError(f"hidden layer {layer}: the tower's layers are 0..{tower.layers - 1}")
    block = Block
    if config.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        # A scan keeps the recomputation apart by itself; elsewhere XLA would merge it.
        block = nn.remat(
            Block,
            policy=policy if config.remat == "dots" else None,
            prevent_cse=not config.scan_layers,
        )

    if config.scan_layers:

        def body(module: nn.Module, x: jax.Array, _: None):
            x = module(x)
            return x, (x if hidden_layers else None)

        scan = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=tower.layers
        )
        x_BxTxW, outputs = scan(block(config, tower, causal, name="blocks"), x_BxTxW, None)
        hidden = () if outputs is None else tuple(outputs[layer] for layer in hidden_layers)
        return x_BxTxW, hidden

    outputs = []
    for i in range(tower.layers):
        x_BxTxW = block(config, tower, causal, name=f"blocks_{i}")(x_BxTxW)
        outputs.append(x_BxTxW)
    return x_BxTxW, tuple(outputs[layer] for layer in hidden_layers)
