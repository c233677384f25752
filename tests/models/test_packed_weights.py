"""Packed leaves against the same weights as float arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tclip.models import ARCHITECTURES, CLIP, ClipPolicy, init_params
from tclip.models.layers import Embedding, Linear
from tclip.quant import TernaryTensor, init_quant, pack, quantize_params, ternarize_params

CONFIG = ARCHITECTURES["tiny"]
SIGLIP = dataclasses.replace(
    CONFIG,
    vision=dataclasses.replace(CONFIG.vision, pooling="map"),
    text=dataclasses.replace(CONFIG.text, causal=False, pooling="last", projection_bias=True),
    logit_bias=True,
)
INIT = jax.nn.initializers.zeros


def random_ternary(rng, rows, columns, scale_shape, dtype=np.float32):
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    scale = rng.uniform(0.5, 2.0, scale_shape).astype(dtype)
    block = np.repeat(scale.astype(np.float64), rows // scale_shape[0], axis=0)
    return TernaryTensor(pack(codes), jnp.asarray(scale), rows), codes * block


@pytest.mark.parametrize("rows", [16, 40, 7])
@pytest.mark.parametrize("blocks", [None, 1, "all"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedding_gathers_packed_rows(rows, blocks, dtype):
    rng = np.random.default_rng(rows)
    scale_shape = (1, 1) if blocks is None else (1 if blocks == 1 else rows, 24)
    packed, dense = random_ternary(rng, rows, 24, scale_shape)
    ids = rng.integers(0, rows, (3, 5)).astype(np.int32)
    layer = Embedding(rows, 24, dtype, INIT)
    actual = layer.apply({"params": {"embedding": packed}}, ids)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, jnp.asarray(dense[ids], dtype))


def test_embedding_never_unpacks_the_table():
    table = TernaryTensor(
        jax.ShapeDtypeStruct((3088, 512), jnp.int32),
        jax.ShapeDtypeStruct((1, 512), jnp.float16),
        49408,
    )
    layer = Embedding(49408, 512, "float32", INIT)
    ids = jax.ShapeDtypeStruct((2, 77), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda t, i: layer.apply({"params": {"embedding": t}}, i))(table, ids)
    biggest = max(out.aval.size for eqn in jaxpr.eqns for out in eqn.outvars)
    assert biggest == 2 * 77 * 512


@pytest.mark.parametrize("packed", [False, True])
def test_an_id_beyond_the_table_is_nan_not_another_row(packed):
    ternary, dense = random_ternary(np.random.default_rng(0), 20, 8, (1, 8))
    table = ternary if packed else jnp.asarray(dense, jnp.float32)
    layer = Embedding(20, 8, "float32", INIT)
    rows = layer.apply({"params": {"embedding": table}}, jnp.array([19, 20, 31, 4000]))
    assert np.isnan(rows).any(axis=-1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("rows", [32, 40])
def test_linear_multiplies_by_packed_kernels(rows, use_bias):
    rng = np.random.default_rng(1)
    packed, dense = random_ternary(rng, rows, 12, (1, 12))
    x, bias = rng.normal(size=(2, 3, rows)).astype(np.float32), rng.normal(size=12)
    params = {"kernel": packed} | ({"bias": bias} if use_bias else {})
    actual = Linear(12, "float32", INIT, use_bias=use_bias).apply({"params": params}, x)
    np.testing.assert_allclose(actual, x @ dense + use_bias * bias, rtol=1e-5, atol=1e-5)


def test_leaves_of_another_shape_are_refused_by_name():
    packed, dense = random_ternary(np.random.default_rng(2), 32, 12, (1, 12))
    x = np.ones((2, 48), np.float32)
    layer = Linear(12, "float32", INIT, use_bias=False)
    with pytest.raises(ValueError, match=r"kernel: expected a ternary \(48, 12\), got \(32, 12\)"):
        layer.apply({"params": {"kernel": packed}}, x)
    with pytest.raises(Exception, match=r"kernel.*\(32, 12\)"):
        layer.apply({"params": {"kernel": jnp.asarray(dense)}}, x)


def random_inputs(config, batch=3):
    rng = np.random.default_rng(3)
    size, text = config.vision.image_size, config.text
    tokens = rng.integers(1, text.vocab_size - 1, (batch, text.context_length)).astype(np.int32)
    tokens[:, -1] = text.eot_token_id
    return rng.normal(size=(batch, size, size, 3)).astype(np.float32), tokens


@functools.cache
def fake_and_packed(config, group):
    """The same ternary weights twice, as float arrays and packed."""
    policy = ClipPolicy(policy="all", group=group)

    @jax.jit
    def make(key):
        params = init_params(config, key)
        quant = init_quant(params, policy)
        fake = ternarize_params(params, quant, policy)
        return fake, quantize_params(params, quant, policy, dtype=jnp.float32)

    return make(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(config, params, images, tokens):
    model = CLIP(config)
    image, hidden = model.apply({"params": params}, images, (1, 0), method="encode_image")
    return image, model.apply({"params": params}, tokens, method="encode_text"), *hidden


@pytest.mark.parametrize(
    ("config", "options", "group"),
    [
        (CONFIG, {"remat": "full"}, "channel"),
        (CONFIG, {"scan_layers": True}, "tensor"),
        (CONFIG, {"scan_layers": True, "remat": "dots"}, "block:16"),
        (SIGLIP, {"scan_layers": True}, "channel"),
    ],
)
def test_packed_model_equals_the_fake_quantised_one(config, options, group):
    config = dataclasses.replace(config, **options)
    fake, packed = fake_and_packed(config, group)
    ternary = [
        leaf
        for leaf in jax.tree.leaves(packed, is_leaf=lambda x: isinstance(x, TernaryTensor))
        if isinstance(leaf, TernaryTensor)
    ]
    blocks = 2 * 6 * (1 if config.scan_layers else 2)
    # SigLIP has an attention pool in place of one of the two projections.
    assert len(ternary) == 4 + blocks + (5 if config.vision.pooling == "map" else 0)
    inputs = random_inputs(config)
    for actual, expected in zip(
        outputs_of(config, packed, *inputs), outputs_of(config, fake, *inputs), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_packed_model_in_bfloat16_with_float16_leaves():
    low = dataclasses.replace(CONFIG, dtype="bfloat16")
    fake, packed = fake_and_packed(CONFIG, "channel")
    packed = jax.tree.map(lambda x: x if x.dtype == jnp.int32 else x.astype(jnp.float16), packed)
    inputs = random_inputs(CONFIG)
    for actual, expected in zip(
        outputs_of(low, packed, *inputs), outputs_of(CONFIG, fake, *inputs), strict=True
    ):
        assert actual.dtype == jnp.bfloat16
        error = np.linalg.norm(actual.astype(np.float32) - expected) / np.linalg.norm(expected)
        assert error < 0.03


def test_gradients_pass_through_packed_layers():
    fake, packed = fake_and_packed(CONFIG, "channel")
    images, _ = random_inputs(CONFIG)

    @jax.jit
    def gradient(params):
        def loss(embedding):
            vision = params["vision"] | {"class_embedding": embedding}
            variables = {"params": params | {"vision": vision}}
            return jnp.mean(jnp.sin(CLIP(CONFIG).apply(variables, images, method="encode_image")))

        return jax.grad(loss)(params["vision"]["class_embedding"])

    np.testing.assert_allclose(gradient(packed), gradient(fake), rtol=1e-3, atol=1e-6)
