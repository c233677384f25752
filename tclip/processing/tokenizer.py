"""CLIP's byte-pair tokenizer, with CLIP's own merges or merges trained on captions.

Any tokenizer is one `tokenizer.json` of the Hugging Face `tokenizers` library. These two have the
same normalisation, splitting and layout of the vocabulary (Radford et al., arXiv 2103.00020): 256
byte symbols, the same with the end-of-word mark, one entry a merge, then the start and end tokens.
Their ids are those of transformers' CLIPTokenizer; OpenAI's own code also repairs mojibake (ftfy)
and undoes HTML entities (twice) beforehand, which neither does.
"""

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import (
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as HFTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# Special tokens spelt out, contractions, words, single digits, runs of anything else.
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|"
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CLIP_MERGES = 48_894
# What follows so many characters is dropped unseen: a hostile text costs a tenth of a second.
MAX_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.json bound to a context length; picklable."""

    hf: HFTokenizer
    context_length: int

    def __post_init__(self):
        if self.context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {self.context_length}")
        # A copy: what is set below would reach whoever else holds it.
        object.__setattr__(self, "hf", HFTokenizer.from_str(self.hf.to_str()))
        padding = self.hf.padding or {"pad_id": 0, "direction": "right"}
        pad_token = self.hf.id_to_token(padding["pad_id"])
        if pad_token is None:
            raise ValueError(
                f"the tokenizer pads with {padding['pad_id']}, which is no token of it"
            )
        # A caption that spells a special token out is text like any other.
        self.hf.encode_special_tokens = True
        self.hf.enable_truncation(self.context_length)
        self.hf.enable_padding(
            direction=padding["direction"],
            pad_id=padding["pad_id"],
            pad_token=pad_token,
            length=self.context_length,
        )
        if _end_of_text(self.hf) is None:
            raise ValueError(
                "the tokenizer ends a text with no special token; the text towers of CLIP and "
                "SigLIP want one (add_eos_token in tokenizer_config.json, if it was forgotten)"
            )

    @property
    def vocab_size(self) -> int:
        return self.hf.get_vocab_size()

    @property
    def padding(self) -> dict[str, Any]:
        """How `hf` pads: "pad_id", "pad_token", "direction" and "length"."""
        return cast(dict[str, Any], self.hf.padding)  # as `__post_init__` has set it

    @property
    def eot_token_id(self) -> int:
        """The token that ends every text: where CLIP's text tower pools (SigLIP's at the last)."""
        return cast(int, _end_of_text(self.hf))  # `__post_init__` refuses None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides about the ids."""
        return hashlib.sha256(repr(self.__getstate__()).encode()).hexdigest()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns int32 [len(texts), context_length]: start if any, text, end, then padding.

        The padding is zeros for CLIP's kinds. Long text loses its tail, never the end token.
        """
        encodings = self.hf.encode_batch_fast([text[:MAX_CHARACTERS] for text in texts])
        ids = np.array([encoding.ids for encoding in encodings], np.int32)
        return ids.reshape(len(texts), self.context_length)

    def save(self, path: Path | str) -> None:
        """Writes tokenizer.json, without white space: it counts in the size of a shipped model."""
        Path(path).write_text(self.hf.to_str(pretty=False), encoding="utf-8")

    def __getstate__(self) -> dict:
        return {"json": self.hf.to_str(), "context_length": self.context_length}

    def __setstate__(self, state: dict) -> None:
        self.__init__(HFTokenizer.from_str(state["json"]), state["context_length"])


def load_tokenizer(path: Path | str, context_length: int) -> Tokenizer:
    """Reads a tokenizer.json; it is padded as the file says, or else with zeros.

    Raises:
      FileNotFoundError: there is none at `path`.
      ValueError: the file is not a tokenizer, or not one that ends texts with a special token.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; expected a tokenizer.json")
    return Tokenizer(read_tokenizer_json(path), context_length)


def read_tokenizer_json(path: Path) -> HFTokenizer:
    """Returns the tokenizer in a file; a ValueError says that it holds none."""
    try:
        return HFTokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises bare Exception.
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer.json ({error})") from None


def train_tokenizer(captions: Iterable[str], context_length: int, vocab_size: int) -> Tokenizer:
    """Trains merges on captions; the vocabulary is smaller than asked when merges run out.

    Raises:
      ValueError: vocab_size leaves no room for the 512 symbols and the two special tokens.
    """
    symbols = _byte_symbols()
    room = vocab_size - 2 * len(symbols) - 2
    if room < 0:
        raise ValueError(f"vocab_size must be at least {2 * len(symbols) + 2}, got {vocab_size}")
    hf = _bpe([])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,  # more than `room` merges in any case
        initial_alphabet=symbols,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    hf.train_from_iterator(captions, trainer)
    return Tokenizer(_bpe(_merges(hf)[:room]), context_length)


def clip_tokenizer(bpe_vocab_gz_path: Path | str, context_length: int) -> Tokenizer:
    """CLIP's own tokenizer (49,408 entries) from its list of merges.

    Args:
      bpe_vocab_gz_path: bpe_simple_vocab_16e6.txt.gz of OpenAI CLIP or open_clip.
      context_length: 77 in the published models.

    Raises:
      FileNotFoundError, ValueError: the file is absent or is something else.
    """
    try:
        with gzip.open(bpe_vocab_gz_path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no BPE merges at {bpe_vocab_gz_path}; expected CLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{bpe_vocab_gz_path} is not a gzipped list of merges ({error})") from None
    merges = [line.split() for line in lines[1 : CLIP_MERGES + 1]]
    if len(merges) < CLIP_MERGES or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{bpe_vocab_gz_path} does not hold CLIP's {CLIP_MERGES} merges")
    return Tokenizer(_bpe([(left, right) for left, right in merges]), context_length)


def clip_pipeline(model: models.BPE) -> HFTokenizer:
    """Returns CLIP's tokenizer around a model whose vocabulary has the start and end tokens."""
    hf = HFTokenizer(model)
    hf.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    hf.post_processor = template(hf, [START], [END])
    hf.add_special_tokens([START, END])
    return hf


def template(hf: HFTokenizer, before: list[str], after: list[str]) -> processors.TemplateProcessing:
    """Returns what puts special tokens around a text; a ValueError names one that `hf` lacks."""
    ids = [(token, hf.token_to_id(token)) for token in (*before, *after)]
    for token, i in ids:
        if i is None:
            raise ValueError(f"the tokenizer has no token {token!r}")
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=ids)


def _end_of_text(hf: HFTokenizer) -> int | None:
    """Returns the special token that comes after a text and before its padding, if there is one."""
    try:
        encoding = hf.encode("a \U0010ffff")  # a character that hardly any vocabulary knows
    except (KeyboardInterrupt, SystemExit):
        raise
    # A file that does not fit together: the library raises bare Exception, or panics.
    except BaseException as error:
        raise ValueError(f"the tokenizer cannot encode text ({error})") from None
    used = np.flatnonzero(encoding.attention_mask)
    if not used.size or not encoding.special_tokens_mask[used[-1]]:
        return None
    return encoding.ids[used[-1]]


def _bpe(merges: list[tuple[str, str]]) -> HFTokenizer:
    symbols = _byte_symbols()
    entries = [*symbols, *(s + WORD_END for s in symbols), *map("".join, merges), START, END]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    return clip_pipeline(
        models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins for the 256 bytes in GPT-2's order: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (256 + i for i in range(256 - len(printable)))
    return [chr(c) for c in (*printable, *others)]


def _merges(hf: HFTokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(hf.to_str())["model"]["merges"]]
