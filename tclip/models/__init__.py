"""CLIP's encoders in Flax Linen, for float, fake-quantised and packed weights alike."""

from tclip.models.architectures import (
    ARCHITECTURES,
    CLIPConfig,
    TextConfig,
    VisionConfig,
    architecture,
)
from tclip.models.clip import CLIP, init_params, logit_bias, logit_scale
from tclip.models.layout import with_layout

__all__ = [
    "ARCHITECTURES",
    "CLIP",
    "CLIPConfig",
    "TextConfig",
    "VisionConfig",
    "architecture",
    "init_params",
    "logit_bias",
    "logit_scale",
    "with_layout",
]
