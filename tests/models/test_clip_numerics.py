"""The encoders against a plain NumPy forward pass in float64, written from the papers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tclip.models import CLIP, CLIPConfig, TextConfig, VisionConfig, init_params, with_layout

CONFIG = CLIPConfig(
    embed_dim=20,
    vision=VisionConfig(image_size=12, patch_size=4, width=24, layers=3, heads=3, mlp_dim=40),
    text=TextConfig(
        context_length=9, vocab_size=37, width=16, layers=2, heads=4, mlp_dim=24, eot_token_id=36
    ),
)
SIGLIP = CLIPConfig(
    embed_dim=24,
    # 14 pixels are three patches and a rest.
    vision=VisionConfig(14, patch_size=4, width=24, layers=3, heads=3, mlp_dim=40, pooling="map"),
    text=dataclasses.replace(
        CONFIG.text, context_length=8, causal=False, pooling="last", projection_bias=True
    ),
    activation="gelu_tanh",
    layer_norm_eps=1e-6,
    logit_bias=True,
)
TOKENS = np.array(
    [[35, 3, 4, 36, 0, 0, 0, 0], [35, 36, 5, 36, 7, 8, 9, 1], [35, 1, 2, 3, 4, 5, 6, 36]]
)


def random_params(config):
    """Parameters with every leaf random, so that no norm, bias or position is trivially right."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 * rng.normal(size=leaf.shape), np.float32), shapes
    )


def images(config, batch=3):
    size = config.vision.image_size
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


