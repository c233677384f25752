"""Other people's models: Hugging Face's CLIP, SigLIP and SigLIP 2, and open_clip's ViTs."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from tclip.interop.hub import resolve
from tclip.interop.huggingface import load_huggingface
from tclip.interop.huggingface_config import read_config
from tclip.interop.huggingface_save import save_huggingface
from tclip.interop.json_config import read_json_config
from tclip.interop.open_clip import load_open_clip
from tclip.interop.open_clip import read_config as read_model_cfg
from tclip.model_kind import CONFIG, OPEN_CLIP_CONFIG, model_kind
from tclip.models import CLIPConfig
from tclip.processing import PreprocessConfig, Tokenizer, load_pretrained_tokenizer

__all__ = ["load_pretrained", "read_architecture", "save_huggingface"]


def load_pretrained(
    name_or_path: str | os.PathLike[str],
) -> tuple[CLIPConfig, dict[str, Any], Tokenizer, PreprocessConfig]:
    """Reads a float CLIP or SigLIP from a folder, or by hub id; see `resolve`.

    A folder is Hugging Face's (config.json, model.safetensors) or open_clip's
    (open_clip_config.json, open_clip_model.safetensors), as `model_kind` says.

    Returns:
      The architecture, float32 parameters with blocks one by one (`with_layout` stacks them), the
      tokenizer and the image preprocessing.

    Raises:
      FileNotFoundError: there is no such model, or a file of it is missing.
      ValueError: a file is broken, or the model is of another kind; the message names the file and
        the key or tensor, and what can be done.
    """
    folder = resolve(name_or_path)
    kind = model_kind(folder)
    if kind is None:
        raise _no_model(folder)
    load = load_open_clip if kind == "open_clip" else load_huggingface
    config, params, preprocess = load(folder)
    tokenizer = load_pretrained_tokenizer(folder, config.text.context_length)
    if config.text.pooling == "last":
        # Their configs do not know its id, nor do the models need it.
        try:
            text = dataclasses.replace(config.text, eot_token_id=tokenizer.eot_token_id)
        except ValueError as error:
            raise ValueError(f"{folder}: the tokenizer is not the model's: {error}") from None
        config = dataclasses.replace(config, text=text)
    return config, params, tokenizer, preprocess


def read_architecture(folder: Path) -> CLIPConfig:
    """Reads the config alone of a model folder, be there weights or not; blocks one by one.

    Raises:
      FileNotFoundError: it is no folder of Hugging Face or open_clip.
      ValueError: its config is broken, or that of a model of another kind.
    """
    kind = model_kind(folder)
    if kind is None:
        raise _no_model(folder)
    if kind == "open_clip":
        return read_model_cfg(read_json_config(folder / OPEN_CLIP_CONFIG).group("model_cfg"))
    return read_config(read_json_config(folder / CONFIG))


def _no_model(folder: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} is no model folder: it has neither {CONFIG} nor {OPEN_CLIP_CONFIG}"
    )
