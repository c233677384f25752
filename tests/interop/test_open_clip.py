"""Folders in open_clip's layout, against open_clip, or transformers with the same weights."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference models need torch (extra `reference`)")
transformers = pytest.importorskip("transformers", reason="the extra `reference` is not installed")

from safetensors.torch import save_file  # noqa: E402

from tclip.interop import load_pretrained  # noqa: E402
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

VISION = {
    "layers": 3,
    "width": 48,
    "head_width": 16,
    "mlp_ratio": 2.5,
    "patch_size": 8,
    "image_size": 24,
}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCAB, "width": 32, "heads": 2, "layers": 2}
MODEL = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def write_folder(folder, tensors, **changes):
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "resize_mode": "squash"}
    config = {"model_cfg": MODEL | changes, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    write_parts(folder, VISION["image_size"])
    return folder


def carrier():
    """A CLIPModel of the architecture MODEL."""
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": EOT,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 120,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 24,
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return randomise(transformers.CLIPModel(config))


def renamed(state, text_prefix):
    """The weights of `carrier` under open_clip's names, as its convert.py does it, backwards."""
    whole = {
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        f"{text_prefix}text_projection": state["text_projection.weight"].T,
        f"{text_prefix}positional_embedding": state[
            "text_model.embeddings.position_embedding.weight"
        ],
        f"{text_prefix}token_embedding.weight": state[
            "text_model.embeddings.token_embedding.weight"
        ],
    }
    for leaf in ("weight", "bias"):
        whole[f"visual.ln_pre.{leaf}"] = state[f"vision_model.pre_layrnorm.{leaf}"]
        whole[f"visual.ln_post.{leaf}"] = state[f"vision_model.post_layernorm.{leaf}"]
        whole[f"{text_prefix}ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
        for tower, prefix, layers in (("vision", "visual.", 3), ("text", text_prefix, 2)):
            for i in range(layers):
                theirs = f"{prefix}transformer.resblocks.{i}"
                hf = f"{tower}_model.encoder.layers.{i}"
                for a, b in (
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                    ("attn.out_proj", "self_attn.out_proj"),
                ):
                    whole[f"{theirs}.{a}.{leaf}"] = state[f"{hf}.{b}.{leaf}"]
                whole[f"{theirs}.attn.in_proj_{leaf}"] = torch.cat(
                    [state[f"{hf}.self_attn.{name}_proj.{leaf}"] for name in "qkv"]
                )
    return whole


@pytest.mark.parametrize("text_prefix", ["", "text."], ids=["CLIP", "CustomTextCLIP"])
def test_names_of_open_clip_carry_the_weights_of_transformers(tmp_path, text_prefix):
    model = carrier()
    buffers = {f"{text_prefix}attn_mask": torch.zeros(CONTEXT, CONTEXT)}
    folder = write_folder(tmp_path, renamed(model.state_dict(), text_prefix) | buffers)
    config, params, tokenizer, preprocess = load_pretrained(folder)
    assert tokenizer.eot_token_id == config.text.eot_token_id
    assert (preprocess.image_size, preprocess.resize) == (24, "squash")
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    images = random_images(24)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        image = model.get_image_features(pixels).pooler_output
        text = model.get_text_features(torch.from_numpy(TOKENS).long()).pooler_output
    assert_same_embeddings(config, params, images, image, text)


LIKE_SIGLIP = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
OPEN_CLIPS = {
    "CLIP": ("CLIP", {}),
    "quick_gelu, another vision": (
        "CLIP",
        {"quick_gelu": True, "vision_cfg": VISION | {"head_width": 8, "patch_size": 12}},
    ),
    "logit_bias": ("CLIP", {"init_logit_bias": -10.0}),
    "CustomTextCLIP": ("CustomTextCLIP", {"text_cfg": TEXT | {"mlp_ratio": 1.5}}),
    "another end of text": (
        "CustomTextCLIP",
        {"text_cfg": TEXT | {"vocab_size": VOCAB + 9, "pool_type": "eos", "eos_id": EOT}},
    ),
    "a text tower like SigLIP's": ("CustomTextCLIP", {"text_cfg": TEXT | LIKE_SIGLIP}),
}


@pytest.mark.parametrize(("kind", "changes"), OPEN_CLIPS.values(), ids=OPEN_CLIPS)
def test_open_clip(tmp_path, kind, changes):
    reason = "open_clip's own modules need open_clip_torch, timm and torchvision"
    library = pytest.importorskip("open_clip.model", reason=reason)
    model = randomise(getattr(library, kind)(**MODEL | changes))
    folder = write_folder(tmp_path, model.state_dict(), **changes)
    config, params, tokenizer, _ = load_pretrained(folder)
    assert tokenizer.eot_token_id == config.text.eot_token_id
    images = random_images(24)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        text = model.encode_text(torch.from_numpy(TOKENS).long())
    assert_same_embeddings(config, params, images, image, text)
    assert float(params["logit_scale"]) == model.logit_scale.item()
    assert ("logit_bias" in params) == (model.logit_bias is not None)


def test_a_folder_that_is_both_is_read_as_transformers_does(tmp_path):
    model = carrier()
    write_folder(tmp_path, renamed(model.state_dict(), ""))
    _, first, _, _ = load_pretrained(tmp_path)
    config = model.config.to_dict() | {"model_type": "clip"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        model.logit_scale += 1
    _, same, _, _ = load_pretrained(tmp_path)
    assert same["logit_scale"] == first["logit_scale"]
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    _, other, _, _ = load_pretrained(tmp_path)
    np.testing.assert_allclose(other["logit_scale"], first["logit_scale"] + 1)