def layer_norm(x, p, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def attention(x, context, p, heads, causal):
    length, width = x.shape
    size = width // heads
    q, k, v = (linear(y, p[f"{n}_proj"]) for n, y in (("q", x), ("k", context), ("v", context)))
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(length):
            seen = t + 1 if causal else len(context)
            scores = k[:seen, part] @ q[t, part] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[t, part] = weights / weights.sum() @ v[:seen, part]
    return linear(out, p["out_proj"])


def activate(x, name):
    if name == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def blocks(x, p, config, tower, causal):
    outputs = []
    for i in range(tower.layers):
        b = p[f"blocks_{i}"]
        y = layer_norm(x, b["ln_1"], config.layer_norm_eps)
        x = x + attention(y, y, b["attn"], tower.heads, causal)
        y = layer_norm(x, b["ln_2"], config.layer_norm_eps)
        x = x + mlp(y, b["mlp"], config)
        outputs.append(x)
    return x, outputs


def mlp(x, p, config):
    return linear(activate(linear(x, p["fc1"]), config.activation), p["fc2"])


def reference_image(image, p, config):
    s, tower = config.vision.patch_size, config.vision
    clip, tokens = tower.pooling == "cls", []
    for row in range(0, tower.image_size - s + 1, s):
        for column in range(0, tower.image_size - s + 1, s):
            patch = [
                image[row + i, column + j, c] for i in range(s) for j in range(s) for c in range(3)
            ]
            tokens.append(linear(np.array(patch), p["patch_embed"]))
    x = np.stack([p["class_embedding"], *tokens] if clip else tokens) + p["position_embedding"]
    if clip:
        x = layer_norm(x, p["ln_pre"], config.layer_norm_eps)
    x, hidden = blocks(x, p, config, tower, causal=False)
    x = layer_norm(x, p["ln_post"], config.layer_norm_eps)
    if clip:
        return linear(x[0], p["projection"]), hidden
    pool = p["attn_pool"]
    y = attention(pool["probe"][None], x, pool["attn"], tower.heads, causal=False)
    y = y + mlp(layer_norm(y, pool["ln_mlp"], config.layer_norm_eps), pool["mlp"], config)
    return y[0], hidden


def reference_text(tokens, p, config):
    x = p["token_embedding"]["embedding"][tokens] + p["position_embedding"][: len(tokens)]
    x, hidden = blocks(x, p, config, config.text, causal=config.text.causal)
    last = config.text.pooling == "last"
    pooled = x[-1 if last else list(tokens).index(config.text.eot_token_id)]
    return linear(layer_norm(pooled, p["ln_final"], config.layer_norm_eps), p["projection"]), hidden


def assert_matches(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "config",
    [CONFIG, dataclasses.replace(CONFIG, activation="gelu", layer_norm_eps=1e-2), SIGLIP],
    ids=["clip", "clip gelu", "siglip"],
)
def test_embeddings_and_hidden_layers_match_numpy(config):
    params = random_params(config)
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    model, x = CLIP(config), images(config)

    embeddings, hidden = model.apply({"params": params}, x, (2, 0), method="encode_image")
    for b, image in enumerate(x):
        expected, outputs = reference_image(image, wide["vision"], config)
        assert_matches(embeddings[b], expected)
        assert_matches(hidden[0][b], outputs[2])
        assert_matches(hidden[1][b], outputs[0])

    embeddings, hidden = model.apply({"params": params}, TOKENS, (1,), method="encode_text")
    for b, tokens in enumerate(TOKENS):
        expected, outputs = reference_text(tokens, wide["text"], config)
        assert_matches(embeddings[b], expected)
        assert_matches(hidden[0][b], outputs[1])


def test_nothing_after_the_end_of_text_matters():
    params = random_params(CONFIG)
    other = np.where(np.cumsum(TOKENS == 36, axis=1) - (TOKENS == 36) > 0, 17, TOKENS)
    assert (other != TOKENS).any()
    encode = jax.jit(lambda t: CLIP(CONFIG).apply({"params": params}, t, method="encode_text"))
    np.testing.assert_array_equal(encode(TOKENS), encode(other))


def test_texts_shorter_than_the_context_need_no_padding():
    params = random_params(CONFIG)
    encode = jax.jit(lambda t: CLIP(CONFIG).apply({"params": params}, t, method="encode_text"))
    np.testing.assert_allclose(encode(TOKENS[:1, :4]), encode(TOKENS[:1]), rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.grad, has_aux=True)
def gradient_and_outputs(params, config):
    model = CLIP(config)
    image, hidden = model.apply({"params": params}, images(config), (0, 2), method="encode_image")
    text, (last,) = model.apply({"params": params}, TOKENS, (1,), method="encode_text")
    outputs = (image, text, *hidden, last)
    return sum(jnp.mean(jnp.sin(y)) for y in outputs), outputs


@pytest.mark.parametrize(
    ("scan_layers", "remat"), [(True, "none"), (False, "full"), (False, "dots"), (True, "dots")]
)
def test_scan_and_remat_change_neither_values_nor_gradients(scan_layers, remat):
    config = dataclasses.replace(CONFIG, scan_layers=scan_layers, remat=remat)
    params = random_params(CONFIG)
    expected_gradient, expected = gradient_and_outputs(params, CONFIG)
    if scan_layers:
        params = with_layout(params, config)
        expected_gradient = with_layout(expected_gradient, config)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    gradient, outputs = gradient_and_outputs(params, config)
    for a, e in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    for a, e in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6)


def test_remat_recomputes_in_the_backward_pass():
    params, x = random_params(CONFIG), images(CONFIG)

    def matmuls(remat):
        config = dataclasses.replace(CONFIG, remat=remat)

        def loss(params):
            return jnp.sum(CLIP(config).apply({"params": params}, x, method="encode_image"))

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    assert matmuls("none") < matmuls("dots") < matmuls("full")


def test_bfloat16_computes_low_and_keeps_float32_statistics():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    params, x = random_params(CONFIG), images(CONFIG)
    low = CLIP(config).apply({"params": params}, x, TOKENS)
    high = CLIP(CONFIG).apply({"params": params}, x, TOKENS)
    for a, e in zip(low, high, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(a.astype(np.float32) - e) / np.linalg.norm(e)
        assert 1e-5 < error < 0.03
    jaxpr = str(jax.make_jaxpr(lambda p: CLIP(config).apply({"params": p}, x, TOKENS))(params))
    for operation in ("= exp ", "= rsqrt ", "= reduce_sum"):
        lines = [line for line in jaxpr.splitlines() if operation in line]
        assert lines
        assert not any("bf16" in line for line in lines)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
