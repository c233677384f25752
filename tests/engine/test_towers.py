"""Whole towers of the engine against tclip's JAX path, for every architecture and group."""

import dataclasses
import functools
import subprocess
import sys

import jax
import numpy as np
import pytest

import tclip
from tclip import engine, loading
from tclip.models import ClipPolicy, init_params
from tclip.packed import save_packed
from tclip.quant import init_quant, quantize_params
from tests.helpers import tiny


def siglip(config):
    return dataclasses.replace(
        config,
        activation="gelu_tanh",
        layer_norm_eps=1e-6,
        logit_bias=True,
        # Pixels are left over: 32 = 4 * 7 + 4.
        vision=dataclasses.replace(config.vision, pooling="map", patch_size=7),
        text=dataclasses.replace(config.text, causal=False, pooling="last", projection_bias=True),
    )


def odd_sizes(config):
    return dataclasses.replace(
        config,
        embed_dim=44,
        activation="gelu",
        vision=dataclasses.replace(config.vision, width=60, heads=3, mlp_dim=72),
        text=dataclasses.replace(config.text, width=36, heads=3, mlp_dim=52, causal=False),
    )


def scanned(config):
    return dataclasses.replace(config, scan_layers=True)


MODELS = {
    "channel": (lambda config: config, "all", "channel"),
    "tensor": (lambda config: config, "all", "tensor"),
    "blocks": (lambda config: config, "blocks", "block:16"),
    "blocks that end within a word": (lambda config: config, "all", "block:4"),
    "float16 projections": (lambda config: config, "ffn", "channel"),
    "siglip": (siglip, "all", "channel"),
    "scan": (scanned, "all", "channel"),
    "odd sizes": (odd_sizes, "all", "channel"),
}
TEXTS = ["a red square", "", "a photo of a green square " * 9, "blue"]


def save(folder, change, preset, group, float_dtype="float16"):
    config = change(tiny.config())
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(1))
    # Biases that are not zero, norms that are not one.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: w + 0.05 * rng.normal(size=w.shape).astype(w.dtype), params)
    policy = ClipPolicy(policy=preset, group=group, estimator="optimal")
    packed = quantize_params(params, init_quant(params, policy), policy, dtype=np.float32)
    save_packed(folder, config, packed, tiny.tokenizer(), tiny.PREPROCESS, float_dtype)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("packed") / "model", *MODELS[request.param])


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("packed") / "model", *MODELS["channel"], "float32")


def pixels(count):
    return np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype(np.float32)


def least_cosine(a, b):
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-5)
    return np.einsum("bd,bd->b", a.astype(np.float64), b).min()


@pytest.mark.parametrize(("activations", "cosine"), [("native", 0.99999), ("int8", 0.9999)])
def test_embeddings_are_those_of_jax(folder, activations, cosine):
    ours, jaxs = engine.load(folder, activations), loading.load(folder, activations)
    # 31 images are more than the engine encodes at a time.
    images = pixels(31)
    assert least_cosine(ours.encode_image(images), jaxs.encode_image(images)) >= cosine
    texts = TEXTS * 12
    assert least_cosine(ours.encode_text(texts), jaxs.encode_text(texts)) >= cosine
    np.testing.assert_allclose(ours.logit_scale, jaxs.logit_scale, rtol=1e-6)
    assert ours.config == jaxs.config


@pytest.mark.parametrize("kernel", ["plain", "avx2", "avx512bw", "avxvnni", "avx512vnni"])
def test_every_kernel_gives_the_same(plain_folder, monkeypatch, kernel):
    expected = loading.load(plain_folder, "int8").encode_image(pixels(3))
    monkeypatch.setenv("TCLIP_KERNEL", kernel)
    try:
        model = engine.load(plain_folder, "int8")
    except ValueError:
        pytest.skip(f"this processor cannot run {kernel}, or it was not compiled")
    assert least_cosine(model.encode_image(pixels(3)), expected) >= 0.9999


def test_load_takes_the_engine_and_its_images(plain_folder, tmp_path):
    model = tclip.load(plain_folder)
    assert isinstance(model, engine.Model)
    file = tmp_path / "square.png"
    tiny.square("red").save(file)
    images = [file, file.read_bytes(), tiny.square("red")]
    embeddings = model.encode_image(images)
    np.testing.assert_array_equal(embeddings[:2], embeddings[1:])
    expected = tclip.load(plain_folder, backend="jax").encode_image(images)
    assert least_cosine(embeddings, expected) >= 0.99999
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 32)


def test_nan_pixels_show_in_their_embedding_only(plain_folder):
    images = pixels(3)
    images[1, 0, 0, 0] = np.nan
    for activations in ("native", "int8"):
        finite = np.isfinite(engine.load(plain_folder, activations).encode_image(images))
        assert finite[[0, 2]].all()
        assert not finite[1].any()


def test_bad_input_is_one_line(plain_folder, tmp_path):
    model = engine.load(plain_folder)
    with pytest.raises(ValueError, match=r"\[B, 32, 32, 3\]"):
        model.encode_image(np.zeros((1, 30, 32, 3), np.float32))
    with pytest.raises(ValueError, match="list of images"):
        model.encode_image("photo.jpg")
    with pytest.raises(ValueError, match="list of texts"):
        model.encode_text("a cat")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        model.encode_image([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="int4"):
        engine.load(plain_folder, "int4")


def test_the_engine_imports_no_jax(plain_folder):
    script = (
        "import sys, tclip; "
        f"tclip.load({str(plain_folder)!r}, backend='engine').encode_text(['a red square']); "
        "print(sorted(sys.modules.keys() & {'jax', 'flax', 'grain', 'torch', 'orbax'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
