"""The kernel for TPUs, in interpret mode and as it is lowered."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from tclip.kernels import ternary_matmul
from tclip.kernels.ternary_matmul import blocks
from tclip.quant import TernaryTensor, pack
from tests.helpers.matmul_problems import (
    TOLERANCE,
    TPU7X,
    V5E,
    V5P,
    V6E,
    integer_rows,
    problem,
    program_for,
    quantized,
)

KERNEL = functools.partial(ternary_matmul, implementation="pallas_tpu")


@contextlib.contextmanager
def interpreted(device=V5E):
    """Runs kernels for the device on the CPU, with NaN in memory that nothing was written to and
    beyond arrays, and an error for reading beyond memory."""
    checks = pltpu.InterpretParams(out_of_bounds_reads="raise", uninitialized_memory="nan")
    with (
        program_for(device),
        pltpu.force_tpu_interpret_mode(checks),
        jax.default_matmul_precision("float32"),
    ):
        yield


def check(x, w, expected, magnitude, device=V5E, **options):
    with interpreted(device):
        y = jax.jit(functools.partial(KERNEL, **options))(x, w)
    assert (y.shape, y.dtype) == (expected.shape, x.dtype)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[x.dtype.type] * magnitude + 1e-12).all()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "scale_shape"),
    [
        ((1, 1, 1), ()),
        ((8, 16, 128), (1, 1)),
        ((77, 588, 130), (1, 130)),
        ((3, 256, 40), (2, 40)),
    ],
)
def test_native_product(shape, scale_shape, dtype):
    m, k, n = shape
    check(*problem((m,), k, n, scale_shape, dtype))


@pytest.mark.parametrize("device", [V5E, V6E, TPU7X])
@pytest.mark.parametrize(
    ("shape", "scale_shape"),
    [((1, 1, 1), ()), ((77, 588, 130), (1, 130)), ((3, 256, 40), (2, 40))],
)
def test_int8_sums_are_exact_integers(shape, scale_shape, device):
    m, k, n = shape
    codes = np.random.default_rng(0).integers(-1, 2, (k, n)).astype(np.int8)
    x = integer_rows((m, k))
    w = TernaryTensor(pack(codes), jnp.ones(scale_shape), k)
    with interpreted(device):
        y = jax.jit(functools.partial(KERNEL, activations="int8"))(jnp.asarray(x, jnp.float32), w)
    np.testing.assert_array_equal(y, x @ codes.astype(np.int64))


@pytest.mark.parametrize("rows", [100, 200])
def test_int8_sums_shared_by_two_matrix_units_are_exact(rows):
    # Three products of 256 of K: of the first, each unit of v6e takes half of the rows.
    test_int8_sums_are_exact_integers((rows, 700, 300), (1, 300), V6E)


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("device", [V5E, V6E, TPU7X])
def test_the_matrix_unit_is_asked_for_what_it_can(device, activations):
    # The compiler refuses products of bfloat16 or int8 in a higher precision, as of float32.
    x, w, *_ = problem((256,), 768, 256, (1, 256), jnp.float32)
    with program_for(device), jax.default_matmul_precision("float32"):
        program = str(jax.make_jaxpr(functools.partial(KERNEL, activations=activations))(x, w))
    precisions = set(re.findall(r"precision=(\S+)", program))
    assert program.count("dot_general[") > 0
    assert precisions <= {"None", "(Precision.DEFAULT,", "Precision.DEFAULT"}


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_shape(data):
    m, k, n = (data.draw(st.integers(1, most)) for most in (40, 300, 300))
    activations = data.draw(st.sampled_from(["native", "int8"]))
    x, w, *_ = problem((m,), k, n, (1, n), jnp.float32, data.draw(st.integers(0, 2**16)))
    x64 = quantized(x) if activations == "int8" else np.asarray(x, np.float64)
    w64 = np.asarray(w.dequantize(), np.float64)
    # A value halfway between two integers may be rounded to the other: random values are not.
    check(x, w, x64 @ w64, np.abs(x64) @ np.abs(w64), activations=activations)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of rows, of columns and of K in products of a few hundred."""
    monkeypatch.setattr(blocks, "INPUTS", 128)
    monkeypatch.setattr(blocks, "CODES", 128 * 256)
    monkeypatch.setattr(blocks, "FEWEST_COLUMNS", 256)
    most = blocks.Most(rows=32, products=32 * 128 * 256)
    monkeypatch.setattr(blocks, "MOST", dict.fromkeys(blocks.MOST, most))


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize(
    ("shape", "scale_shape"),
    [((70, 300, 300), (1, 300)), ((40, 384, 300), (3, 300)), ((70, 100, 600), (1, 600))],
)
def test_many_blocks(small_blocks, shape, scale_shape, activations):
    m, k, n = shape
    x, w, *_ = problem((m,), k, n, scale_shape, jnp.float32)
    x64 = quantized(x) if activations == "int8" else np.asarray(x, np.float64)
    w64 = np.asarray(w.dequantize(), np.float64)
    check(x, w, x64 @ w64, np.abs(x64) @ np.abs(w64), activations=activations)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
