"""The kernel for NVIDIA GPUs compiled to machine code, and run where there is a GPU.

`pip install "tclip[cuda]"` brings the compiler, which needs no GPU. Where there is one, this file
says whether products are right, and these how fast they are, of which `MOST_ROWS` in
`tclip.kernels.ternary_matmul.gpu` and the costs in its `gpu_blocks` should be made:

    python -m launch.bench matmul --shapes=768x768,768x3072,3072x768,1024x4096,4096x4096 \
        --rows=1,16,32,64,128,197,256,512,1024,1576,2048,3152,4096,6304,12608 --weights=16 \
        --implementations=default,pallas_gpu,xla --out=crossover.json
    python -m launch.bench matmul --shapes=768x3072,3072x768,4096x4096 \
        --rows=1,16,32,64,128,197,256,1576 --weights=16 \
        --implementations=default,tiles --out=tiles.json

Sixteen weights in turn, because those of a model do not all fit the L2 cache in bfloat16.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tclip.bench.gpu_schedule import tile_product
from tclip.hardware.gpu_compiler import compile_for_gpu, is_installed
from tclip.kernels import ternary_matmul
from tclip.kernels.ternary_matmul.gpu_blocks import TILES
from tclip.quant import TernaryTensor, pack
from tests.helpers.matmul_problems import TOLERANCE, integer_rows, problem, quantized, shapes_of


@pytest.fixture(scope="module")
def need_compiler():
    if not is_installed():
        pytest.skip("jax's compiler for NVIDIA GPUs is not installed")


every_tile = pytest.mark.parametrize("tile", TILES, ids=lambda tile: tile.name)


@pytest.mark.parametrize("activations", ["native", "int8"])
@every_tile
@pytest.mark.parametrize(
    ("major", "minor", "shared_memory"),
    [(8, 0, 166912), (8, 9, 101376), (9, 0, 232448), (10, 0, 232448)],
)
def test_it_compiles_without_a_gpu(need_compiler, major, minor, shared_memory, tile, activations):
    function = functools.partial(tile_product, tile, activations)
    card = {"major": major, "minor": minor, "shared_memory": shared_memory}
    shapes = shapes_of(tile.rows + 1, 588, 1001, (1, 1001), jnp.bfloat16)
    compiled = compile_for_gpu(function, shapes, **card)
    assert compiled.as_text().count("xla.gpu.triton") == 1


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("scale_blocks", [1, 12])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_all_of_a_layer_is_one_kernel(need_compiler, dtype, scale_blocks, activation):
    def layer(x, w, bias):
        return ternary_matmul(x, w, bias=bias, activation=activation)

    shapes = shapes_of(1576, 768, 3072, (scale_blocks, 3072), dtype)
    text = compile_for_gpu(layer, (*shapes, jax.ShapeDtypeStruct((3072,), dtype))).as_text()
    # What splits a float32 into terms comes before.
    others = len(re.findall(r" = .* fusion\(", text[text.index("ENTRY") :]))
    assert text.count("xla.gpu.triton") == 1
    assert others == (dtype == jnp.float32)


@pytest.mark.parametrize("activations", ["native", "int8"])
@every_tile
def test_codes_reach_tensor_cores_from_registers(need_compiler, tmp_path, tile, activations):
    compile_for_gpu(
        functools.partial(tile_product, tile, activations),
        shapes_of(1576, 8192, 4096, (1, 4096), jnp.bfloat16),
        compiler_options={"xla_dump_to": str(tmp_path)},
    )
    texts = [path.read_text() for path in tmp_path.glob("*.ptx")]
    (ptx,) = (text for text in texts if ".entry ternary_matmul_kernel" in text)
    label = re.findall(r"bra\S*\s+(\$L__BB\S+);", ptx)[-1]
    loop = re.search(rf"^{re.escape(label)}:(.*?)bra\S*\s+{re.escape(label)};", ptx, re.M | re.S)
    products = re.findall(r"wgmma\.mma_async\S* \{[^}]*\}, (\S)", loop[1])
    assert products
    assert set(products) == {"{"}  # and not the address of codes in shared memory
    assert "st.shared" not in loop[1]


@pytest.mark.parametrize("activations", ["native", "int8"])
def test_one_weight_is_expanded_at_a_time(need_compiler, activations):
    def layers(x, *weights):
        for w in weights:
            x = ternary_matmul(x, w, activations=activations, implementation="xla")
        return x

    x, w = shapes_of(72, 4096, 4096, (1, 4096), jnp.bfloat16)
    memory = compile_for_gpu(layers, (x, *[w] * 6)).memory_analysis()
    # Expanded to 8 bits. There is more: its words in another order, and parts of the result.
    assert 4096**2 <= memory.temp_size_in_bytes < 2 * 4096**2


@pytest.fixture(scope="module")
def gpu():
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("there is no NVIDIA GPU")
    with jax.default_device(device):
        yield device


def expected_of_int8(x, w):
    """What a product of 8-bit activations should be, and the magnitude that its error refers to."""
    x64, w64 = quantized(x), np.asarray(w.dequantize(), np.float64)
    # A value halfway between two integers may be rounded to the other.
    step = np.abs(np.asarray(x, np.float64)).max(axis=-1, keepdims=True) / 127
    return x64 @ w64, (np.abs(x64) + step / 100) @ np.abs(w64)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "scale_shape"),
    [
        ((1, 1, 1), ()),
        ((1, 4096, 4096), (1, 4096)),
        ((5, 588, 1001), (1, 1001)),
        ((17, 768, 3072), (1, 1)),
        ((32, 3072, 768), (3, 768)),
        ((200, 1024, 4096), (1, 4096)),
        ((1000, 3072, 768), (12, 768)),
        ((70, 768, 512), (12, 1)),
    ],
)
def test_products_on_a_gpu(gpu, shape, scale_shape, dtype):
    m, k, n = shape
    x, w, expected, magnitude = problem((m,), k, n, scale_shape, dtype)
    with jax.default_matmul_precision("float32"):
        y = jax.jit(functools.partial(ternary_matmul, implementation="pallas_gpu"))(x, w)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[dtype] * magnitude + 1e-12).all()


@pytest.mark.parametrize("activations", ["native", "int8"])
@every_tile
def test_tiles_on_a_gpu(gpu, tile, activations):
    x, w, expected, magnitude = problem((300,), 1500, 1001, (1, 1001), jnp.bfloat16)
    if activations == "int8":
        expected, magnitude = expected_of_int8(x, w)
    y = jax.jit(functools.partial(tile_product, tile, activations))(x, w)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[jnp.bfloat16] * magnitude).all()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("rows", [3, 1576])
def test_layers_on_a_gpu(gpu, rows, activation):
    x, w, *_ = problem((rows,), 768, 3072, (1, 3072), jnp.float32)
    options = {"bias": jnp.linspace(-2, 2, 3072), "activation": activation}
    with jax.default_matmul_precision("float32"):
        y, expected = (
            jax.jit(functools.partial(ternary_matmul, implementation=name, **options))(x, w)
            for name in ("pallas_gpu", "xla")
        )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 588, 1001), (33, 4096, 4096), (200, 768, 3072)])
def test_int8_sums_on_a_gpu_are_exact_integers(gpu, shape):
    m, k, n = shape
    codes = np.random.default_rng(0).integers(-1, 2, (k, n)).astype(np.int8)
    w = TernaryTensor(pack(codes), jnp.ones((1, 1)), k)
    x = integer_rows((m, k))
    function = functools.partial(ternary_matmul, activations="int8", implementation="pallas_gpu")
    y = jax.jit(function)(jnp.asarray(x, jnp.float32), w)
    np.testing.assert_array_equal(y, x @ codes.astype(np.int64))


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("rows", [1, 16, 64, 256, 2048, 2049, 4097])
def test_what_a_gpu_takes_by_default(gpu, rows, activations):
    x, w, expected, magnitude = problem((rows,), 768, 3072, (1, 3072), jnp.bfloat16)
    if activations == "int8":
        expected, magnitude = expected_of_int8(x, w)
    y = jax.jit(functools.partial(ternary_matmul, activations=activations))(x, w)
    error = np.abs(np.asarray(y, np.float64) - expected)
    assert (error <= TOLERANCE[jnp.bfloat16] * magnitude).all()
