"""open_clip's vision transformers with its own text tower: CLIP and CustomTextCLIP.

Keys, defaults and names of tensors are those of open_clip 3.3.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tclip.interop.json_config import JsonConfig, read_json_config
from tclip.interop.mapping import (
    CONVOLUTION,
    Entry,
    Table,
    import_params,
    linear,
    norm,
    packed_attention,
)
from tclip.interop.tensors import read_tensors
from tclip.model_kind import OPEN_CLIP_CONFIG
from tclip.models import CLIPConfig, TextConfig, VisionConfig
from tclip.processing import PreprocessConfig

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"

# Keys that make another model of it unless they have this value, by section; a null has it too.
_BLOCK = {
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
FIXED = {
    "model_cfg": {"multimodal_cfg": None, "nonscalar_logit_scale": False},
    "vision_cfg": _BLOCK
    | {
        "timm_model_name": None,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pool_type": "tok",
    },
    "text_cfg": _BLOCK
    | {
        "hf_model_name": None,
        "embed_cls": False,
        "proj_type": "linear",
        "tokenizer_mode": None,
        "tokenizer_kwargs": None,
    },
}
# Keys that are read, that only training knows, that mean something only beside one of the above, or
# that come to the same here: the norm before or after taking one token, positions that are stored.
OTHERS = {
    "model_cfg": {
        *("embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"),
        *("init_logit_scale", "init_logit_bias"),
    },
    "vision_cfg": {
        *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
        *("patch_dropout", "output_tokens", "final_ln_after_pool", "pos_embed_type"),
        *("attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"),
        *("timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    },
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
        *("pool_type", "eos_id", "no_causal_mask", "proj_bias"),
        *("pad_id", "output_tokens", "final_ln_after_pool", "hf_tokenizer_name"),
        *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    },
}
REMEDY = (
    "only plain vision transformers with open_clip's own text tower are read; look for the model "
    "in transformers' format (SigLIP: google/siglip-...)"
)
# Buffers of old checkpoints.
BUFFERS = ("attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size")


def load_open_clip(folder: Path) -> tuple[CLIPConfig, dict[str, Any], PreprocessConfig]:
    """Reads config, float32 parameters and preprocessing of a model folder.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is broken, or of a model that the encoders cannot be.
    """
    section = read_json_config(folder / OPEN_CLIP_CONFIG)
    config = read_config(section.group("model_cfg"))
    preprocess = _read_preprocess(section.group("preprocess_cfg"), config.vision.image_size)
    tensors = read_tensors(folder, OPEN_CLIP_WEIGHTS)
    table = tensor_table(config, custom_text="text.token_embedding.weight" in tensors)
    params = import_params(tensors, table, config, BUFFERS, folder / OPEN_CLIP_WEIGHTS)
    return config, params, preprocess


def read_config(model: JsonConfig) -> CLIPConfig:
    """Returns the architecture that a `model_cfg` describes, blocks one by one.

    Raises:
      ValueError: a value that no model of ours has; the message names the file and the key.
    """
    vision, text = model.group("vision_cfg"), model.group("text_cfg")
    for name, section in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        _check_keys(section, FIXED[name], OTHERS[name])
    if isinstance(vision.values.get("layers"), list):
        raise ValueError(f"{vision.where}: layers is that of a ResNet; {REMEDY}")
    width, text_width = vision.get("width", 768), text.get("width", 512)
    head_width, vocab_size = vision.get("head_width", 64), text.get("vocab_size", 49408)
    pooling = text.get("pool_type", "argmax")
    # At the largest id of a text: the end of text is the last entry of CLIP's vocabulary.
    end = {"argmax": vocab_size - 1, "eos": text.get("eos_id", 2), "last": 0}
    if pooling not in end:
        raise ValueError(f"{text.where}: pool_type is {pooling!r}, only {', '.join(end)} are read")
    if not 1 <= head_width <= width:
        raise ValueError(f"{vision.where}: head_width {head_width} does not fit into width {width}")
    try:
        return CLIPConfig(
            embed_dim=model.get("embed_dim", 512),
            vision=VisionConfig(
                image_size=vision.get("image_size", 224),
                patch_size=vision.get("patch_size", 16),
                width=width,
                layers=vision.get("layers", 12),
                heads=width // head_width,
                mlp_dim=int(width * vision.get("mlp_ratio", 4.0)),
            ),
            text=TextConfig(
                context_length=text.get("context_length", 77),
                vocab_size=vocab_size,
                width=text_width,
                layers=text.get("layers", 12),
                heads=text.get("heads", 8),
                mlp_dim=int(text_width * text.get("mlp_ratio", 4.0)),
                eot_token_id=end[pooling],
                causal=not text.get("no_causal_mask", False),
                pooling="last" if pooling == "last" else "eot",
                projection_bias=text.get("proj_bias", False),
            ),
            activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
            logit_bias=model.values.get("init_logit_bias") is not None,
        )
    except ValueError as error:
        raise ValueError(f"{model.where}: {error}") from None


def tensor_table(config: CLIPConfig, custom_text: bool) -> Table:
    """Where open_clip keeps each parameter; with `custom_text` as CustomTextCLIP does."""
    yield Entry("logit_scale", ("logit_scale",))
    if config.logit_bias:
        yield Entry("logit_bias", ("logit_bias",))
    tower = "text." if custom_text else ""
    yield Entry(f"{tower}token_embedding.weight", ("text/token_embedding/embedding",))
    yield Entry(f"{tower}positional_embedding", ("text/position_embedding",))
    yield from _blocks(f"{tower}transformer", "text", config.text.layers)
    yield from norm(f"{tower}ln_final", "text/ln_final")
    if config.text.projection_bias:
        yield from linear(f"{tower}text_projection", "text/projection")
    else:
        yield Entry(f"{tower}text_projection", ("text/projection/kernel",))
    yield Entry("visual.conv1.weight", ("vision/patch_embed/kernel",), CONVOLUTION)
    yield Entry("visual.class_embedding", ("vision/class_embedding",))
    yield Entry("visual.positional_embedding", ("vision/position_embedding",))
    yield from norm("visual.ln_pre", "vision/ln_pre")
    yield from _blocks("visual.transformer", "vision", config.vision.layers)
    yield from norm("visual.ln_post", "vision/ln_post")
    yield Entry("visual.proj", ("vision/projection/kernel",))


def _blocks(theirs: str, ours: str, layers: int) -> Table:
    for i in range(layers):
        layer, block = f"{theirs}.resblocks.{i}", f"{ours}/blocks_{i}"
        yield from norm(f"{layer}.ln_1", f"{block}/ln_1")
        yield from packed_attention(f"{layer}.attn", f"{block}/attn")
        yield from norm(f"{layer}.ln_2", f"{block}/ln_2")
        yield from linear(f"{layer}.mlp.c_fc", f"{block}/mlp/fc1")
        yield from linear(f"{layer}.mlp.c_proj", f"{block}/mlp/fc2")


def _check_keys(section: JsonConfig, fixed: Mapping[str, Any], others: set[str]) -> None:
    for key, value in section.values.items():
        if key in fixed and value is not None and (value or None) != (fixed[key] or None):
            raise ValueError(f"{section.where}: {key} is {value!r}; {REMEDY}")
        if key not in fixed and key not in others:
            raise ValueError(f"{section.where}: {key} is not known; {REMEDY}")


def _read_preprocess(section: JsonConfig, image_size: int) -> PreprocessConfig:
    # open_clip goes by the size of the model here, too.
    default = PreprocessConfig()
    try:
        return PreprocessConfig(
            image_size=image_size,
            mean=_channels(section, "mean", default.mean),
            std=_channels(section, "std", default.std),
            interpolation=section.get("interpolation", default.interpolation),
            resize=section.get("resize_mode", default.resize),
        )
    except ValueError as error:
        raise ValueError(f"{section.where}: {error}") from None


def _channels(
    section: JsonConfig, key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, section.values.get(key) or default)
    except (TypeError, ValueError):
        raise ValueError(f"{key} is {section.values[key]!r}, expected three numbers") from None
    return red, green, blue
