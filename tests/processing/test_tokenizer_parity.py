"""CLIP's tokenizer against transformers' CLIPTokenizer on real, random and very long text."""

import gzip
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.processing import clip_tokenizer, load_pretrained_tokenizer

transformers = pytest.importorskip(
    "transformers", reason="transformers, the reference, is not installed"
)

DATA = Path(__file__).parents[3] / "shared/data"
MERGES = DATA / "clip_bpe/bpe_simple_vocab_16e6.txt.gz"
pytestmark = pytest.mark.skipif(not MERGES.exists(), reason=f"{MERGES} is absent")

START, END = "<|startoftext|>", "<|endoftext|>"
# Joined at random, up to 24 of them.
FRAGMENTS = re.findall(
    r"\S+",
    """
    a I photo DOG It's DON'T I'M we'LL they'VE 's 'S 't 'RE 've 'd '' ` " ... !!! -- _ #tag @user
    http://a.b/c?d=e&f &amp; &lt;b&gt; &#39; &amp;quot; 1 12 3.14 1,000 ½ Ⅷ ² ١٢ <| |> <|ENDOFTEXT|>
    <|endoftext startoftext|> 😂 😂😂😂😂 👩 👩‍👩‍👧 🏳️‍🌈 🇩🇪 👍🏽 ❤️ é e\u0301 ñ n\u0303 A\u030a
    J\u030c \u0345 \u0301\u0301 İ \u0131 ß ẞ ŉ ﬁ ΟΔΟΣ ς Ω \u212b 你好 日本語 カ\u3099 한국어
    \u1112\u1161\u11ab हिन्दी العربية עברית ไทย Привет Ελλάδα \U0001d49c 𐍈 ftfyâ€™s Ã©
    \x00 \x07 \x1b \x7f
    \xad \u200b \u200d \ufe0f \ufeff \ufffd \U000e0067 \U0010ffff
    """,
)
SPACES = [*" \n\t\r\x0b\x1c\x85\xa0\u180e\u2028\u3000", "  ", "\r\n"]


def captions() -> list[str]:
    texts = set()
    for path in sorted((DATA / "cifar10_train").glob("*.tar")):
        with tarfile.open(path) as shard:
            texts |= {shard.extractfile(m).read() for m in shard if m.name.endswith(".txt")}
    return sorted(text.decode() for text in texts)


def random_texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    pieces = [*FRAGMENTS, *SPACES, START, END]

    def character(stop: int) -> str:
        code = rng.randrange(stop)
        return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)

    joined = ["".join(rng.choices(pieces, k=rng.randrange(1, 25))) for _ in range(5000)]
    for stop in (0x80, 0x100, 0x3000, 0x110000):
        joined += [
            "".join(character(stop) for _ in range(rng.randrange(1, 40))) for _ in range(1500)
        ]
    return joined


def long_texts(seed: int) -> list[str]:
    """Up to 80,000 characters, where what comes late may matter early."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        *(space * 20_000 + "a dog" for space in SPACES),
        *(piece * 3001 for piece in FRAGMENTS),
        *("ab" * 20_000 + end for end in ("", "a", "c", "é", "!", " c")),
        *("".join(rng.choices(letters[:n], k=60_000)) for n in (1, 2, 3, 26)),
        "".join(rng.choices(["one", "word", "after", " ", "\n"], k=9000)),
        " ".join(rng.choices(FRAGMENTS, k=9000)),
        "a" + "\u0301" * 50_000,
    ]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*captions(), *random_texts(0)]


@pytest.fixture(scope="module")
def clip77():
    return clip_tokenizer(MERGES, 77)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """vocab.json and merges.txt as OpenAI published them, made of the list of merges alone."""
    folder = tmp_path_factory.mktemp("legacy")
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:48895]
    printable = [c for c in map(chr, range(0x21, 0x100)) if c.isprintable()]
    symbols = [*printable, *(chr(0x100 + i) for i in range(256 - len(printable)))]
    entries = [*symbols, *(s + "</w>" for s in symbols)]
    entries += [*(merge.replace(" ", "") for merge in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": END, "do_lower_case": True})
    )
    return folder


def reference(folder: Path, **kwargs):
    hf = transformers.CLIPTokenizer.from_pretrained(folder, **kwargs)
    assert len(hf) == 49408

    def encode(texts: list[str]) -> np.ndarray:
        out = hf(texts, padding="max_length", max_length=77, truncation=True, return_tensors="np")
        return np.where(out["attention_mask"], out["input_ids"], 0)

    return encode


@pytest.fixture(scope="module")
def as_text(files):
    """The reference told to take special tokens that are spelt out in a text as text."""
    return reference(files, split_special_tokens=True)


def assert_equal_ids(texts: list[str], ours: np.ndarray, theirs: np.ndarray) -> None:
    wrong = np.flatnonzero((ours != theirs).any(axis=1))
    assert not wrong.size, [texts[i][:200] for i in wrong[:5]]


def test_ids_equal_the_reference_on_ten_thousand_texts(texts, clip77, as_text):
    assert len(set(texts)) > 10_000
    assert_equal_ids(texts, clip77.encode(texts), as_text(texts))


def test_ids_equal_the_reference_as_it_comes_but_for_spelt_special_tokens(texts, clip77, files):
    # By default the reference reads "<|endoftext|>" in a text as the token itself, and a caption
    # could end itself early; tclip never does. That is the one difference.
    plain = [text for text in texts if START not in text and END not in text]
    assert len(set(plain)) > 10_000
    as_it_comes = reference(files)
    assert_equal_ids(plain, clip77.encode(plain), as_it_comes(plain))
    assert as_it_comes([END])[0, :3].tolist() == [49406, 49407, 49407]
    assert (clip77.encode([END]) == 49407).sum() == 1


def test_ids_equal_the_reference_on_very_long_texts(clip77, as_text):
    texts = long_texts(0)
    assert_equal_ids(texts, clip77.encode(texts), as_text(texts))


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=300))
def test_ids_equal_the_reference_on_any_text(clip77, as_text, text):
    assert_equal_ids([text], clip77.encode([text]), as_text([text]))


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_a_saved_folder_gives_the_same_ids_padded_as_it_says(form, texts, clip77, files, tmp_path):
    folder = files
    if form == "tokenizer.json":
        transformers.CLIPTokenizer.from_pretrained(files).save_pretrained(tmp_path)
        folder = tmp_path
    assert (folder / form).is_file()
    ours = load_pretrained_tokenizer(folder, 77)
    assert (ours.vocab_size, ours.eot_token_id) == (49408, 49407)
    expected = clip77.encode(texts)
    after_end = np.cumsum(expected == 49407, axis=1) > 0
    assert_equal_ids(texts, ours.encode(texts), np.where(after_end, 49407, expected))
