"""The tokenizer of a Hugging Face model folder, with all that its files say of it."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, normalizers

from tclip.files import read_json_object
from tclip.processing.tokenizer import (
    WORD_END,
    Tokenizer,
    clip_pipeline,
    read_tokenizer_json,
    template,
)


def load_pretrained_tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face model folder, its padding and special tokens included.

    That is tokenizer.json, or vocab.json and merges.txt of a CLIP, with what tokenizer_config.json
    and special_tokens_map.json say of them. Text is lower-cased where they say `do_lower_case`, as
    SigLIP 2 was trained, although the Gemma tokenizer that its folders name does not do it.

    Raises:
      FileNotFoundError: the folder holds no tokenizer that is read.
      ValueError: a file is broken, or they do not fit together.
    """
    file, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if file.is_file():
        hf = read_tokenizer_json(file)
    elif vocab.is_file() and merges.is_file():
        hf = _read_legacy_clip(vocab, merges)
    else:
        raise FileNotFoundError(
            f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt. A SentencePiece "
            "model is not read: add the tokenizer.json published with the model, or the one that "
            "save_pretrained of transformers' fast tokenizer writes; to an open_clip model without "
            "a tokenizer, add the tokenizer.json of openai/clip-vit-base-patch32"
        )
    settings = _read_object(folder / "special_tokens_map.json")
    settings |= _read_object(folder / "tokenizer_config.json")
    try:
        _configure(hf, settings)
        return Tokenizer(hf, context_length)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _read_legacy_clip(vocab: Path, merges: Path) -> HFTokenizer:
    try:
        model = models.BPE.from_file(
            str(vocab), str(merges), end_of_word_suffix=WORD_END, continuing_subword_prefix=""
        )
        return clip_pipeline(model)
    # The library raises bare Exception.
    except Exception as error:
        raise ValueError(f"{vocab} and {merges.name} are not a CLIP tokenizer ({error})") from None


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, an empty one where there is no file."""
    return read_json_object(path) if path.is_file() else {}


def _configure(hf: HFTokenizer, settings: dict[str, Any]) -> None:
    """Does to a tokenizer.json what transformers does to it from the files beside it."""
    lower = settings.get("do_lower_case") or settings.get("tokenizer_class") == "Siglip2Tokenizer"
    if lower and hf.normalizer is None:
        hf.normalizer = normalizers.Lowercase()
    elif lower and b"Lowercase" not in hf.normalizer.__getstate__():
        hf.normalizer = normalizers.Sequence([normalizers.Lowercase(), hf.normalizer])
    if "add_bos_token" in settings or "add_eos_token" in settings:
        ends = ("bos_token", "eos_token")
        before, after = ([_content(settings, e)] if settings.get(f"add_{e}") else [] for e in ends)
        hf.post_processor = template(hf, before, after)
    padding = hf.padding or {"pad_id": 0, "direction": "right"}
    direction = settings.get("padding_side") or padding["direction"]
    if direction not in ("left", "right"):
        raise ValueError(f"padding_side is {direction!r}, neither left nor right")
    pad_id = padding["pad_id"]
    if settings.get("pad_token") is not None:
        pad_token = _content(settings, "pad_token")
        pad_id = hf.token_to_id(pad_token)
        if pad_id is None:
            raise ValueError(f"pad_token {pad_token!r} is not in the vocabulary")
    hf.enable_padding(direction=direction, pad_id=pad_id)


def _content(settings: dict[str, Any], name: str) -> str:
    token = settings.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise ValueError(f"{name} is {token!r}, not a token")
    return content
