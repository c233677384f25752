"""The tokenizer against CLIP's published token ids and a plain BPE written out here."""

import gzip
import itertools
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.processing import clip_tokenizer, load_tokenizer, train_tokenizer

MERGES = Path(__file__).parents[3] / "shared/data/clip_bpe/bpe_simple_vocab_16e6.txt.gz"
needs_merges = pytest.mark.skipif(not MERGES.exists(), reason=f"{MERGES} is absent")


@pytest.fixture(scope="module")
def clip77():
    return clip_tokenizer(MERGES, 77)


@pytest.fixture(scope="module")
def ranks():
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1:48895]
    return {tuple(line.split()): rank for rank, line in enumerate(lines)}


def plain_bpe(word, ranks):
    """Merges the best-ranked neighbours until none is left; `word` is ASCII."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, 10**9))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == best:
                merged.append("".join(best))
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    return parts


@needs_merges
def test_clip_has_its_published_size_and_ids(clip77):
    assert (clip77.vocab_size, clip77.eot_token_id) == (49408, 49407)
    ids = clip77.encode(["a photo of a cat", "A  Photo of\na CAT ", "a diagram"])
    assert ids.dtype == np.int32
    assert ids.shape == (3, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert not ids[0, 7:].any()
    assert np.array_equal(ids[0], ids[1])
    assert ids[2, :4].tolist() == [49406, 320, 22697, 49407]


@needs_merges
@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_clip_ids_equal_a_plain_bpe_on_ascii(clip77, ranks, text):
    numbers = {"".join(pair): rank for pair, rank in ranks.items()}
    pieces = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())
    expected = [49406]
    for piece in pieces:
        for part in plain_bpe(piece, ranks):
            if len(part) == 1:
                expected.append(ord(part) - ord("!"))
            elif len(part) == 5 and part.endswith("</w>"):
                expected.append(256 + ord(part[0]) - ord("!"))
            else:
                expected.append(512 + numbers[part])
    expected = [*expected[:76], 49407]
    assert clip77.encode([text])[0, : len(expected)].tolist() == expected


@needs_merges
def test_accents_and_other_scripts_are_bytes_never_lost(clip77):
    composed, decomposed = clip77.encode(["caf\u00e9", "cafe\u0301"])  # NFC makes them one
    assert np.array_equal(composed, decomposed)
    assert (clip77.encode(["\u4f60\u597d"])[0] > 0).sum() > 3


CAPTIONS = ["a small red circle", "two large blue stars", "A Small blue circle, it's red"] * 5


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(CAPTIONS, context_length=12, vocab_size=600)


def test_trained_words_are_single_tokens_and_lower_cased(trained):
    ids = trained.encode(["a small red circle", "A SMALL Red circle"])
    assert np.array_equal(ids[0], ids[1])
    assert ids[0].argmax() == 5  # start, four words, end
    assert trained.eot_token_id == ids.max() == trained.vocab_size - 1
    assert trained.vocab_size <= 600


def test_training_is_deterministic_and_respects_the_vocabulary_size(trained):
    assert train_tokenizer(CAPTIONS, 12, 600).hf.to_str() == trained.hf.to_str()
    assert train_tokenizer(CAPTIONS, 12, 520).vocab_size == 520
    assert train_tokenizer(CAPTIONS, 12, 514).vocab_size == 514
    with pytest.raises(ValueError, match="at least 514"):
        train_tokenizer(CAPTIONS, 12, 513)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_gives_one_start_one_end_and_zero_padding(trained, text):
    (row,) = trained.encode([text])
    end = int(row.argmax())
    assert row[0] == trained.vocab_size - 2
    assert row[end] == trained.eot_token_id
    assert (row == trained.eot_token_id).sum() == 1
    assert (row == row[0]).sum() == 1
    assert not row[end + 1 :].any()


def test_spelt_out_special_tokens_are_ordinary_text(trained):
    (row,) = trained.encode(["red<|endoftext|> circle"])
    assert (row == trained.eot_token_id).sum() == 1
    assert row.argmax() > 3


def test_long_captions_keep_their_beginning_and_the_end_token(trained):
    long = "a small red circle " * 600
    (row,) = trained.encode([long[:10_000]])
    assert row[-1] == trained.eot_token_id
    assert np.array_equal(row[:5], trained.encode(["a small red circle"])[0, :5])


def test_save_load_and_pickle_keep_the_ids(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    assert "\n" not in path.read_text()
    texts = ["a small red circle", "", "unknown words \u00a9 <|startoftext|>"]
    expected = trained.encode(texts)
    assert np.array_equal(load_tokenizer(path, 12).encode(texts), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(trained)).encode(texts), expected)
    assert load_tokenizer(path, 20).encode(texts).shape == (3, 20)
    assert trained.encode([]).shape == (0, 12)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "tokenizer.json", 12)
    broken = tmp_path / "broken.json"
    broken.write_text('{"version": 1')
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        load_tokenizer(broken, 12)
    with pytest.raises(FileNotFoundError, match="no BPE merges"):
        clip_tokenizer(tmp_path / "none.gz", 77)
    with pytest.raises(ValueError, match="not a gzipped list"):
        clip_tokenizer(broken, 77)
    with gzip.open(tmp_path / "few.gz", "wt") as file:
        file.write("header\na b\n")
    with pytest.raises(ValueError, match="48894 merges"):
        clip_tokenizer(tmp_path / "few.gz", 77)
