"""Configurations of a CLIP model and the named architectures."""

import dataclasses
from typing import Annotated

from tclip.config import COUNT, NOT_NEGATIVE, POSITIVE

# What of a config says how a model is computed, and not what.
RUNTIME_KEYS = ("dtype", "scan_layers", "remat")


def _check_transformer(tower: str, config: "VisionConfig | TextConfig") -> None:
    for name in ("width", "layers", "heads", "mlp_dim"):
        if getattr(config, name) < 1:
            raise ValueError(f"{tower}: {name} {getattr(config, name)} is not positive")
    if config.width % config.heads:
        raise ValueError(f"{tower}: width {config.width} is not divisible by heads {config.heads}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower; sizes in pixels, `width` is the model's. The defaults are ViT-B/32.

    Attributes:
      pooling: "cls" is CLIP's tower: a class token, a norm before the blocks, and a projection of
        the class token. "map" is SigLIP's: no such token or norm, a bias of the patch embedding,
        and multi-head attention pooling (arXiv 2106.04560) in place of the projection.
    """

    image_size: Annotated[int, COUNT] = 224
    patch_size: Annotated[int, COUNT] = 32
    width: Annotated[int, COUNT] = 768
    layers: Annotated[int, COUNT] = 12
    heads: Annotated[int, COUNT] = 12
    mlp_dim: Annotated[int, COUNT] = 3072
    pooling: str = "cls"

    def __post_init__(self):
        _check_transformer("vision", self)
        _check_choice("vision pooling", self.pooling, ("cls", "map"))
        if not 1 <= self.patch_size <= self.image_size:
            raise ValueError(
                f"vision: no patch of patch_size {self.patch_size} fits into "
                f"image_size {self.image_size}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of an image: one a patch, and the class token if there is one.

        What is left over at the right and at the bottom (SigLIP so400m: 384 = 27 * 14 + 6) belongs
        to no patch.
        """
        return (self.image_size // self.patch_size) ** 2 + (self.pooling == "cls")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower. `vocab_size` and `eot_token_id` have to be those of the tokenizer.

    Attributes:
      causal: a token sees only those before it (CLIP); SigLIP's see all, the padding included.
      pooling: "eot", at the first end-of-text token (CLIP), or "last", at the last of the context
        (SigLIP).
      projection_bias: a bias of the projection (SigLIP).
    """

    context_length: Annotated[int, COUNT] = 77
    vocab_size: Annotated[int, COUNT] = 49408
    width: Annotated[int, COUNT] = 512
    layers: Annotated[int, COUNT] = 12
    heads: Annotated[int, COUNT] = 8
    mlp_dim: Annotated[int, COUNT] = 2048
    eot_token_id: Annotated[int, NOT_NEGATIVE] = 49407
    causal: bool = True
    pooling: str = "eot"
    projection_bias: bool = False

    def __post_init__(self):
        _check_transformer("text", self)
        _check_choice("text pooling", self.pooling, ("eot", "last"))
        if self.context_length < 1:
            raise ValueError(f"text: context_length {self.context_length} is not positive")
        if not 0 <= self.eot_token_id < self.vocab_size:
            raise ValueError(
                f"text: eot_token_id {self.eot_token_id} is outside the vocabulary of "
                f"{self.vocab_size} tokens"
            )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers that meet in an embedding of `embed_dim` dimensions.

    Attributes:
      activation: "quick_gelu" (OpenAI), "gelu" (exact, by erf; open_clip) or "gelu_tanh" (SigLIP).
      layer_norm_eps: 1e-5 for CLIP, 1e-6 for SigLIP.
      dtype: what the towers compute in, "float32" or "bfloat16"; parameters are float32 either way,
        and so are softmax and the statistics of the norms.
      scan_layers: one compiled block for all layers; its parameters carry a leading layer axis.
      remat: what the backward pass recomputes: "none", "full" (everything within a block) or "dots"
        (everything but the results of matrix products with weights).
      logit_bias: a learned bias of the logits, for the sigmoid loss.
    """

    embed_dim: Annotated[int, COUNT] = 512
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    activation: str = "quick_gelu"
    layer_norm_eps: Annotated[float, POSITIVE] = 1e-5
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    logit_bias: bool = False

    def __post_init__(self):
        _check_choice("activation", self.activation, ("quick_gelu", "gelu", "gelu_tanh"))
        _check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        _check_choice("remat", self.remat, ("none", "full", "dots"))
        if self.embed_dim < 1:
            raise ValueError(f"embed_dim {self.embed_dim} is not positive")
        if self.vision.pooling == "map" and self.vision.width != self.embed_dim:
            raise ValueError(
                f"embed_dim {self.embed_dim} has to be the width of the image tower, "
                f"{self.vision.width}: vision pooling 'map' has no projection"
            )


_TEXT_L = TextConfig(width=768, layers=12, heads=12, mlp_dim=3072)
_TEXT_H = TextConfig(width=1024, layers=24, heads=16, mlp_dim=4096)

# The ViT-B and ViT-L models are those of Radford et al. 2021 (arXiv 2103.00020), table 20; ViT-H/14
# is that of open_clip (arXiv 2212.07143). The small ones leave vocab_size and eot_token_id to be
# replaced by those of the tokenizer at hand.
ARCHITECTURES: dict[str, CLIPConfig] = {
    "ViT-B/32": CLIPConfig(),
    "ViT-B/16": CLIPConfig(vision=VisionConfig(patch_size=16)),
    "ViT-L/14": CLIPConfig(
        embed_dim=768, vision=VisionConfig(224, 14, 1024, 24, 16, 4096), text=_TEXT_L
    ),
    "ViT-L/14@336": CLIPConfig(
        embed_dim=768, vision=VisionConfig(336, 14, 1024, 24, 16, 4096), text=_TEXT_L
    ),
    "ViT-H/14": CLIPConfig(
        embed_dim=1024,
        vision=VisionConfig(224, 14, 1280, 32, 16, 5120),
        text=_TEXT_H,
        activation="gelu",
    ),
    "small-48": CLIPConfig(
        embed_dim=128,
        vision=VisionConfig(48, 16, 128, 4, 4, 512),
        text=TextConfig(20, 1024, 128, 2, 4, 512, 1023),
    ),
    "small-32": CLIPConfig(
        embed_dim=128,
        vision=VisionConfig(32, 4, 128, 4, 4, 512),
        text=TextConfig(16, 1024, 128, 2, 4, 512, 1023),
    ),
    "tiny": CLIPConfig(
        embed_dim=32,
        vision=VisionConfig(32, 8, 32, 2, 2, 64),
        text=TextConfig(16, 256, 32, 2, 2, 64, 255),
    ),
}


def architecture(name: str) -> CLIPConfig:
    """Returns the named architecture.

    Raises:
      ValueError: no architecture has this name; the message lists those there are.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def computed_as(config: CLIPConfig, other: CLIPConfig) -> CLIPConfig:
    """Returns the architecture of `config`, computed as `other` says (dtype, scan, remat)."""
    return dataclasses.replace(config, **{key: getattr(other, key) for key in RUNTIME_KEYS})
