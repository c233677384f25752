import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.models import ClipPolicy
from tclip.quant import (
    ESTIMATORS,
    TernaryTensor,
    init_quant,
    quantize_params,
    ternarize,
    ternarize_params,
    ternary_paths,
    unpack,
)

FC1 = "vision/blocks/mlp/fc1/kernel"
FC2 = "vision/blocks/mlp/fc2/kernel"


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(scale=0.05, size=shape), jnp.float32)

    mlp = {
        "fc1": {"kernel": normal(2, 16, 6), "bias": normal(2, 6)},
        "fc2": {"kernel": normal(2, 8, 4).astype(jnp.bfloat16), "bias": normal(2, 4)},
    }
    return {"vision": {"blocks": {"mlp": mlp}}, "logit_scale": normal()}


def kernels(params):
    mlp = params["vision"]["blocks"]["mlp"]
    return {FC1: mlp["fc1"]["kernel"], FC2: mlp["fc2"]["kernel"]}


@pytest.mark.parametrize("learn_threshold", [True, False])
@pytest.mark.parametrize("learn_scale", [True, False])
def test_only_what_is_learned_is_stored(learn_scale, learn_threshold):
    policy = ClipPolicy("ffn", learn_scale=learn_scale, learn_threshold=learn_threshold)
    quant = jax.jit(lambda p: init_quant(p, policy))(make_params())
    names = ["log_scale"] * learn_scale + ["log_threshold"] * learn_threshold
    if not names:
        assert quant == {}
        return
    assert sorted(quant) == [FC1, FC2]
    for path, columns in ((FC1, 6), (FC2, 4)):
        assert sorted(quant[path]) == names
        for values in quant[path].values():
            assert (values.shape, values.dtype) == ((2, 1, columns), jnp.float32)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("group", ["tensor", "channel", "block:4"])
def test_ternarize_params_is_the_op_with_the_estimates(group, learn):
    params = make_params()
    policy = ClipPolicy("ffn", group, "twn", learn_scale=learn, learn_threshold=learn)
    result = ternarize_params(params, init_quant(params, policy), policy)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), result) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    for path, w in kernels(params).items():
        expected = np.asarray(ternarize(w, *ESTIMATORS["twn"](w, group)), np.float32)
        tolerance = 1e-6 if w.dtype == jnp.float32 else 2**-8
        np.testing.assert_allclose(
            np.asarray(kernels(result)[path], np.float32), expected, rtol=tolerance
        )
    bias = params["vision"]["blocks"]["mlp"]["fc1"]["bias"]
    assert result["vision"]["blocks"]["mlp"]["fc1"]["bias"] is bias


def test_gradients_reach_weights_logs_and_nothing_else():
    params, policy = make_params(), ClipPolicy("ffn")
    quant = init_quant(params, policy)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 6)), jnp.float32)

    def loss(params, quant):
        return (kernels(ternarize_params(params, quant, policy))[FC1] * g).sum()

    dparams, dquant = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, quant)
    np.testing.assert_array_equal(kernels(dparams)[FC1], g)  # every |w| is below the clip
    w = kernels(params)[FC1]
    scale, threshold = (np.exp(quant[FC1][n]) for n in ("log_scale", "log_threshold"))
    signs = np.sign(w) * (np.abs(w) > threshold)
    ramp = np.abs(np.abs(w) - threshold) < scale / 2
    expected = {
        "log_scale": scale * (g * signs).sum(1, keepdims=True),
        "log_threshold": -threshold * (g * np.sign(w) * ramp).sum(1, keepdims=True),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(dquant[FC1][name], values, rtol=2e-5, atol=1e-6)


def test_no_gradient_flows_through_an_estimate():
    params = make_params()
    policy = ClipPolicy("ffn", learn_scale=False, learn_threshold=False)
    grad = jax.grad(lambda p: kernels(ternarize_params(p, {}, policy))[FC1].sum())(params)
    np.testing.assert_array_equal(kernels(grad)[FC1], 1)


@pytest.mark.parametrize("group", ["tensor", "channel", "block:4"])
@pytest.mark.parametrize(
    ("estimator", "learn"), [*((name, False) for name in ESTIMATORS), ("twn", True)]
)
def test_packed_codes_are_those_of_the_fake_quantised_weights(estimator, learn, group):
    params = make_params()
    policy = ClipPolicy("ffn", group, estimator, learn_scale=learn, learn_threshold=learn)
    quant = init_quant(params, policy)
    fake = jax.jit(lambda p, q: ternarize_params(p, q, policy))(params, quant)
    packed = quantize_params(params, quant, policy)
    for path, tensor in kernels(packed).items():
        assert isinstance(tensor, TernaryTensor)
        assert tensor.scale.dtype == jnp.float16
        assert tensor.shape == kernels(params)[path].shape
        codes = unpack(tensor.words, tensor.rows)
        np.testing.assert_array_equal(codes, np.sign(kernels(fake)[path]).astype(np.int8))
        np.testing.assert_allclose(
            np.asarray(tensor.dequantize(), np.float32),
            np.asarray(kernels(fake)[path], np.float32),
            rtol=2**-8 if kernels(fake)[path].dtype == jnp.bfloat16 else 2**-11,
        )


def test_codes_agree_for_weights_next_to_the_threshold():
    policy = ClipPolicy("w")
    logs = jnp.asarray(np.random.default_rng(2).normal(-3, 1, (1, 515)), jnp.float32)
    quant = {"w": {"log_scale": logs, "log_threshold": logs}}
    threshold = np.asarray(jnp.exp(logs))
    rows = [np.nextafter(threshold, np.float32(to)) for to in (0, 1)] + [threshold, -threshold]
    params = {"w": jnp.asarray(np.concatenate(rows))}
    fake = jax.jit(lambda p, q: ternarize_params(p, q, policy)["w"])(params, quant)
    packed = quantize_params(params, quant, policy)["w"]
    np.testing.assert_array_equal(unpack(packed.words, 4), np.sign(fake).astype(np.int8))


HOSTILE = st.sampled_from([-1e38, -1e9, -100.0, -17.0, 0.0, 11.0, 100.0, 1e9, 1e38])


@settings(max_examples=40, deadline=None)
@given(HOSTILE, HOSTILE)
def test_scales_stay_positive_and_thresholds_not_negative(log_scale, log_threshold):
    params = {"w": jnp.asarray([[0.5, 0.0], [-0.5, 1e-3]])}
    quant = {
        "w": {
            "log_scale": jnp.full((1, 2), log_scale),
            "log_threshold": jnp.full((1, 2), log_threshold),
        }
    }
    value, grads = hostile_value_and_grad(params, quant)
    tensor = quantize_params(params, quant, ClipPolicy("w"))["w"]
    assert (tensor.scale > 0).all()
    assert jnp.isfinite(tensor.scale).all()
    # A negative threshold would make the zero weight a code, a lost one the sign of another.
    assert unpack(tensor.words, 2)[0, 1] == 0
    assert (jnp.sign(tensor.dequantize()) * jnp.sign(params["w"]) >= 0).all()
    for leaf in jax.tree.leaves((value, grads)):
        assert jnp.isfinite(leaf).all()


@jax.jit
def hostile_value_and_grad(params, quant):
    def loss(params, quant):
        return ternarize_params(params, quant, ClipPolicy("w"))["w"].sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(params, quant)


def test_policy_none_changes_nothing():
    params, policy = make_params(), ClipPolicy("none")
    assert ternary_paths(params, policy) == ()
    assert init_quant(params, policy) == {}
    for result in (ternarize_params(params, {}, policy), quantize_params(params, {}, policy)):
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (result, params)), strict=True))


