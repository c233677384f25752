"""Every kernel of the engine against NumPy: integers exactly, floats to their precision."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.engine.library import library
from tclip.kernels.int8 import quantize_rows
from tests.helpers.engine_products import KERNELS, can_run, integer_matmul, matmul


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    if not can_run(request.param):
        pytest.skip(f"this processor cannot run {request.param}, or it was not compiled")
    monkeypatch.setenv("TCLIP_KERNEL", request.param)
    assert library().tclip_kernel_name().decode() == request.param
    return request.param


def problem(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (m, k)).astype(np.int8)
    return q, rng.integers(-1, 2, (k, n)).astype(np.int8)


@pytest.mark.parametrize("m", [1, 2, 3, 6, 7, 12, 13, 25])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (15, 33), (16, 16), (256, 64), (300, 70), (1040, 31)])
def test_integers_are_exact(kernel, m, k, n):
    q, codes = problem(m, k, n)
    expected = q.astype(np.int64) @ codes
    np.testing.assert_array_equal(integer_matmul(kernel, q, codes), expected)


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_do_not_overflow(kernel, m, sign):
    q, codes = np.full((m, 4096), 127 * sign, np.int8), np.ones((4096, 40), np.int8)
    np.testing.assert_array_equal(integer_matmul(kernel, q, codes), 4096 * 127 * sign)
    np.testing.assert_array_equal(integer_matmul(kernel, q, -codes), -4096 * 127 * sign)


@pytest.mark.parametrize("name", KERNELS)
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(1, 700), st.integers(1, 80), st.integers(0, 2**32 - 1))
def test_integers_are_exact_for_any_shape(name, m, k, n, seed):
    if not can_run(name):
        pytest.skip(f"this processor cannot run {name}, or it was not compiled")
    q, codes = problem(m, k, n, seed)
    np.testing.assert_array_equal(integer_matmul(name, q, codes), q.astype(np.int64) @ codes)


# Blocks of 1, 5 and 24 rows do not end with a word of 16.
GROUPS = [(1, 1), (1, 66), (1, 2), (3, 66), (5, 66), (24, 1), (120, 66)]


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("m", [1, 3, 29])
def test_products_are_those_of_the_dequantised_weight(kernel, m, group, activations):
    k, n = 120, 66
    _, codes = problem(m, k, n)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(m, k)).astype(np.float32)
    scale = rng.uniform(0.5, 2, group).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    w = codes * np.repeat(np.repeat(scale.astype(np.float64), k // group[0], 0), n // group[1], 1)
    inputs = x.astype(np.float64)
    if activations == "int8":
        q, s = map(np.asarray, jax.jit(quantize_rows)(x))
        inputs = q * s.astype(np.float64)
    size = np.abs(inputs) @ np.abs(w) + np.abs(bias)
    for b, expected in ((bias, inputs @ w + bias), (None, inputs @ w)):
        error = np.abs(matmul(x, codes, scale, b, activations) - expected)
        # A rounding for each of k sums, and a few for scales and bias.
        assert (error <= (k + 4) * 2.0**-24 * size).all()


def quantized(x):
    q, scale = np.zeros(x.shape, np.int8), np.zeros(len(x), np.float32)
    assert not library().tclip_quantize_rows(
        x.ctypes.data, *x.shape, q.ctypes.data, scale.ctypes.data
    )
    return q, scale


def test_rounding_is_that_of_the_jax_path(kernel):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 77)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (200, 1))
    x = x.astype(np.float32)
    x[0] = 0
    x[1, 0] = 2.0**-110
    # Halves, which go to the even neighbour.
    x[2] = np.arange(77) - 38.5
    x[2, 0] = 127
    q, scale = quantized(x)
    expected_q, expected_scale = map(np.asarray, jax.jit(quantize_rows)(x))
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(scale, expected_scale[:, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_only(kernel, value):
    _, codes = problem(1, 48, 40)
    x, scale = np.ones((3, 48), np.float32), np.ones((1, 40), np.float32)
    x[1, 7] = value
    for activations in ("native", "int8"):
        y = matmul(x, np.abs(codes) | 1, scale, None, activations)
        assert np.isfinite(y[[0, 2]]).all()
        assert not np.isfinite(y[1]).any()


def test_an_unknown_kernel_is_refused(monkeypatch):
    monkeypatch.setenv("TCLIP_KERNEL", "abacus")
    x = np.ones((1, 16), np.float32)
    with pytest.raises(ValueError, match="TCLIP_KERNEL"):
        matmul(x, np.ones((16, 1), np.int8), np.ones((1, 1), np.float32), None, "int8")


def test_a_scale_that_divides_nothing_is_refused():
    x, codes = np.ones((1, 16), np.float32), np.ones((16, 6), np.int8)
    with pytest.raises(ValueError, match="scale"):
        matmul(x, codes, np.ones((1, 4), np.float32), None, "int8")
