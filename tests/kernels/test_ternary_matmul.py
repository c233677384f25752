import re

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.kernels import ternary_matmul
from tclip.quant import TernaryTensor, pack
from tests.helpers.matmul_problems import TOLERANCE, integer_rows, problem, quantized

matmul = jax.jit(ternary_matmul, static_argnames=("activations", "activation", "implementation"))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_it_is_the_product_with_scale_times_codes(data):
    rows = data.draw(st.sampled_from([1, 7, 16, 24, 40, 48]))
    columns = data.draw(st.sampled_from([1, 5, 16, 35]))
    lead = data.draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    blocks = data.draw(st.sampled_from([d for d in range(1, rows + 1) if rows % d == 0]))
    scale_shape = data.draw(st.sampled_from([(), (1, 1), (1, columns), (blocks, columns)]))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    seed = data.draw(st.integers(0, 2**16))
    x, w, expected, magnitude = problem(lead, rows, columns, scale_shape, dtype, seed)
    y = matmul(x, w)
    assert (y.shape, y.dtype) == ((*lead, columns), dtype)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[dtype] * magnitude + 1e-12).all()


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_int8_is_the_product_with_the_rounded_rows(data):
    rows = data.draw(st.sampled_from([1, 7, 24, 48]))
    columns = data.draw(st.sampled_from([1, 5, 35]))
    blocks = data.draw(st.sampled_from([d for d in range(1, rows + 1) if rows % d == 0]))
    scale_shape = data.draw(st.sampled_from([(), (1, 1), (1, columns), (blocks, columns)]))
    dtype = data.draw(st.sampled_from(list(TOLERANCE)))
    x, w, *_ = problem((3,), rows, columns, scale_shape, dtype, data.draw(st.integers(0, 2**16)))
    weights = np.asarray(w.dequantize(), np.float64)
    q = quantized(x)
    error = np.abs(np.asarray(matmul(x, w, activations="int8"), np.float64) - q @ weights)
    # A value halfway between two integers may be rounded to the other.
    x64, step = np.asarray(x, np.float64), np.abs(q).max(axis=-1, keepdims=True) / 127
    halfway = np.abs(np.abs(x64 - q) - step / 2) < 1e-5 * step
    allowed = TOLERANCE[dtype] * (np.abs(q) @ np.abs(weights)) + halfway * step @ np.abs(weights)
    assert (error <= allowed + 1e-12).all()


@pytest.mark.parametrize("blocks", [1, 4])
def test_int8_sums_of_integers_are_exact(blocks):
    rows, columns = 4096, 40
    codes = np.random.default_rng(1).integers(-1, 2, (rows, columns)).astype(np.int8)
    w = TernaryTensor(pack(codes), jnp.ones((blocks, columns)), rows)
    x = integer_rows((3, rows))
    y = matmul(jnp.asarray(x, jnp.float32), w, activations="int8")
    np.testing.assert_array_equal(y, x @ codes.astype(np.int64))


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("activation", [None, "quick_gelu", "gelu", "gelu_tanh"])
def test_bias_and_activation_are_applied_in_float32(activation, activations):
    x, w, *_ = problem((2, 3), 24, 35, (1, 35), jnp.bfloat16)
    bias = jnp.asarray(np.random.default_rng(2).normal(size=35), jnp.float16)
    y = matmul(x, w, bias=bias, activation=activation, activations=activations)
    x64 = quantized(x) if activations == "int8" else np.asarray(x, np.float64)
    expected = x64 @ np.asarray(w.dequantize(), np.float64) + np.asarray(bias, np.float64)
    if activation:
        expected *= {
            "quick_gelu": scipy.special.expit(1.702 * expected),
            "gelu": scipy.stats.norm.cdf(expected),
            "gelu_tanh": scipy.special.expit(
                2 * np.sqrt(2 / np.pi) * (expected + 0.044715 * expected**3)
            ),
        }[activation]
    # One rounding to bfloat16, by 2^-8 at most.
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=1.01 * 2**-8, atol=1e-5)


@pytest.mark.parametrize("scale_shape", [(1, 8), (1024, 8)])
def test_low_precision_inputs_are_accumulated_in_float32(scale_shape):
    # In bfloat16, 256 + 1 = 256: a running sum would stop there.
    w = TernaryTensor(pack(np.ones((1024, 8), np.int8)), jnp.ones(scale_shape, jnp.float16), 1024)
    np.testing.assert_array_equal(matmul(jnp.ones((2, 1024), jnp.bfloat16), w), 1024)


