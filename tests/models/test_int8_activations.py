"""Int8 activations: what is trained, fake-quantised, is what runs, in integers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tclip
from tclip.export import export_packed
from tclip.inference import Model
from tclip.kernels.fake_quant import fake_quantize_rows
from tclip.models import CLIP, ClipPolicy, effective_weights
from tclip.quant import Int8Activations, with_int8_activations
from tests.helpers import tiny

INT8 = dataclasses.replace(tiny.POLICY, activations="int8")
TEXTS = ["a red square", "a photo of a blue square", "two"]


@functools.cache
def pixels():
    return np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype(np.float32)


def trained_model():
    weights = jax.jit(functools.partial(effective_weights, policy=INT8))(
        tiny.params(), tiny.quant()
    )
    return Model(tiny.config(), weights, tiny.tokenizer(), tiny.PREPROCESS)


def test_fake_quantisation_is_the_formula_and_passes_gradients():
    x = np.random.default_rng(1).normal(size=(5, 24)).astype(np.float32)
    x[2] = 0
    scale = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = np.round(x / np.where(scale == 0, 1, scale)) * scale
    np.testing.assert_allclose(fake_quantize_rows(jnp.asarray(x)), expected, rtol=1e-6, atol=1e-9)
    g = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    _, vjp = jax.vjp(fake_quantize_rows, jnp.asarray(x))
    np.testing.assert_array_equal(vjp(g)[0], g)


def test_the_trained_student_and_its_packed_integers_agree():
    trained = trained_model()
    packed = Model(
        tiny.config(),
        with_int8_activations(tiny.packed_params()),
        tiny.tokenizer(),
        tiny.PREPROCESS,
    )
    native = tiny.fake_quant_model()
    for encode, inputs in (("encode_image", pixels()), ("encode_text", TEXTS)):
        ours, theirs, unrounded = (
            getattr(model, encode)(inputs) for model in (trained, packed, native)
        )
        # A rounding may fall the other way where float sums differ; as a rule none does.
        assert 1 - (ours * theirs).sum(axis=1).min() <= 1e-4
        # And the rounding is there.
        assert np.abs(ours - unrounded).max() > 1e-4


def test_only_ternary_kernels_are_multiplied_by_rounded_activations():
    policy = ClipPolicy("ffn", activations="int8", learn_scale=False, learn_threshold=False)
    params = effective_weights(tiny.params(), {}, policy)
    block = params["text"]["blocks_0"]
    assert isinstance(block["mlp"]["fc1"]["kernel"], Int8Activations)
    assert isinstance(block["attn"]["q_proj"]["kernel"], jax.Array)
    everything = effective_weights(tiny.params(), tiny.quant(), INT8)
    assert isinstance(everything["vision"]["patch_embed"]["kernel"], Int8Activations)
    assert isinstance(everything["text"]["token_embedding"]["embedding"], jax.Array)


def test_gradients_reach_the_latent_weights():
    def loss(params, policy):
        weights = effective_weights(params, tiny.quant(), policy)
        image = CLIP(tiny.config()).apply({"params": weights}, pixels(), method="encode_image")
        return jnp.sum(jnp.sin(image))

    grads = {
        policy.activations: jax.jit(jax.grad(loss), static_argnums=1)(tiny.params(), policy)
        for policy in (INT8, tiny.POLICY)
    }
    kernels = [grads[name]["vision"]["blocks_0"]["mlp"]["fc1"]["kernel"] for name in grads]
    ours, native = (np.ravel(kernel) for kernel in kernels)
    assert np.isfinite(ours).all()
    # The straight-through gradient is that without rounding, up to what rounding does to values.
    cosine = ours @ native / np.linalg.norm(ours) / np.linalg.norm(native)
    assert cosine > 0.99


def test_loading(tmp_path):
    workdir = tiny.write_workdir(tmp_path / "run", quant=INT8)
    export_packed(workdir, tmp_path / "packed", float_dtype="float32")
    as_trained = tclip.load(workdir).encode_image(pixels())
    native = tclip.load(workdir, activations="native").encode_image(pixels())
    packed = tclip.load(tmp_path / "packed", activations="int8").encode_image(pixels())
    assert 1 - (as_trained * packed).sum(axis=1).min() <= 1e-4
    default = tclip.load(tmp_path / "packed").encode_image(pixels())
    np.testing.assert_allclose(default, native, atol=1e-5)
    assert np.abs(as_trained - native).max() > 1e-4
    float_run = tiny.write_workdir(tmp_path / "float")
    with pytest.raises(ValueError, match="float has no ternary weights"):
        tclip.load(float_run, activations="int8")
    with pytest.raises(ValueError, match="unknown activations 'int4'"):
        tclip.load(tmp_path / "packed", activations="int4")
