"""CLIP's encoders in Flax Linen, for float, fake-quantised and packed weights alike."""

from tclip.models.architectures import (
    ARCHITECTURES,
    RUNTIME_KEYS,
    CLIPConfig,
    TextConfig,
    VisionConfig,
    architecture,
    computed_as,
)
from tclip.models.clip import CLIP, bound_logit_scale, init_params, logit_bias, logit_scale
from tclip.models.layout import leaves_by_path, with_layout
from tclip.models.ternary_policy import PRESETS, ClipPolicy
from tclip.models.weights import effective_weights

__all__ = [
    "ARCHITECTURES",
    "CLIP",
    "PRESETS",
    "RUNTIME_KEYS",
    "CLIPConfig",
    "ClipPolicy",
    "TextConfig",
    "VisionConfig",
    "architecture",
    "bound_logit_scale",
    "computed_as",
    "effective_weights",
    "init_params",
    "leaves_by_path",
    "logit_bias",
    "logit_scale",
    "with_layout",
]
