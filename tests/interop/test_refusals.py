"""Model folders that are broken, hostile, or of models that the encoders cannot be."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tclip.interop import load_pretrained, save_huggingface
from tclip.interop.json_config import JsonConfig
from tclip.interop.open_clip import read_config
from tests.helpers import tiny

FC1 = "vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    save_huggingface(path, tiny.config(), tiny.params(), tiny.tokenizer(), tiny.PREPROCESS)
    load_pretrained(path)
    return path


def edit_config(folder, change):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FC1), rf"model.safetensors: tensor '{FC1}' is missing, .*\[64, 32\]"),
        (lambda t: t.update(x=np.zeros(3)), "model.safetensors: tensor 'x' has no place"),
        (
            lambda t: t.update({FC1: np.ascontiguousarray(t[FC1].T)}),
            rf"'{FC1}' is float32\[32, 64\], expected floats \[64, 32\]",
        ),
        (
            lambda t: t.update({FC1: t[FC1].astype(np.int32)}),
            rf"'{FC1}' is int32\[64, 32\], expected floats",
        ),
        (lambda t: t[FC1].__setitem__((3, 4), np.nan), rf"'{FC1}' holds NaN or infinity"),
        (lambda t: t.update(logit_scale=np.ones(1, np.float32)), r"'logit_scale' is float32\[1\]"),
    ],
)
def test_a_wrong_tensor_is_named(folder, change, message):
    file = folder / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in safetensors.numpy.load_file(file).items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def set_both(config, **values):
    config["text_config"].update(values)
    config["vision_config"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="blip"), "model_type is 'blip', only clip, siglip, siglip2"),
        (lambda c: c.pop("model_type"), "model_type is ''"),
        (lambda c: c.update(model_type=["clip"]), "model_type is .*expected str"),
        (lambda c: c.update(text_config=3), "text_config is 3, expected a group"),
        (lambda c: set_both(c, hidden_act="relu"), "hidden_act is 'relu', only quick_gelu, gelu"),
        (lambda c: c["text_config"].update(hidden_act="gelu"), "that of the image tower 'quick_ge"),
        (lambda c: c["text_config"].update(eos_token_id=[1, 2]), "eos_token_id is .*expected int"),
        (lambda c: c["text_config"].update(eos_token_id=999), "eot_token_id 999 is outside"),
        (lambda c: c["vision_config"].update(num_channels=4), "num_channels has to be 3"),
        (
            lambda c: c["vision_config"].update(hidden_size=32.0),
            "hidden_size is .*expected int",
        ),
        (lambda c: c["vision_config"].update(num_attention_heads=0), "heads 0 is not positive"),
        (lambda c: c["vision_config"].update(image_size=[32, 32]), "image_size is .*expected int"),
        # Neither time nor memory goes into what cannot be.
        (lambda c: c["vision_config"].update(num_hidden_layers=10**12), "layers.2.* is missing"),
        (lambda c: c["text_config"].update(vocab_size=10**9), "is float32.*expected floats"),
        (lambda c: c["text_config"].update(vocab_size=10**30), "no model is of the sizes"),
    ],
)
def test_a_config_that_is_not_read_is_refused(folder, change, message):
    edit_config(folder, change)
    with pytest.raises(ValueError, match=f"config.json.*{message}|model.safetensors.*{message}"):
        load_pretrained(folder)


@pytest.mark.parametrize("data", ["", "[]", "[" * 100_000, '{"model_type": "clip"', "\0"])
def test_a_config_that_is_no_object_is_refused(folder, data):
    (folder / "config.json").write_text(data)
    with pytest.raises(ValueError, match=r"config.json: (no valid JSON|not a JSON object)"):
        load_pretrained(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is not read.*safe_serialization"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither config.json nor open_clip_config.json"):
        load_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_pretrained(tmp_path / "gone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multimodal_cfg": {"width": 8}}, "multimodal_cfg is .*only plain vision transformers"),
        ({"nonscalar_logit_scale": True}, "nonscalar_logit_scale is True"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "vision_cfg: timm_model_name is 'vit_b"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision_cfg: layers is that of a ResNet"),
        ({"vision_cfg": {"ls_init_value": 1e-4}}, "vision_cfg: ls_init_value is 0.0001"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool is True"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg: pool_type is 'avg'"),
        ({"vision_cfg": {"moe": 8}}, "vision_cfg: moe is not known"),
        ({"vision_cfg": {"head_width": 0}}, "head_width 0 does not fit"),
        ({"text_cfg": {"hf_model_name": "roberta"}}, "text_cfg: hf_model_name is 'roberta'"),
        ({"text_cfg": {"pool_type": "first"}}, "pool_type is 'first', only argmax, eos, last"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, "tokenizer_kwargs is"),
        ({"text_cfg": {"width": 100}}, "text: width 100 is not divisible by heads 8"),
        ({"embed_dim": "512"}, "embed_dim is '512', expected int"),
    ],
)
def test_other_models_of_open_clip_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=f"here.*{message}"):
        read_config(JsonConfig(changes, "here"))


def test_what_changes_nothing_is_no_reason_to_refuse():
    plain = read_config(JsonConfig({"embed_dim": 512}, "here"))
    vision = {"patch_dropout": 0.5, "output_tokens": True, "no_ln_pre": None, "qk_norm": False}
    text = {"pad_id": 0, "hf_tokenizer_name": "x", "act_kwargs": {}}
    values = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    assert read_config(JsonConfig(values, "here")) == plain
    # open_clip's own default is ViT-B/16, by exact gelu.
    assert (plain.vision.patch_size, plain.vision.heads, plain.activation) == (16, 12, "gelu")
