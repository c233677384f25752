"""config.json of transformers' CLIPModel, SiglipModel and Siglip2Model, read and written.

Keys, defaults and meanings are those of transformers 5.
"""

import dataclasses
import math
from typing import Any

from tclip.interop.json_config import JsonConfig, T
from tclip.models import CLIPConfig, TextConfig, VisionConfig

# What a config.json leaves out. CLIP's defaults are ours.
_SIGLIP = CLIPConfig(
    embed_dim=768,
    vision=VisionConfig(patch_size=16, pooling="map"),
    text=TextConfig(64, 32_000, 768, 12, 12, 3072, 0, False, "last", True),
    activation="gelu_tanh",
    layer_norm_eps=1e-6,
    logit_bias=True,
)
DEFAULTS = {"clip": CLIPConfig(), "siglip": _SIGLIP, "siglip2": _SIGLIP}
SIGLIP2_PATCHES = 256

TRANSFORMER_KEYS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}
VISION_KEYS = TRANSFORMER_KEYS | {"image_size": "image_size", "patch_size": "patch_size"}
TEXT_KEYS = TRANSFORMER_KEYS | {
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# An eos_token_id of 2 stands in the configs of CLIPs from before transformers 4.31, whatever their
# vocabulary, and makes transformers pool at the largest id of a text.
LEGACY_EOS = 2


def read_config(section: JsonConfig) -> CLIPConfig:
    """Returns the architecture that a config.json describes, blocks one by one.

    A SigLIP 2 for images of any shape ("siglip2") gets the square size of its position embeddings.
    The `eot_token_id` of SigLIP is left at 0: its config.json does not know it, nor does the model
    need it.

    Raises:
      ValueError: a model_type that is not read, a value that no model of ours has; the message
        names the file and the key.
    """
    kind = section.get("model_type", "")
    if kind not in DEFAULTS:
        known = ", ".join(DEFAULTS)
        raise ValueError(f"{section.where}: model_type is {kind!r}, only {known} are read")
    default = DEFAULTS[kind]
    text, vision = _tower(section, "text"), _tower(section, "vision")
    for key, value in (("num_channels", 3), ("vision_use_head", True)):
        if vision.get(key, value) != value:
            raise ValueError(f"{vision.where}: {key} has to be {value} to be read")
    activation = _of_both(text, vision, "hidden_act", _name(default.activation))
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{text.where}: hidden_act is {activation!r}, only {known} are read")
    values = {
        "activation": ACTIVATIONS[activation],
        "layer_norm_eps": _of_both(text, vision, "layer_norm_eps", default.layer_norm_eps),
    }
    text_values = _values(text, TEXT_KEYS, default.text)
    vision_values = _values(vision, VISION_KEYS, default.vision)
    if kind == "clip":
        eos, largest = text.get("eos_token_id", 49407), text_values["vocab_size"] - 1
        text_values["eot_token_id"] = largest if eos == LEGACY_EOS else eos
        values["embed_dim"] = section.get("projection_dim", default.embed_dim)
    else:
        values["embed_dim"] = text.get("projection_size", text_values["width"])
    num_patches = vision.get("num_patches", SIGLIP2_PATCHES)
    try:
        if kind == "siglip2":
            vision_values["image_size"] = math.isqrt(num_patches) * vision_values["patch_size"]
        values["text"] = dataclasses.replace(default.text, **text_values)
        values["vision"] = dataclasses.replace(default.vision, **vision_values)
        return dataclasses.replace(default, **values)
    except ValueError as error:
        raise ValueError(f"{section.where}: {error}") from None


def write_config(config: CLIPConfig, special_ids: dict[str, int | None]) -> dict[str, Any]:
    """Returns the config.json of a CLIPModel or a SiglipModel, every key that matters spelt out.

    Args:
      config: the architecture. CLIPModel has no `logit_bias`, which is left out.
      special_ids: "bos_token_id", "eos_token_id" and "pad_token_id".

    Raises:
      ValueError: neither model can be of this architecture; the message names what it would change.
    """
    kind = "clip" if config.vision.pooling == "cls" else "siglip"
    name = {"clip": "CLIPModel", "siglip": "SiglipModel"}[kind]
    both = {"hidden_act": _name(config.activation), "layer_norm_eps": config.layer_norm_eps}
    text = {theirs: getattr(config.text, ours) for ours, theirs in TEXT_KEYS.items()}
    vision = {theirs: getattr(config.vision, ours) for ours, theirs in VISION_KEYS.items()}
    values = {
        "model_type": kind,
        "architectures": [name],
        "text_config": {"model_type": f"{kind}_text_model"} | text | both | special_ids,
        "vision_config": {"model_type": f"{kind}_vision_model", "num_channels": 3} | vision | both,
    }
    if kind == "clip":
        for part in (values, values["text_config"], values["vision_config"]):
            part["projection_dim"] = config.embed_dim
    else:
        values["text_config"]["projection_size"] = config.embed_dim
    meant, written = _flat(config), _flat(read_config(JsonConfig(values, name)))
    unknown = {"clip": "logit_bias", "siglip": "text.eot_token_id"}[kind]
    for key in sorted(meant.keys() - {unknown}):
        if meant[key] != written[key]:
            raise ValueError(
                f"{name} of transformers cannot be this model: {key} would be {written[key]!r} "
                f"instead of {meant[key]!r}"
            )
    return values


def _tower(section: JsonConfig, name: str) -> JsonConfig:
    # Where the legacy key is there, transformers goes by it alone.
    legacy = f"{name}_config_dict"
    return section.group(f"{name}_config" if section.values.get(legacy) is None else legacy)


def _values(
    section: JsonConfig, keys: dict[str, str], default: VisionConfig | TextConfig
) -> dict[str, int]:
    return {ours: section.get(theirs, getattr(default, ours)) for ours, theirs in keys.items()}


def _of_both(text: JsonConfig, vision: JsonConfig, key: str, default: T) -> T:
    values = text.get(key, default), vision.get(key, default)
    if values[0] != values[1]:
        raise ValueError(
            f"{text.where}: {key} is {values[0]!r} and that of the image tower {values[1]!r}; only "
            "models where both are equal are read"
        )
    return values[0]


def _name(activation: str) -> str:
    # The last of several names is transformers' own for its tanh formula.
    return {ours: theirs for theirs, ours in ACTIVATIONS.items()}[activation]


def _flat(config: CLIPConfig) -> dict[str, Any]:
    """What decides about the outputs of a model, by dotted key."""
    keys = ("embed_dim", "activation", "layer_norm_eps", "logit_bias")
    flat = {key: getattr(config, key) for key in keys}
    for name in ("text", "vision"):
        flat |= {f"{name}.{key}": value for key, value in vars(getattr(config, name)).items()}
    return flat
