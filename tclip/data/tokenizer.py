"""CLIP's byte-pair tokenizer, with CLIP's own merges or merges trained on captions.

Both kinds are one `tokenizer.json` of the Hugging Face `tokenizers` library with the same
normalisation, splitting and layout of the vocabulary (Radford et al., arXiv 2103.00020): 256 byte
symbols, the same with the end-of-word mark, one entry a merge, then the start and end tokens.
"""

import dataclasses
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

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
# Contractions, words, single digits, runs of anything else.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MERGES = 48_894
# Text is cut to this many characters a token of context before the tokenizer sees it.
CHARACTERS_PER_TOKEN = 32


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.json bound to a context length; picklable."""

    hf: HFTokenizer
    context_length: int

    def __post_init__(self):
        if self.context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {self.context_length}")
        if None in (self.hf.token_to_id(START), self.hf.token_to_id(END)):
            raise ValueError(f"the tokenizer has no {START} and {END}; is it a CLIP tokenizer?")
        # A caption that spells a special token out is text like any other.
        self.hf.encode_special_tokens = True
        self.hf.enable_truncation(self.context_length)
        self.hf.enable_padding(pad_id=0, pad_token="!", length=self.context_length)

    @property
    def vocab_size(self) -> int:
        return self.hf.get_vocab_size()

    @property
    def eot_token_id(self) -> int:
        return self.hf.token_to_id(END)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns int32 [len(texts), context_length]: start, text, end, then zeros.

        Long text loses its tail, never the end token.
        """
        limit = CHARACTERS_PER_TOKEN * self.context_length
        encodings = self.hf.encode_batch_fast([text[:limit] for text in texts])
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
    """Reads a tokenizer.json.

    Raises:
      FileNotFoundError: there is none at `path`.
      ValueError: the file is not a tokenizer, or not one with CLIP's start and end tokens.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; expected a tokenizer.json")
    try:
        hf = HFTokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises bare Exception.
    except Exception as error:
        raise ValueError(f"{path} is not a tokenizer.json ({error})") from None
    return Tokenizer(hf, context_length)


def train_tokenizer(captions: Iterable[str], context_length: int, vocab_size: int) -> Tokenizer:
    """Trains merges on captions; the vocabulary is smaller than asked when merges run out.

    Raises:
      ValueError: vocab_size leaves no room for the 512 symbols and the two special tokens.
    """
    symbols = _byte_symbols()
    room = vocab_size - 2 * len(symbols) - 2
    if room < 0:
        raise ValueError(f"vocab_size must be at least {2 * len(symbols) + 2}, got {vocab_size}")
    hf = _bpe([], context_length)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,  # more than `room` merges in any case
        initial_alphabet=symbols,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    hf.train_from_iterator(captions, trainer)
    return Tokenizer(_bpe(_merges(hf)[:room], context_length), context_length)


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
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1]]
    if len(merges) < CLIP_MERGES or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{bpe_vocab_gz_path} does not hold CLIP's {CLIP_MERGES} merges")
    return Tokenizer(_bpe(merges, context_length), context_length)


def _bpe(merges: list[tuple[str, str]], context_length: int) -> HFTokenizer:
    symbols = _byte_symbols()
    entries = [*symbols, *(s + WORD_END for s in symbols), *map("".join, merges), START, END]
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    hf = HFTokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix=WORD_END, continuing_subword_prefix="")
    )
    hf.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    hf.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ends = [(token, vocabulary[token]) for token in (START, END)]
    hf.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    hf.add_special_tokens([START, END])
    return hf


def _byte_symbols() -> list[str]:
    """The printable stand-ins for the 256 bytes in GPT-2's order: printable bytes come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (256 + i for i in range(256 - len(printable)))
    return [chr(c) for c in (*printable, *others)]


def _merges(hf: HFTokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(hf.to_str())["model"]["merges"]]