@pytest.mark.parametrize("scale_shape", [(1, 1), (1, 256), (8, 256)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_weight_is_never_expanded_in_memory(dtype, scale_shape):
    rows, columns = 512, 256
    x, w, *_ = problem((4,), rows, columns, scale_shape, dtype)
    compiled = matmul.lower(x, w).compile()
    shapes = re.findall(r"\b(?:f16|bf16|f32|s8|s32)\[([\d,]+)\]", compiled.as_text())
    elements = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    # A sixteenth of the codes is alive at a time; half of them would show in the text.
    assert max(elements) < rows * columns / 2
    assert compiled.memory_analysis().temp_size_in_bytes < rows * columns * 4 / 2


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("scale_shape", [(), (1, 1), (1, 20), (5, 20)])
def test_gradients_are_those_of_the_dense_product(scale_shape, activations):
    x, w, *_ = problem((2, 3), 40, 20, scale_shape, jnp.float32)
    rng = np.random.default_rng(1)
    bias, g = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (20, (2, 3, 20)))
    codes = TernaryTensor(w.words, jnp.ones(()), 40).dequantize()
    scale = w.scale.astype(jnp.float32)

    def packed(x, scale, bias):
        tensor = TernaryTensor(w.words, scale, 40)
        return ternary_matmul(x, tensor, bias=bias, activations=activations)

    def dense(x, scale, bias):
        blocks = scale if scale.ndim < 2 else jnp.repeat(scale, 40 // scale.shape[0], axis=0)
        return x @ (codes * blocks) + bias

    for of_packed, of_dense in zip(
        jax.jit(lambda *args: jax.vjp(packed, *args)[1](g))(x, scale, bias),
        jax.jit(lambda *args: jax.vjp(dense, *args)[1](g))(x, scale, bias),
        strict=True,
    ):
        assert of_packed.shape == of_dense.shape
        np.testing.assert_allclose(of_packed, of_dense, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_gradients_pass_through_the_activation_function(activation):
    x, w, *_ = problem((3,), 8, 4, (1, 4), jnp.float32)

    def loss(x):
        return jnp.sin(ternary_matmul(x, w, activation=activation)).sum()

    jax.test_util.check_grads(loss, (x,), order=1, modes="rev", atol=1e-2, rtol=1e-2)


def test_gradients_have_the_dtypes_of_what_they_are_of():
    x, w, *_ = problem((3,), 24, 5, (1, 5), jnp.bfloat16)

    def loss(x, scale, bias):
        return ternary_matmul(x, TernaryTensor(w.words, scale, 24), bias=bias).sum()

    bias = jnp.ones(5, jnp.float32)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(x, w.scale, bias)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float16, jnp.float32]


def test_vmap_and_scan_over_stacked_weights():
    x, w, expected, _ = problem((3,), 40, 20, (1, 20), jnp.float32)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    mapped = jax.jit(jax.vmap(ternary_matmul, in_axes=(None, 0)))(x, stacked)
    scanned = jax.lax.scan(lambda c, layer: (c, matmul(x, layer)), None, stacked)[1]
    for result in (mapped, scanned):
        np.testing.assert_allclose(result, [expected, expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_nan_and_infinity_in_x_show_in_their_row_only(value, activations):
    x, w, *_ = problem((2,), 256, 5, (1, 5), jnp.float32)
    w = TernaryTensor(pack(np.ones((256, 5), np.int8)), w.scale, 256)
    y = matmul(x.at[0, 3].set(value), w, activations=activations)
    assert not jnp.isfinite(y[0]).any()
    assert jnp.isfinite(y[1]).all()


def test_int8_rows_of_zeros_and_of_tiny_values():
    x, w, *_ = problem((3,), 24, 5, (1, 5), jnp.float32)
    y = matmul(x.at[0].set(0).at[1].multiply(1e-38), w, activations="int8")
    np.testing.assert_array_equal(y[0], 0)
    np.testing.assert_allclose(y[1], 0, atol=1e-30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x[:, 1:], w), r"cannot multiply x \(2, 23\) by a ternary weight \(24, 5\)"),
        (lambda x, w: (x, jax.tree.map(lambda a: a[None], w)), r"ternary weight \(1, 24, 5\)"),
        (lambda x, w: (x.astype(int), w), "x has to be bfloat16, float32 or float16, not int32"),
        (lambda x, w: (x, TernaryTensor(w.words, w.scale[:, 1:], 24)), r"scale of shape \(1, 4\)"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    with pytest.raises(ValueError, match=message):
        ternary_matmul(*change(x, w))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"implementation": "cuda"}, "unknown implementation 'cuda'; use one of"),
        ({"activations": "int4"}, "unknown activations 'int4'; use 'native' or 'int8'"),
        ({"activation": "relu"}, "unknown activation 'relu'; use one of"),
        ({"bias": jnp.ones(4)}, r"bias of shape \(4,\) does not fit a ternary weight \(24, 5\)"),
    ],
)
def test_bad_options_are_refused(option, message):
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    with pytest.raises(ValueError, match=message):
        ternary_matmul(x, w, **option)


def test_naming_the_implementation_changes_nothing():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    np.testing.assert_array_equal(matmul(x, w, implementation="xla"), matmul(x, w))