def test_bias_and_activation_equal_the_reference(activation):
    x, w, *_ = problem((5,), 40, 20, (1, 20), jnp.float32)
    options = {"bias": jnp.linspace(-2, 2, 20), "activation": activation, "activations": "int8"}
    with interpreted():
        y = jax.jit(functools.partial(KERNEL, activation=activation, activations="int8"))(
            x, w, bias=options["bias"]
        )
    expected = ternary_matmul(x, w, implementation="xla", **options)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_float32_follows_the_default_precision():
    x, w, expected, magnitude = problem((5,), 40, 20, (1, 20), jnp.float32)
    with interpreted(), jax.default_matmul_precision("default"):
        y = jax.jit(KERNEL)(x, w)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= 2.0**-8 * magnitude).all()
    assert (error > 1e-5 * magnitude).any()


def test_nan_in_x_shows_in_its_row_only():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    with interpreted():
        y = jax.jit(KERNEL)(x.at[0, 3].set(jnp.nan), w)
    assert jnp.isnan(y[0]).all()
    assert jnp.isfinite(y[1]).all()


def lowered(device, x, w, **options):
    """The text of the program for the device, of which there may be none here."""
    with program_for(device):
        traced = jax.jit(functools.partial(ternary_matmul, **options)).trace(x, w)
    return traced.lower(lowering_platforms=(device.platform,)).as_text()


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("device", [V5E, V5P, V6E, TPU7X])
def test_tpus_run_the_kernel_by_default(device, activations):
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    text = lowered(device, x, w, activations=activations)
    assert text.count("tpu_custom_call") == 1
    assert "ternary_matmul" in text
    assert "dot_general" not in text


def test_stacked_weights_under_vmap_are_one_kernel():
    # Interpret mode does not know how vmap changes a grid.
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    with program_for(V5E):
        traced = jax.jit(jax.vmap(ternary_matmul, in_axes=(None, 0))).trace(x, stacked)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 1


def test_the_reference_runs_where_it_is_asked_for():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    text = lowered(V5E, x, w, implementation="xla")
    assert "tpu_custom_call" not in text
    assert "dot_general" in text


@pytest.mark.parametrize(
    ("device", "rows", "scale_shape", "activations", "reason"),
    [
        (AbstractDevice("cpu", None, "cpu"), 256, (1, 1), "native", "it needs a TPU, and the prog"),
        (AbstractDevice("TPU v4", 2, "tpu"), 256, (1, 1), "native", "TPU v4 does not read int2"),
        (V5E, 256, (4, 8), "native", "K-blocks of its scale have 64 rows, which 128 does not"),
        (TPU7X, 2**18, (1, 1), "int8", "a float32 sum over 262144 rows is not exact"),
    ],
)
def test_what_the_kernel_cannot_do(device, rows, scale_shape, activations, reason):
    x = jax.ShapeDtypeStruct((2, rows), jnp.bfloat16)
    words = jax.ShapeDtypeStruct((rows // 16, 8), jnp.int32)
    w = TernaryTensor(words, jax.ShapeDtypeStruct(scale_shape, jnp.float32), rows)
    with program_for(device):
        with pytest.raises(ValueError, match=f"'pallas_tpu' cannot run: .*{reason}"):
            jax.eval_shape(functools.partial(KERNEL, activations=activations), x, w)
        jax.eval_shape(functools.partial(ternary_matmul, activations=activations), x, w)


def test_the_compiler_cannot_split_the_kernel():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    mesh = AbstractMesh((8,), ("x",), axis_types=(AxisType.Auto,), abstract_device=V5E)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match=r"call it under jax\.shard_map"),
    ):
        KERNEL(x, w)
