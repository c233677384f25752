"""A model folder that transformers loads: CLIPModel or SiglipModel, tokenizer, image processor."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from tokenizers import models

from tclip.files import naming, whole_folder
from tclip.interop.huggingface import PREPROCESSOR, tensor_table
from tclip.interop.huggingface_config import write_config
from tclip.interop.mapping import export_tensors
from tclip.model_kind import CONFIG, HUGGINGFACE_WEIGHTS
from tclip.models import CLIPConfig, with_layout
from tclip.processing import PreprocessConfig, Tokenizer, save_preprocess
from tclip.processing.tokenizer import WORD_END

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def save_huggingface(
    path: Path,
    config: CLIPConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
) -> None:
    """Writes a folder for transformers; whoever looks at `path` sees a whole folder or none.

    A `logit_bias` of a CLIP is left out with a warning, as CLIPModel has none: it moves all logits
    by the same amount, and neither a ranking nor a softmax.

    Args:
      path: must not exist yet.
      config: architecture of `params`.
      params: arrays of one floating dtype, in which they are stored; blocks in either layout.

    Raises:
      ValueError: transformers has no such architecture.
      FileExistsError: `path` exists.
      OSError: a file cannot be written; it is named.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another folder or remove it")
    special = _special_tokens(tokenizer)
    ids = {
        f"{key}_id": None if token is None else tokenizer.hf.token_to_id(token)
        for key, token in special.items()
    }
    description = write_config(config, ids)
    unrolled = with_layout(params, dataclasses.replace(config, scan_layers=False))
    tensors = export_tensors(unrolled, tensor_table(config))
    description["dtype"] = str(tensors["logit_scale"].dtype)
    if config.logit_bias and "logit_bias" not in tensors:
        logging.getLogger(__name__).warning("CLIPModel has no logit_bias: it is left out")
    with whole_folder(path) as folder:
        with naming(path / HUGGINGFACE_WEIGHTS):
            weights = safetensors.numpy.save(tensors, {"format": "pt"})
            (folder / HUGGINGFACE_WEIGHTS).write_bytes(weights)
        with naming(path / TOKENIZER):
            _save_tokenizer(tokenizer, special, folder)
        with naming(path / PREPROCESSOR):
            save_preprocess(preprocess, folder / PREPROCESSOR)
        with naming(path / CONFIG):
            (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str | None]:
    """The start (if any), end and padding tokens by transformers' names for them."""
    hf = tokenizer.hf
    encoding = hf.encode("a")
    end = hf.id_to_token(tokenizer.eot_token_id)
    # Its padding tokens are special to transformers: texts would be cut at an ordinary one, and
    # CLIP's, id 0, is the exclamation mark. What pads a causal tower does not matter.
    padding = hf.get_added_tokens_decoder().get(tokenizer.padding["pad_id"])
    return {
        "bos_token": encoding.tokens[0] if encoding.special_tokens_mask[0] else None,
        "eos_token": end,
        "pad_token": padding.content if padding is not None and padding.special else end,
    }


def _save_tokenizer(tokenizer: Tokenizer, special: dict[str, str | None], folder: Path) -> None:
    tokenizer.save(folder / TOKENIZER)
    model = tokenizer.hf.model
    is_clip = isinstance(model, models.BPE) and model.end_of_word_suffix == WORD_END
    if is_clip:
        # vocab.json and merges.txt, for CLIPTokenizer of transformers 4.
        model.save(str(folder))
    settings = special | {
        "tokenizer_class": "CLIPTokenizer" if is_clip else "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "padding_side": tokenizer.padding["direction"],
        # A special token spelt out in a caption is text like any other.
        "split_special_tokens": True,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
