"""Folders that transformers writes, against transformers' own embeddings."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference models need torch (extra `reference`)")
transformers = pytest.importorskip("transformers", reason="the extra `reference` is not installed")

from safetensors.torch import save_file  # noqa: E402

from tclip.interop import load_pretrained  # noqa: E402
from tclip.interop.huggingface_config import read_config  # noqa: E402
from tclip.interop.json_config import JsonConfig  # noqa: E402
from tclip.models import logit_scale  # noqa: E402
from tests.helpers.reference_models import (  # noqa: E402
    CONTEXT,
    EOT,
    TOKENS,
    VOCAB,
    assert_same_embeddings,
    random_images,
    randomise,
    write_parts,
)

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": EOT,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 16,
}


def clip_model(text=(), vision=(), **top):
    config = transformers.CLIPConfig(
        text_config=TEXT | dict(text), vision_config=VISION | dict(vision), **top
    )
    return randomise(transformers.CLIPModel(config))


def siglip_model(text=(), vision=()):
    config = transformers.SiglipConfig(
        text_config=TEXT | {"projection_size": 48} | dict(text),
        vision_config=VISION | dict(vision),
    )
    return randomise(transformers.SiglipModel(config))


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    write_parts(folder, getattr(model.config.vision_config, "image_size", 32))
    return folder


def assert_reproduces(folder, model):
    config, params, tokenizer, preprocess = load_pretrained(folder)
    assert tokenizer.eot_token_id == config.text.eot_token_id == EOT
    size = config.vision.image_size
    assert preprocess.image_size == size
    images = random_images(size)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        text = model.get_text_features(torch.from_numpy(TOKENS).long()).pooler_output
        image = model.get_image_features(pixels).pooler_output
    assert_same_embeddings(config, params, images, image, text)
    assert float(params["logit_scale"]) == model.logit_scale.item()
    if config.logit_bias:
        assert float(params["logit_bias"]) == model.logit_bias.item()


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Siglip2"])
def test_what_a_config_leaves_out_is_the_default_of_transformers(kind):
    default = getattr(transformers, f"{kind}Config")().to_dict()
    left_out = {"model_type": kind.lower()}
    assert read_config(JsonConfig(default, "")) == read_config(JsonConfig(left_out, ""))


DEEP = {"num_hidden_layers": 12}
BOTH = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
CLIPS = {
    "OpenAI's legacy end of text": {"text": {"eos_token_id": 2}, "projection_dim": 24},
    "LAION's gelu": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "an end of text before the last entry": {"text": {"vocab_size": VOCAB + 40}},
    "other heads, norms and small patches": {
        "text": BOTH | {"num_attention_heads": 8},
        "vision": BOTH | {"num_attention_heads": 6, "patch_size": 8},
        "projection_dim": 64,
    },
    "gelu by tanh, pixels left over": {
        "text": {"hidden_act": "gelu_new"},
        "vision": {"hidden_act": "gelu_new", "image_size": 37, "patch_size": 9},
    },
    "as deep as ViT-B/32": {"text": DEEP, "vision": DEEP},
}


@pytest.mark.parametrize("options", CLIPS.values(), ids=CLIPS)
def test_clip(tmp_path, options):
    model = clip_model(**options)
    assert_reproduces(save(model, tmp_path), model)


def test_clip_in_shards(tmp_path):
    model = clip_model()
    save(model, tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_reproduces(tmp_path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clip_in_half_precision(tmp_path, dtype):
    model = clip_model().to(dtype)
    assert_reproduces(save(model, tmp_path), model.float())


def test_clip_with_legacy_keys_and_buffers(tmp_path):
    # As LAION's config.json has them: sections where keys are left out decide about all keys.
    model = clip_model({"eos_token_id": 2})
    save(model, tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    for name in ("text", "vision"):
        section = values.pop(f"{name}_config")
        values[f"{name}_config_dict"] = {k: v for k, v in section.items() if "type" not in k}
        values[f"{name}_config"] = {"hidden_size": 7, "layer_norm_eps": 0.5}
        del values[f"{name}_config_dict"]["hidden_act"]
    file.write_text(json.dumps(values))
    tensors = model.state_dict() | {
        "text_model.embeddings.position_ids": torch.arange(CONTEXT)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert transformers.CLIPConfig.from_pretrained(tmp_path).text_config.hidden_size == 32
    assert_reproduces(tmp_path, model)


def test_the_processor_that_transformers_writes_is_read(tmp_path):
    model = clip_model()
    folder = save(model, tmp_path / "first")
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "second")
    model.save_pretrained(tmp_path / "second")
    first, second = (load_pretrained(tmp_path / name) for name in ("first", "second"))
    assert second[3] == first[3]
    texts = ["a red square", "a photo of two"]
    ids = [tokenizer.encode(texts) for _, _, tokenizer, _ in (first, second)]
    end = np.argmax(ids[0] == EOT, axis=1)
    upto_end = np.arange(CONTEXT) <= end[:, None]
    np.testing.assert_array_equal(ids[1][upto_end], ids[0][upto_end])


SIGLIPS = {
    "the same width": {"text": {"hidden_size": 48, "num_attention_heads": 3}},
    "another width of the text": {},
    "pixels left over, as in so400m": {"vision": {"image_size": 38, "patch_size": 9}},
}


@pytest.mark.parametrize("options", SIGLIPS.values(), ids=SIGLIPS)
def test_siglip(tmp_path, options):
    model = siglip_model(**options)
    assert_reproduces(save(model, tmp_path), model)


def test_siglip2_for_images_of_any_shape_at_its_square_grid(tmp_path):
    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    config = transformers.Siglip2Config(
        text_config=TEXT | {"projection_size": 48},
        vision_config=vision | {"num_patches": 9, "patch_size": 8},
    )
    model = randomise(transformers.Siglip2Model(config))
    save(model, tmp_path)
    processor = {
        "image_processor_type": "Siglip2ImageProcessorFast",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_num_patches": 9,
        "patch_size": 8,
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))

    config, params, _, preprocess = load_pretrained(tmp_path)
    assert (preprocess.image_size, preprocess.resize) == (24, "squash")
    images = random_images(24)
    patches = images.reshape(4, 3, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(4, 9, 192)
    with torch.no_grad():
        text = model.get_text_features(torch.from_numpy(TOKENS).long()).pooler_output
        image = model.get_image_features(
            torch.from_numpy(patches),
            pixel_attention_mask=torch.ones(4, 9, dtype=torch.int32),
            spatial_shapes=torch.full((4, 2), 3),
        ).pooler_output
    assert_same_embeddings(config, params, images, image, text)
    assert float(params["logit_bias"]) == model.logit_bias.item()
    assert math.isqrt(params["vision"]["position_embedding"].shape[0]) == 3


def test_a_large_logit_scale_of_siglip_is_kept(tmp_path):
    model = siglip_model()
    with torch.no_grad():
        model.logit_scale.fill_(4.765)
    _, params, _, _ = load_pretrained(save(model, tmp_path))
    np.testing.assert_allclose(logit_scale(params), math.exp(4.765), rtol=1e-6)
