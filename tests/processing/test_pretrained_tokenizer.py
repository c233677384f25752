"""Tokenizers of Hugging Face folders, against transformers reading the same folder."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HFTokenizer

from tclip.processing import load_pretrained_tokenizer, load_tokenizer, train_tokenizer

CAPTIONS = ["a small red circle", "two large blue stars", "A Small blue circle, it's red"] * 5
TEXTS = [
    "A red circle!",
    "",
    "  Two   STARS\n(large); blue ",
    "caf\u00e9 cafe\u0301 \u4f60\u597d \U0001f602 ftfy &amp;",
    "a small red circle and two large blue stars, it's red " * 50,
    " " * 5000 + "star",
    "circle" * 5000,
]


def unigram() -> HFTokenizer:
    """In the image of SigLIP's: lower case, no punctuation, "</s>" at the end."""
    hf = HFTokenizer(models.Unigram())
    hf.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    hf.train_from_iterator(CAPTIONS, trainer)
    hf.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return hf


def gemma() -> HFTokenizer:
    """In the image of Gemma's: case and spaces are kept, unknown characters are bytes."""
    hf = HFTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    hf.normalizer = normalizers.Replace(" ", "\u2581")
    hf.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    hf.train_from_iterator(CAPTIONS + [caption.lower() for caption in CAPTIONS], trainer)
    return hf


@pytest.fixture(scope="module")
def transformers():
    reason = "transformers, the reference, is not installed"
    return pytest.importorskip("transformers", reason=reason)


@pytest.fixture(scope="module")
def siglip_folder(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram(), eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip2_folder(transformers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip2")
    model = json.loads(gemma().to_str())["model"]
    transformers.Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def references(transformers, siglip_folder, siglip2_folder):
    return {
        "siglip": transformers.PreTrainedTokenizerFast.from_pretrained(siglip_folder),
        "siglip2": transformers.Siglip2Tokenizer.from_pretrained(siglip2_folder),
    }


@pytest.fixture(scope="module")
def ours(siglip_folder, siglip2_folder):
    folders = {"siglip": siglip_folder, "siglip2": siglip2_folder}
    return {kind: load_pretrained_tokenizer(folder, 64) for kind, folder in folders.items()}


def reference_ids(tokenizer, texts: list[str]) -> np.ndarray:
    return tokenizer(
        texts, padding="max_length", max_length=64, truncation=True, return_tensors="np"
    )["input_ids"]


@pytest.mark.parametrize(
    ("kind", "end", "pad"), [("siglip", "</s>", "</s>"), ("siglip2", "<eos>", "<pad>")]
)
def test_ids_and_padding_equal_transformers(kind, end, pad, references, ours):
    ids = ours[kind].encode(TEXTS)
    assert np.array_equal(ids, reference_ids(references[kind], TEXTS))
    end_id, pad_id = references[kind].convert_tokens_to_ids([end, pad])
    assert ours[kind].eot_token_id == end_id
    assert ids[1].tolist() == [end_id, *(63 * [pad_id])]
    assert ids[4, -1] == end_id
    assert np.array_equal(ours[kind].encode(["A RED dog"]), ours[kind].encode(["a red dog"]))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200) | st.text("aAbBceilrst ,.!\n\u00e9", max_size=200))
def test_any_text_has_the_ids_of_transformers(references, ours, text):
    for kind, tokenizer in ours.items():
        assert np.array_equal(tokenizer.encode([text]), reference_ids(references[kind], [text]))


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_saving_and_pickling_keep_padding_and_end(kind, ours, tmp_path):
    ours = ours[kind]
    ours.save(tmp_path / "tokenizer.json")
    for again in (
        load_tokenizer(tmp_path / "tokenizer.json", 64),
        pickle.loads(pickle.dumps(ours)),
    ):
        assert again.hf.to_str() == ours.hf.to_str()
        assert again.eot_token_id == ours.eot_token_id
        assert np.array_equal(again.encode(TEXTS), ours.encode(TEXTS))
    shorter = load_tokenizer(tmp_path / "tokenizer.json", 8)
    assert np.array_equal(shorter.encode(["red"])[0], ours.encode(["red"])[0, :8])


def write_folder(folder, hf: HFTokenizer, **config) -> None:
    hf.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_gemma_files_of_siglip_2_are_lower_cased_and_ended_as_they_say(tmp_path):
    # SigLIP 2's folders at a fixed resolution: Gemma's tokenizer.json, which does neither.
    write_folder(
        tmp_path,
        gemma(),
        tokenizer_class="GemmaTokenizer",
        do_lower_case=True,
        add_bos_token=False,
        add_eos_token=True,
        eos_token={"content": "<eos>", "special": True},
        pad_token="<pad>",
    )
    ours = load_pretrained_tokenizer(tmp_path, 10)
    plain = gemma().encode("a red circle").ids
    assert ours.encode(["A Red CIRCLE"])[0].tolist() == [*plain, 1, *(9 - len(plain)) * [0]]


def test_padding_comes_from_the_special_tokens_map_and_may_be_on_the_left(tmp_path):
    write_folder(tmp_path, unigram(), padding_side="left")
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<unk>"}}')
    ours = load_pretrained_tokenizer(tmp_path, 12)
    assert ours.encode([""])[0].tolist() == 11 * [2] + [1]
    assert ours.eot_token_id == 1


def test_a_folder_without_settings_is_padded_as_its_tokenizer_json_says(tmp_path):
    trained = train_tokenizer(CAPTIONS, 12, 600)
    trained.save(tmp_path / "tokenizer.json")
    again = load_pretrained_tokenizer(tmp_path, 12)
    assert again.hf.to_str() == trained.hf.to_str()


def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path):
    def refused(error, match):
        with pytest.raises(error, match=match):
            load_pretrained_tokenizer(tmp_path, 12)

    (tmp_path / "spiece.model").write_bytes(b"sentencepiece")
    refused(FileNotFoundError, r"SentencePiece .* tokenizer\.json")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    refused(ValueError, r"vocab\.json and merges\.txt are not a CLIP tokenizer .*startoftext")
    (tmp_path / "vocab.json").write_text("{")
    refused(ValueError, r"vocab\.json and merges\.txt are not a CLIP tokenizer")
    for config, match in (
        ({"pad_token": "<none>"}, "pad_token '<none>' is not in the vocabulary"),
        ({"pad_token": 3}, "pad_token is 3, not a token"),
        ({"padding_side": "top"}, "padding_side is 'top'"),
        ({"add_eos_token": True, "eos_token": "<end>"}, "no token '<end>'"),
        ({"add_eos_token": False}, "ends a text with no special token"),
    ):
        write_folder(tmp_path, unigram(), **config)
        refused(ValueError, f"{tmp_path.name}: .*{match}")
    write_folder(tmp_path, HFTokenizer(models.Unigram([("a", 0.0)])))
    refused(ValueError, "cannot encode text .*unk_id")
    broken = json.loads(unigram().to_str())
    broken["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    refused(ValueError, "cannot encode text|not a tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    refused(ValueError, r"tokenizer_config\.json: no valid JSON")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refused(ValueError, r"tokenizer_config\.json: not a JSON object")
    shutil.copy(tmp_path / "spiece.model", tmp_path / "tokenizer.json")
    refused(ValueError, r"not a tokenizer\.json")
