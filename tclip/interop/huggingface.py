"""CLIP, SigLIP and SigLIP 2 as transformers keeps them: CLIPModel, SiglipModel, Siglip2Model.

Names of tensors are those of transformers 5.
"""

from pathlib import Path
from typing import Any

from tclip.interop.huggingface_config import read_config
from tclip.interop.json_config import read_json_config
from tclip.interop.mapping import (
    CONVOLUTION,
    SAME,
    TRANSPOSED,
    Entry,
    Table,
    Transform,
    import_params,
    linear,
    norm,
    packed_attention,
    under_axes,
)
from tclip.interop.tensors import read_tensors
from tclip.model_kind import CONFIG, HUGGINGFACE_WEIGHTS
from tclip.models import CLIPConfig
from tclip.processing import PreprocessConfig, load_preprocess

PREPROCESSOR = "preprocessor_config.json"
# What transformers 5 writes in place of PREPROCESSOR.
PROCESSOR = "processor_config.json"
# Counters 0, 1, 2, ... that old checkpoints hold.
BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def load_huggingface(folder: Path) -> tuple[CLIPConfig, dict[str, Any], PreprocessConfig]:
    """Reads config, float32 parameters and preprocessing of a model folder; see `read_config`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is broken, or of a model that the encoders cannot be.
    """
    section = read_json_config(folder / CONFIG)
    config = read_config(section)
    # Patches of images of any shape come to it flattened, as ours are.
    flat = section.values["model_type"] == "siglip2"
    table = tensor_table(config, TRANSPOSED if flat else CONVOLUTION)
    params = import_params(
        read_tensors(folder, HUGGINGFACE_WEIGHTS),
        table,
        config,
        BUFFERS,
        folder / HUGGINGFACE_WEIGHTS,
    )
    has_old, has_new = ((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR))
    preprocess = load_preprocess(folder / (PROCESSOR if has_new and not has_old else PREPROCESSOR))
    return config, params, preprocess


def tensor_table(config: CLIPConfig, patch_embed: Transform = CONVOLUTION) -> Table:
    """Where transformers keeps each parameter of CLIP, or of SigLIP."""
    is_clip = config.vision.pooling == "cls"
    yield Entry("logit_scale", ("logit_scale",), SAME if is_clip else under_axes(1))
    embeddings = "text_model.embeddings"
    yield Entry(f"{embeddings}.token_embedding.weight", ("text/token_embedding/embedding",))
    yield Entry(f"{embeddings}.position_embedding.weight", ("text/position_embedding",))
    yield from _blocks("text_model", "text", config.text.layers)
    yield from norm("text_model.final_layer_norm", "text/ln_final")
    embeddings = "vision_model.embeddings"
    yield Entry(f"{embeddings}.patch_embedding.weight", ("vision/patch_embed/kernel",), patch_embed)
    yield Entry(f"{embeddings}.position_embedding.weight", ("vision/position_embedding",))
    yield from _blocks("vision_model", "vision", config.vision.layers)
    yield from norm("vision_model.post_layernorm", "vision/ln_post")
    if is_clip:
        yield Entry("text_projection.weight", ("text/projection/kernel",), TRANSPOSED)
        yield Entry(f"{embeddings}.class_embedding", ("vision/class_embedding",))
        yield from norm("vision_model.pre_layrnorm", "vision/ln_pre")
        yield Entry("visual_projection.weight", ("vision/projection/kernel",), TRANSPOSED)
    else:
        yield Entry("logit_bias", ("logit_bias",), under_axes(1))
        yield from linear("text_model.head", "text/projection")
        yield Entry(f"{embeddings}.patch_embedding.bias", ("vision/patch_embed/bias",))
        yield Entry("vision_model.head.probe", ("vision/attn_pool/probe",), under_axes(2))
        yield from packed_attention("vision_model.head.attention", "vision/attn_pool/attn")
        yield from norm("vision_model.head.layernorm", "vision/attn_pool/ln_mlp")
        yield from _mlp("vision_model.head.mlp", "vision/attn_pool/mlp")


def _blocks(theirs: str, ours: str, layers: int) -> Table:
    for i in range(layers):
        layer, block = f"{theirs}.encoder.layers.{i}", f"{ours}/blocks_{i}"
        yield from norm(f"{layer}.layer_norm1", f"{block}/ln_1")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{name}", f"{block}/attn/{name}")
        yield from norm(f"{layer}.layer_norm2", f"{block}/ln_2")
        yield from _mlp(f"{layer}.mlp", f"{block}/mlp")


def _mlp(theirs: str, ours: str) -> Table:
    yield from linear(f"{theirs}.fc1", f"{ours}/fc1")
    yield from linear(f"{theirs}.fc2", f"{ours}/fc2")
