"""Folders for transformers: what it loads from them, and the exact way back."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tclip.interop import load_pretrained, save_huggingface
from tclip.interop.huggingface_config import DEFAULTS, read_config, write_config
from tclip.interop.json_config import JsonConfig
from tclip.models import CLIPConfig, TextConfig, VisionConfig, init_params, with_layout
from tclip.processing import clip_tokenizer
from tests.helpers import tiny

MERGES = Path(__file__).parents[3] / "shared/data/clip_bpe/bpe_simple_vocab_16e6.txt.gz"
VOCAB = tiny.tokenizer().vocab_size
NO_IDS = {"bos_token_id": None, "eos_token_id": 49407, "pad_token_id": None}
SIGLIP = CLIPConfig(
    embed_dim=32,
    vision=VisionConfig(32, 8, 32, 2, 2, 64, pooling="map"),
    text=TextConfig(16, VOCAB, 24, 2, 2, 48, VOCAB - 1, False, "last", True),
    activation="gelu_tanh",
    layer_norm_eps=1e-6,
    logit_bias=True,
)


def random_params(config):
    """Parameters with every leaf random, of no particular values."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def save(path, config, params, tokenizer=None):
    save_huggingface(path, config, params, tokenizer or tiny.tokenizer(), tiny.PREPROCESS)
    return path


@pytest.mark.parametrize("config", [tiny.config(), SIGLIP], ids=["clip", "siglip"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_way_out_and_back_is_exact(tmp_path, config, scan_layers):
    params = random_params(config)
    asked = dataclasses.replace(config, scan_layers=scan_layers)
    folder = save(tmp_path / "out", asked, with_layout(params, asked))
    loaded_config, loaded, tokenizer, preprocess = load_pretrained(folder)
    assert loaded_config == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    texts = ["a red square", "ünïcode", "a photo! of <|endoftext|> two"]
    np.testing.assert_array_equal(
        tokenizer.encode(texts) != tokenizer.eot_token_id,
        # Padding is the end of text there, zeros here.
        ~np.isin(tiny.tokenizer().encode(texts), (0, tokenizer.eot_token_id)),
    )
    assert dataclasses.replace(preprocess, **vars(tiny.PREPROCESS)) == tiny.PREPROCESS


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_transformers_saves_comes_back_to_it_bit_for_bit(tmp_path, kind):
    torch = pytest.importorskip("torch", reason="needs the extra `reference`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `reference`")
    from tests.helpers.reference_models import randomise, write_parts

    config = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[kind]
    model = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    text = sizes | {"vocab_size": VOCAB, "eos_token_id": VOCAB - 1, "max_position_embeddings": 16}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    first = randomise(model(config(text_config=text, vision_config=vision)))
    first.save_pretrained(tmp_path / "first")
    write_parts(tmp_path / "first", 32)
    ours, params, tokenizer, preprocess = load_pretrained(tmp_path / "first")
    save_huggingface(tmp_path / "second", ours, params, tokenizer, preprocess)
    second = model.from_pretrained(tmp_path / "second")
    assert second.dtype == torch.float32
    weights = first.state_dict()
    assert weights.keys() == second.state_dict().keys()
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for key in ("hidden_act", "layer_norm_eps"):
        for tower in ("text_config", "vision_config"):
            assert getattr(getattr(second.config, tower), key) == getattr(
                getattr(first.config, tower), key
            )


@pytest.mark.parametrize("kind", ["trained", "clip"])
def test_transformers_reads_the_same_ids(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="needs the extra `reference`")
    if kind == "clip" and not MERGES.exists():
        pytest.skip(f"no merges of CLIP at {MERGES}")
    tokenizer = clip_tokenizer(MERGES, 77) if kind == "clip" else tiny.tokenizer()
    text = dataclasses.replace(
        tiny.config().text,
        context_length=tokenizer.context_length,
        vocab_size=tokenizer.vocab_size,
        eot_token_id=tokenizer.eot_token_id,
    )
    config = dataclasses.replace(tiny.config(), text=text)
    folder = save(tmp_path / "out", config, random_params(config), tokenizer)
    texts = ["a photo of a cat!", "it's 21 Ünïcode 🎉", "", "two " * 100, "x <|endoftext|> y!"]
    expected = tokenizer.encode(texts)
    for library in (transformers.AutoTokenizer, transformers.CLIPTokenizer):
        theirs = library.from_pretrained(folder)
        batch = theirs(texts, truncation=True, padding="max_length", return_tensors="np")
        end = np.argmax(expected == tokenizer.eot_token_id, axis=1)
        upto_end = np.arange(tokenizer.context_length) <= end[:, None]
        np.testing.assert_array_equal(batch["attention_mask"], upto_end)
        np.testing.assert_array_equal(batch["input_ids"][upto_end], expected[upto_end])
    settings = transformers.CLIPConfig.from_pretrained(folder).text_config
    assert settings.eos_token_id == settings.pad_token_id == theirs.eos_token_id
    assert settings.bos_token_id == theirs.bos_token_id


def test_configs_come_back_from_their_files():
    for kind in ("clip", "siglip"):
        assert read_config(JsonConfig(write_config(DEFAULTS[kind], NO_IDS), "")) == DEFAULTS[kind]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(SIGLIP, logit_bias=False), "SiglipModel .*logit_bias would be True"),
        (
            dataclasses.replace(SIGLIP, text=TextConfig()),
            "SiglipModel .*text.causal would be False",
        ),
        (
            CLIPConfig(text=TextConfig(pooling="last")),
            "CLIPModel .*text.pooling would be 'eot' instead of 'last'",
        ),
        (
            CLIPConfig(text=TextConfig(eot_token_id=2)),
            "CLIPModel .*text.eot_token_id would be 49407 instead of 2",
        ),
    ],
)
def test_what_transformers_has_no_model_for_is_refused(config, message):
    ids = NO_IDS | {"eos_token_id": config.text.eot_token_id}
    with pytest.raises(ValueError, match=message):
        write_config(config, ids)


def test_a_logit_bias_is_left_out_of_clip_with_a_warning(tmp_path, caplog):
    config = dataclasses.replace(tiny.config(), logit_bias=True)
    params = tiny.params() | {"logit_bias": jnp.float32(-3)}
    with caplog.at_level(logging.WARNING):
        folder = save(tmp_path / "out", config, params)
    assert "logit_bias" in caplog.text
    assert "logit_bias" not in safetensors.numpy.load_file(folder / "model.safetensors")


def test_the_dtype_is_that_of_the_parameters(tmp_path):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params())
    folder = save(tmp_path / "out", tiny.config(), half)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    _, loaded, _, _ = load_pretrained(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(jnp.float32, half))


def test_a_full_disk_leaves_nothing_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "out"
    with tiny.little_disk(20_000), pytest.raises(OSError, match=f"{path}/model.safetensors"):
        save(path, tiny.config(), tiny.params())
    assert not any(tmp_path.iterdir())
    path.mkdir()
    with pytest.raises(FileExistsError, match="out exists; choose another folder"):
        save(path, tiny.config(), tiny.params())
