import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.kernels import ternary_matmul
from tclip.quant import TernaryTensor, pack

# Relative to the sum of the magnitudes of the products: the rounding of the result, and in float32
# that of the additions.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-10}

matmul = jax.jit(ternary_matmul, static_argnames="implementation")


def problem(lead, rows, columns, scale_shape, dtype, seed=0):
    """x, the packed weight, and x @ w and |x| @ |w| in NumPy float64."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    scale = rng.uniform(0.01, 1, scale_shape).astype(np.float16)
    x = jnp.asarray(rng.normal(size=(*lead, rows)), dtype)
    full = scale.astype(np.float64)
    if full.ndim:
        repeats = [n // s for n, s in zip((rows, columns), scale_shape, strict=True)]
        full = full.repeat(repeats[0], 0).repeat(repeats[1], 1)
    x64, w64 = np.asarray(x, np.float64), codes * full
    tensor = TernaryTensor(pack(codes), jnp.asarray(scale), rows)
    return x, tensor, x64 @ w64, np.abs(x64) @ np.abs(w64)


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


def test_gradient_with_respect_to_x_is_the_transposed_product():
    x, w, *_ = problem((3,), 40, 20, (5, 20), jnp.float32)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(3, 20)), jnp.float32)
    (dx,) = jax.jit(lambda x, w: jax.vjp(lambda x: ternary_matmul(x, w), x)[1](g))(x, w)
    np.testing.assert_allclose(dx, g @ w.dequantize().T, rtol=1e-5, atol=1e-5)


def test_vmap_and_scan_over_stacked_weights():
    x, w, expected, _ = problem((3,), 40, 20, (1, 20), jnp.float32)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    mapped = jax.jit(jax.vmap(ternary_matmul, in_axes=(None, 0)))(x, stacked)
    scanned = jax.lax.scan(lambda c, layer: (c, matmul(x, layer)), None, stacked)[1]
    for result in (mapped, scanned):
        np.testing.assert_allclose(result, [expected, expected], rtol=1e-5, atol=1e-5)


def test_nan_in_x_shows_in_its_row_only():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    y = matmul(x.at[0, 3].set(jnp.nan), w)
    assert jnp.isnan(y[0]).all()
    assert jnp.isfinite(y[1]).all()


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
