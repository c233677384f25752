"""Configurations, parameter counts, initialisation and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tclip.config import build, to_dict
from tclip.models import (
    ARCHITECTURES,
    CLIP,
    CLIPConfig,
    ClipPolicy,
    TextConfig,
    VisionConfig,
    architecture,
    bound_logit_scale,
    init_params,
    logit_bias,
    logit_scale,
)
from tclip.quant import ternary_paths

CONFIG = CLIPConfig(
    embed_dim=96,
    vision=VisionConfig(image_size=48, patch_size=8, width=128, layers=4, heads=4, mlp_dim=512),
    text=TextConfig(
        context_length=32,
        vocab_size=1024,
        width=128,
        layers=4,
        heads=4,
        mlp_dim=512,
        eot_token_id=1023,
    ),
)


def shapes_of(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def initialise(config):
    return jax.jit(lambda key: init_params(config, key))(jax.random.key(3))


def flatten(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


# Published: OpenAI's release of CLIP and open_clip's table of model profiles.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ViT-B/32", 151_277_313),
        ("ViT-B/16", 149_620_737),
        ("ViT-L/14", 427_616_513),
        ("ViT-L/14@336", 427_944_193),
        ("ViT-H/14", 986_109_441),
    ],
)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_parameter_counts_are_the_published_ones(name, count, scan_layers):
    config = dataclasses.replace(architecture(name), scan_layers=scan_layers)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(config))) == count


SIGLIP_B16 = CLIPConfig(
    embed_dim=768,
    vision=VisionConfig(patch_size=16, pooling="map"),
    text=TextConfig(64, 32_000, 768, 12, 12, 3072, 1, False, "last", True),
    activation="gelu_tanh",
    layer_norm_eps=1e-6,
    logit_bias=True,
)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_siglip_has_the_published_parameter_count(scan_layers):
    shapes = shapes_of(dataclasses.replace(SIGLIP_B16, scan_layers=scan_layers))
    # Of google/siglip-base-patch16-224.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 203_155_970


def test_the_attention_pool_of_siglip_is_ternary_with_the_blocks():
    shapes = shapes_of(SIGLIP_B16)
    kernels = {path for path, leaf in flatten(shapes).items() if leaf.ndim == 2}
    kernels -= {"vision/position_embedding", "text/position_embedding"}
    ends = {"vision/patch_embed/kernel", "text/token_embedding/embedding"}
    assert set(ternary_paths(shapes, ClipPolicy(policy="all"))) == kernels
    assert set(ternary_paths(shapes, ClipPolicy(policy="blocks+proj"))) == kernels - ends
    blocks = set(ternary_paths(shapes, ClipPolicy(policy="blocks")))
    assert blocks == kernels - ends - {"text/projection/kernel"}
    assert "vision/attn_pool/attn/q_proj/kernel" in blocks
    assert "vision/attn_pool/mlp/fc1/kernel" in ternary_paths(shapes, ClipPolicy("ffn"))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_policy_all_covers_nearly_all_of_vit_b_16(scan_layers):
    config = dataclasses.replace(ARCHITECTURES["ViT-B/16"], scan_layers=scan_layers)
    shapes = shapes_of(config)
    leaves = flatten(shapes)
    ternary = ternary_paths(shapes, ClipPolicy(policy="all"))
    covered = sum(leaves[path].size for path in ternary)
    assert covered / sum(leaf.size for leaf in leaves.values()) >= 0.989


def test_configs_written_before_siglip_still_build():
    values = to_dict(ARCHITECTURES["tiny"])
    for tower, new in (
        ("vision", ("pooling",)),
        ("text", ("causal", "pooling", "projection_bias")),
    ):
        values[tower] = {k: v for k, v in values[tower].items() if k not in new}
    assert build(CLIPConfig, values) == ARCHITECTURES["tiny"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_survive_the_config_door(name):
    config = ARCHITECTURES[name]
    assert build(CLIPConfig, to_dict(config)) == config


def test_parameter_paths_and_shapes():
    config = dataclasses.replace(CONFIG, logit_bias=True)
    leaves = {path: leaf.shape for path, leaf in flatten(shapes_of(config)).items()}
    block = {
        "ln_1/scale": (128,),
        "ln_1/bias": (128,),
        "ln_2/scale": (128,),
        "ln_2/bias": (128,),
        "mlp/fc1/kernel": (128, 512),
        "mlp/fc1/bias": (512,),
        "mlp/fc2/kernel": (512, 128),
        "mlp/fc2/bias": (128,),
    }
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block |= {f"attn/{name}/kernel": (128, 128), f"attn/{name}/bias": (128,)}
    expected = {
        "vision/patch_embed/kernel": (192, 128),
        "vision/class_embedding": (128,),
        "vision/position_embedding": (37, 128),
        "vision/ln_pre/scale": (128,),
        "vision/ln_pre/bias": (128,),
        "vision/ln_post/scale": (128,),
        "vision/ln_post/bias": (128,),
        "vision/projection/kernel": (128, 96),
        "text/token_embedding/embedding": (1024, 128),
        "text/position_embedding": (32, 128),
        "text/ln_final/scale": (128,),
        "text/ln_final/bias": (128,),
        "text/projection/kernel": (128, 96),
        "logit_scale": (),
        "logit_bias": (),
    }
    for tower in ("vision", "text"):
        expected |= {
            f"{tower}/blocks_{i}/{path}": shape for i in range(4) for path, shape in block.items()
        }
    assert leaves == expected

    scanned = flatten(shapes_of(dataclasses.replace(config, scan_layers=True)))
    blocks = {path: leaf.shape for path, leaf in scanned.items() if "/blocks/" in path}
    assert blocks == {
        f"{tower}/blocks/{path}": (4, *shape)
        for tower in ("vision", "text")
        for path, shape in block.items()
    }


@pytest.mark.parametrize("scan_layers", [False, True])
def test_initialisation_has_the_published_deviations(scan_layers):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers)
    params = flatten(initialise(config))
    width, layers = 128, 4
    residual = (2 * layers * width) ** -0.5
    deviations = {
        "attn/q_proj/kernel": width**-0.5,
        "attn/v_proj/kernel": width**-0.5,
        "attn/out_proj/kernel": residual,
        "mlp/fc1/kernel": (2 * width) ** -0.5,
        "mlp/fc2/kernel": residual,
        "projection/kernel": width**-0.5,
        "text/token_embedding/embedding": 0.02,
        "text/position_embedding": 0.01,
        "vision/position_embedding": width**-0.5,
        "vision/patch_embed/kernel": (3 * 192) ** -0.5,
    }
    for suffix, deviation in deviations.items():
        matching = [leaf for path, leaf in params.items() if path.endswith(suffix)]
        assert matching
        for leaf in matching:
            np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.05)
    assert np.max(np.abs(params["vision/patch_embed/kernel"])) <= 192**-0.5
    for path, leaf in params.items():
        if path.endswith("bias"):
            assert not np.any(leaf)
    if scan_layers:
        first, second = params["text/blocks/mlp/fc1/kernel"][:2]
        assert not np.array_equal(first, second)


def test_logit_scale_starts_at_clips_temperature_and_is_bounded():
    params = initialise(ARCHITECTURES["tiny"])
    np.testing.assert_allclose(logit_scale(params), 1 / 0.07, rtol=1e-6)
    assert logit_bias(params) == 0.0
    gradient = jax.grad(lambda x, sign: sign * logit_scale({"logit_scale": x}))
    np.testing.assert_allclose(gradient(2.0, 1.0), math.exp(2.0), rtol=1e-6)
    np.testing.assert_allclose(gradient(2.0, -1.0), -math.exp(2.0), rtol=1e-6)
    bounded = bound_logit_scale({"logit_scale": jnp.float32(5.0)})
    np.testing.assert_allclose(logit_scale(bounded), 100.0, rtol=1e-6)
    assert bound_logit_scale({"logit_scale": jnp.float32(2.0)})["logit_scale"] == 2.0


def test_logit_bias_is_a_parameter_on_request():
    config = dataclasses.replace(ARCHITECTURES["tiny"], logit_bias=True)
    assert logit_bias(initialise(config)) == -10.0


def test_the_logit_scale_of_siglip_is_not_bounded():
    params = {"logit_scale": jnp.float32(5.0), "logit_bias": jnp.float32(-10.0)}
    np.testing.assert_allclose(logit_scale(bound_logit_scale(params)), math.exp(5.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: architecture("ViT-B/23"), r"'ViT-B/23'.*ViT-B/32.*tiny"),
        (lambda: VisionConfig(width=770), "vision: width 770 .* heads 12"),
        (lambda: TextConfig(heads=7), "text: width 512 .* heads 7"),
        (lambda: TextConfig(heads=0), "text: heads 0"),
        (lambda: VisionConfig(patch_size=225), "patch_size 225 .* image_size 224"),
        (lambda: VisionConfig(patch_size=0), "patch_size 0"),
        (lambda: VisionConfig(pooling="avg"), "vision pooling 'avg'.*cls, map"),
        (lambda: TextConfig(pooling="first"), "text pooling 'first'.*eot, last"),
        (
            lambda: CLIPConfig(vision=VisionConfig(pooling="map")),
            "embed_dim 512 has to be the width of the image tower, 768",
        ),
        (lambda: TextConfig(eot_token_id=49408), "eot_token_id 49408 .* 49408 tokens"),
        (lambda: TextConfig(context_length=0), "context_length 0"),
        (lambda: CLIPConfig(activation="relu"), "activation 'relu'.*quick_gelu, gelu"),
        (lambda: CLIPConfig(remat="some"), "remat 'some'.*none, full, dots"),
        (lambda: CLIPConfig(dtype="float16"), "dtype 'float16'.*float32, bfloat16"),
        (lambda: CLIPConfig(embed_dim=0), "embed_dim 0"),
    ],
)
def test_bad_configs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("method", "shape", "dtype", "hidden", "message"),
    [
        ("encode_image", (2, 48, 48, 3), "float32", (), r"\[batch, 32, 32, 3\].*\(2, 48, 48, 3\)"),
        ("encode_image", (32, 32, 3), "float32", (), r"\(32, 32, 3\)"),
        ("encode_image", (2, 32, 32, 3), "uint8", (), "floats, got uint8"),
        ("encode_image", (2, 32, 32, 3), "float32", (2,), r"hidden layer 2: .*0\.\.1"),
        ("encode_text", (2, 17), "int32", (), "17 .* context length 16"),
        ("encode_text", (16,), "int32", (), r"\[batch, length\]"),
        ("encode_text", (2, 16), "float32", (), "integers"),
        ("encode_text", (2, 16), "int32", (-1,), "hidden layer -1"),
    ],
)
def test_bad_inputs_are_refused(method, shape, dtype, hidden, message):
    config = ARCHITECTURES["tiny"]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda params, x: CLIP(config).apply({"params": params}, x, hidden, method=method),
            shapes_of(config),
            jax.ShapeDtypeStruct(shape, dtype),
        )
