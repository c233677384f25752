"""The kernel for NVIDIA GPUs, in interpret mode and as it is lowered."""

import contextlib
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tclip.kernels import ternary_matmul
from tclip.kernels.ternary_matmul import api, gpu, gpu_blocks
from tclip.quant import TernaryTensor, pack
from tests.helpers.matmul_problems import (
    H100,
    TOLERANCE,
    integer_rows,
    problem,
    program_for,
    quantized,
    shapes_of,
)

KERNEL = functools.partial(ternary_matmul, implementation="pallas_gpu")
CALL = "__gpu$xla.gpu.triton"


@contextlib.contextmanager
def interpreted():
    """Runs kernels for GPUs on the CPU, with NaN in what is read beyond an array."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.default_matmul_precision("float32"),
    ):
        patch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
        patch.setattr(api, "target_device", lambda: H100)
        yield


def check(y, x, expected, magnitude):
    assert (y.shape, y.dtype) == (expected.shape, x.dtype)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[x.dtype.type] * magnitude + 1e-12).all()


def run(x, w, **options):
    with interpreted():
        return jax.jit(functools.partial(KERNEL, **options))(x, w)


def run_tile(tile, x, w, activations="native"):
    def product(x, w):
        options = {"rows": w.rows, "activations": activations, "activation": None}
        return gpu.matmul(x, w.words, w.scale, None, **options, tiles=(tile,))

    with interpreted():
        return jax.jit(product)(x, w)


SHAPES = [
    ((1, 1, 1), ()),
    ((17, 588, 130), (1, 130)),
    ((3, 512, 40), (2, 40)),
    ((3, 576, 40), (3, 1)),
    ((70, 100, 70), (1, 1)),
]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("shape", "scale_shape"), SHAPES)
def test_native_product(shape, scale_shape, dtype):
    m, k, n = shape
    x, w, expected, magnitude = problem((m,), k, n, scale_shape, dtype)
    check(run(x, w), x, expected, magnitude)


@pytest.mark.parametrize(("shape", "scale_shape"), [*SHAPES, ((2, 4096, 40), (1, 1))])
def test_int8_sums_are_exact_integers(shape, scale_shape):
    m, k, n = shape
    codes = np.random.default_rng(0).integers(-1, 2, (k, n)).astype(np.int8)
    x = integer_rows((m, k))
    w = TernaryTensor(pack(codes), jnp.ones(scale_shape), k)
    y = run(jnp.asarray(x, jnp.float32), w, activations="int8")
    np.testing.assert_array_equal(y, x @ codes.astype(np.int64))


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_shape(data):
    m, k, n = (data.draw(st.integers(1, most)) for most in (70, 1500, 150))
    activations = data.draw(st.sampled_from(["native", "int8"]))
    x, w, *_ = problem((m,), k, n, (1, n), jnp.float32, data.draw(st.integers(0, 2**16)))
    x64, w64 = np.asarray(x, np.float64), np.asarray(w.dequantize(), np.float64)
    rounded = quantized(x) if activations == "int8" else x64
    # A value halfway between two integers may be rounded to the other.
    step = np.abs(rounded).max(axis=-1, keepdims=True) / 127
    halfway = np.abs(np.abs(x64 - rounded) - step / 2) < 1e-5 * step
    magnitude = (np.abs(rounded) + halfway * step / TOLERANCE[jnp.float32]) @ np.abs(w64)
    check(run(x, w, activations=activations), x, rounded @ w64, magnitude)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("tile", gpu_blocks.TILES, ids=lambda tile: tile.name)
def test_every_tile_up_to_the_edges(tile, dtype):
    m, k, n = tile.rows + 3, 2 * 16 * tile.words + 20, tile.columns + 5
    if dtype == jnp.bfloat16:
        x, w, expected, magnitude = problem((m,), k, n, (1, n), dtype)
        check(run_tile(tile, x, w), x, expected, magnitude)
    else:
        codes = np.random.default_rng(0).integers(-1, 2, (k, n)).astype(np.int8)
        x = integer_rows((m, k))
        w = TernaryTensor(pack(codes), jnp.ones((1, 1)), k)
        y = run_tile(tile, jnp.asarray(x, jnp.float32), w, activations="int8")
        np.testing.assert_array_equal(y, x @ codes.astype(np.int64))


@pytest.mark.parametrize(
    ("k", "scale_blocks", "steps", "together", "splits"),
    [
        (512, 1, 2, 1, 4),
        (512, 1, 3, 1, 3),  # the last has a step too many
        (500, 1, 3, 1, 3),  # and K ends within a step
        (768, 3, 4, 1, 1),
        (768, 3, 3, 1, 2),  # the second has two steps too many, which are of another K-block
        (1024, 4, 4, 2, 1),
        (1024, 4, 4, 4, 1),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_way_to_divide_k(monkeypatch, k, scale_blocks, steps, together, splits, dtype):
    parts = scale_blocks // together * splits
    blocks = gpu_blocks.Blocks(gpu_blocks.TILES[-1], 4, steps, together, splits, parts)
    monkeypatch.setattr(gpu, "choose_blocks", lambda *_: blocks)
    x, w, expected, magnitude = problem((3,), k, 70, (scale_blocks, 70), dtype)
    check(run(x, w), x, expected, magnitude)


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
    assert (error <= 2.0**-16 * magnitude).all()
    assert (error > 2e-7 * magnitude).any()


def test_nan_in_x_shows_in_its_row_only():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.float32)
    y = run(x.at[0, 3].set(jnp.nan), w)
    assert jnp.isnan(y[0]).all()
    assert jnp.isfinite(y[1]).all()


@pytest.mark.parametrize("activations", ["native", "int8"])
def test_gradients_are_those_of_the_reference(activations):
    x, w, *_ = problem((3,), 40, 20, (1, 20), jnp.float32)
    bias, scale = jnp.linspace(-1, 1, 20), w.scale.astype(jnp.float32)

    def gradient(implementation):
        def loss(x, scale, bias):
            y = ternary_matmul(
                x,
                TernaryTensor(w.words, scale, 40),
                bias=bias,
                activations=activations,
                activation="quick_gelu",
                implementation=implementation,
            )
            return jnp.sin(y).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, scale, bias)

    with interpreted():
        actual = gradient("pallas_gpu")
    for ours, theirs in zip(actual, gradient("xla"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", ["outputs", "inputs"])
@pytest.mark.parametrize("activations", ["native", "int8"])
def test_sharded_products(split, activations):
    x, w, *_ = problem((3,), 64, 32, (1, 32), jnp.float32)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def local(x, words, scale):
        y = KERNEL(x, TernaryTensor(words, scale, 16 * words.shape[0]), activations=activations)
        return y if split == "outputs" else jax.lax.psum(y, "x")

    columns = P(None, "x")
    specs = (P(), columns, columns) if split == "outputs" else (columns, P("x"), P())
    out = columns if split == "outputs" else P()
    # Interpret mode does not know which values vary over the mesh; lowering for a GPU does.
    sharded = functools.partial(jax.shard_map, local, in_specs=specs, out_specs=out)
    with interpreted():
        y = jax.jit(sharded(mesh=mesh, check_vma=False))(x, w.words, w.scale)
    gpus = AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H100)
    with jax.sharding.use_abstract_mesh(gpus):
        traced = jax.jit(sharded(mesh=gpus)).trace(x, w.words, w.scale)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count(CALL) == 1
    parts = np.asarray(x, np.float64).reshape(3, 4 if split == "inputs" else 1, -1)
    x64 = (quantized(parts) if activations == "int8" else parts).reshape(3, 64)
    w64 = np.asarray(w.dequantize(), np.float64)
    check(y, x, x64 @ w64, np.abs(x64) @ np.abs(w64))


@pytest.mark.parametrize("activations", ["native", "int8"])
def test_the_reference_as_gpus_run_it(activations):
    x, w, *_ = problem((2, 3), 40, 20, (5, 20), jnp.float32)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)

    def value_and_gradients(x, w):
        product = functools.partial(ternary_matmul, activations=activations, implementation="xla")
        layers = jax.vmap(product, in_axes=(None, 0))
        return layers(x, w), jax.grad(lambda x: jnp.sin(layers(x, w)).sum())(x)

    expected = jax.jit(value_and_gradients)(x, stacked)
    with interpreted():
        actual = jax.jit(lambda *args: value_and_gradients(*args))(x, stacked)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def lowered(x, w, device=H100, **options):
    """The text of the program for the device, of which there may be none here."""
    with program_for(device):
        traced = jax.jit(functools.partial(ternary_matmul, **options)).trace(x, w)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


CLASSES = [
    (shape, scale_shape, dtype, activations)
    for (shape, scale_shape), dtype, activations in itertools.product(
        [
            ((1, 4096, 4096), (1, 4096)),
            ((16, 768, 3072), (1, 1)),
            ((32, 3072, 768), (3, 768)),
            ((5, 588, 1001), ()),
            ((1576, 3072, 768), (1, 768)),
        ],
        TOLERANCE,
        ["native", "int8"],
    )
]


@pytest.mark.parametrize(("shape", "scale_shape", "dtype", "activations"), CLASSES)
def test_gpus_run_the_kernel_by_default(shape, scale_shape, dtype, activations):
    text = lowered(*shapes_of(*shape, scale_shape, dtype), activations=activations)
    assert text.count(CALL) == 1
    assert "ternary_matmul_kernel" in text
    assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize(("activations", "most"), gpu.MOST_ROWS.items())
def test_more_rows_are_left_to_xla_unless_the_kernel_is_named(activations, most):
    def program(rows, **options):
        operands = shapes_of(rows, 768, 3072, (1, 3072), jnp.bfloat16)
        return lowered(*operands, activations=activations, **options)

    assert CALL in program(most)
    assert CALL in program(most + 1, implementation="pallas_gpu")
    text = program(most + 1)
    assert CALL not in text
    # All columns at once, where other platforms take a part after the other.
    assert re.search(rf"stablehlo.dot_general.*-> tensor<(1x)?{most + 1}x3072x", text)


def test_stacked_weights_under_vmap_are_one_kernel():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), w)
    with program_for(H100):
        traced = jax.jit(jax.vmap(ternary_matmul, in_axes=(None, 0))).trace(x, stacked)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count(CALL) == 1


@pytest.mark.parametrize(
    ("device", "rows", "scale_shape", "activations", "reason"),
    [
        (AbstractDevice("cpu", None, "cpu"), 256, (1, 1), "native", "it needs an NVIDIA GPU, and"),
        (AbstractDevice("AMD Instinct MI300X", None, "gpu"), 256, (1, 1), "native", "NVIDIA GPU"),
        (H100, 256, (8, 8), "native", "K-blocks of its scale have 32 rows, which 64 does not"),
        (H100, 2**19, (1, 1), "int8", "an int32 cannot hold sums over 524288 rows"),
    ],
)
def test_what_the_kernel_cannot_do(device, rows, scale_shape, activations, reason):
    x, w = shapes_of(2, rows, 8, scale_shape, jnp.bfloat16)
    with program_for(device):
        with pytest.raises(ValueError, match=f"'pallas_gpu' cannot run: .*{reason}"):
            jax.eval_shape(functools.partial(KERNEL, activations=activations), x, w)
        jax.eval_shape(functools.partial(ternary_matmul, activations=activations), x, w)


def test_cards_before_ampere_are_refused(monkeypatch):
    monkeypatch.setattr(gpu, "_compute_capability", lambda: 7.5)
    x, w = shapes_of(2, 256, 8, (1, 1), jnp.bfloat16)
    with program_for(H100), pytest.raises(ValueError, match=r"capability 7\.5, and Triton needs 8"):
        jax.eval_shape(KERNEL, x, w)


def test_the_compiler_cannot_split_the_kernel():
    x, w, *_ = problem((2,), 24, 5, (1, 5), jnp.bfloat16)
    mesh = AbstractMesh((8,), ("x",), axis_types=(AxisType.Auto,), abstract_device=H100)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match=r"call it under jax\.shard_map"),
    ):
        KERNEL(x, w)