def test_abstract_trees_will_do():
    params, policy = jax.eval_shape(make_params), ClipPolicy("ffn", "block:4")
    assert ternary_paths(params, policy) == (FC1, FC2)
    quant = jax.eval_shape(lambda p: init_quant(p, policy), params)
    assert quant[FC1]["log_scale"].shape == (2, 4, 6)
    packed = jax.eval_shape(lambda p, q: quantize_params(p, q, policy), params, quant)
    assert kernels(packed)[FC1].words.shape == (2, 1, 6)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (ClipPolicy("blocks"), r"'\(\?:\.\*/\)\?attn.*' of ternary policy 'blocks' matches no"),
        (ClipPolicy("ffn2"), "pattern 'ffn2' of ternary policy 'ffn2' matches no .*blocks"),
        (ClipPolicy(f"{FC1},.*typo"), r"pattern '\.\*typo'"),
        (ClipPolicy("logit_scale"), r"logit_scale: a weight of shape \(\) has no input"),
        (
            ClipPolicy("ffn", "block:6"),
            f"{FC1}: blocks of 6 do not divide the input dimension 16; .*'block:4'",
        ),
    ],
)
def test_what_a_policy_cannot_do_is_refused(policy, message):
    for function in (ternary_paths, init_quant, lambda *a: ternarize_params(a[0], {}, a[1])):
        with pytest.raises(ValueError, match=message):
            function(make_params(), policy)


def test_integer_leaves_are_refused():
    with pytest.raises(ValueError, match="w: only float weights can be ternary, this is int32"):
        ternary_paths({"w": jnp.ones((2, 2), jnp.int32)}, ClipPolicy("w"))


def test_quant_of_another_policy_is_refused():
    params, policy = make_params(), ClipPolicy("ffn")
    for quant in ({}, init_quant(params, ClipPolicy("ffn", learn_scale=False))):
        with pytest.raises(ValueError, match=f"{FC1}: the policy learns .* init_quant"):
            ternarize_params(params, quant, policy)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_a_scale_beyond_float16_is_refused_and_float32_accepted(scale):
    params = {"w": jnp.asarray([[scale, -scale]], jnp.float32)}
    policy = ClipPolicy("w", learn_scale=False, learn_threshold=False)
    with pytest.raises(ValueError, match="w: a scale overflows or vanishes in float16"):
        quantize_params(params, {}, policy)
    packed = quantize_params(params, {}, policy, jnp.float32)["w"]
    np.testing.assert_allclose(packed.dequantize(), params["w"], rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_spread_and_cannot_be_packed(bad):
    params = {"w": jnp.asarray([[0.1, 0.2], [bad, 0.3]])}
    policy = ClipPolicy("w", learn_scale=False, learn_threshold=False)
    fake = ternarize_params(params, {}, policy)["w"]
    assert not jnp.isfinite(fake[:, 0]).any()
    assert jnp.isfinite(fake[:, 1]).all()
    with pytest.raises(ValueError, match="w: weights that are not finite cannot be packed"):
        quantize_params(params, {}, policy)


def test_zero_leaves_train_and_pack():
    params, policy = {"w": jnp.zeros((4, 3))}, ClipPolicy("w")
    quant = init_quant(params, policy)

    def loss(params, quant):
        return ternarize_params(params, quant, policy)["w"].sum()

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(params, quant)
    assert value == 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(grads[0]["w"], 1)
    np.testing.assert_array_equal(quantize_params(params, quant, policy)["w"].words, 0)
