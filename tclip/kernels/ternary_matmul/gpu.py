"""Ternary matmul for NVIDIA GPUs.

A program multiplies a tile of the result. Codes are the left operand, which the tensor cores of an
H100 take from registers: a thread unpacks its own, in their natural order, from words in shared
memory, and x goes from there to the tensor cores as it is. Scales, bias and activation function
follow in the same kernel. Where there are few tiles, programs share K, and XLA adds up what they
write and does the rest.

Its arithmetic is tested in interpret mode, and the compiler takes it for NVIDIA's GPUs; it has not
run on one.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import AbstractDevice

from tclip.kernels.int8 import LARGEST, quantize_rows
from tclip.kernels.shard_map import split_by_compiler, vary_together
from tclip.kernels.target import float32_is_exact
from tclip.kernels.ternary_matmul.gpu_blocks import BLOCK, TILES, Tile, choose_blocks
from tclip.kernels.ternary_matmul.gpu_kernel import FORMATS, Config, finish, ternary_matmul_kernel
from tclip.quant.groups import expand
from tclip.quant.packing import CODES_PER_WORD
from tclip.quant.tensor import TernaryTensor

# Up to so many rows it is taken where no implementation is named: derived for an H100, not
# measured. Reading the weight is the bound up to 37 rows, 74 in int8, and up to 295 of a dense
# bfloat16 product. Beyond, the largest tiles can keep the tensor cores as busy as a dense product
# does (`python -m launch.bench gpu_schedule`), if nothing stalls them. What the reference adds to
# cuBLAS' product falls to a tenth of it at the first of these numbers; in int8 it adds twice that.
MOST_ROWS = {"native": 2048, "int8": 4096}
# Steps of a program that are loaded at a time.
STAGES = 3


def unavailable(
    x_MxK: jax.Array, w: TernaryTensor, activations: str, device: AbstractDevice
) -> str:
    """Why the kernel cannot multiply x by w on the device; "" if it can."""
    if not device.device_kind.startswith("NVIDIA"):
        return f"it needs an NVIDIA GPU, and the program is for {device.device_kind}"
    if (capability := _compute_capability()) < 8:
        return f"{device.device_kind} has compute capability {capability}, and Triton needs 8.0"
    if split_by_compiler():
        return "XLA cannot split a kernel over a mesh; call it under jax.shard_map"
    if 0 in (*x_MxK.shape, *w.shape):
        return "there is nothing to multiply"
    block = w.rows // w.scale.shape[0] if w.scale.ndim else w.rows
    if block != w.rows and block % BLOCK:
        return f"the K-blocks of its scale have {block} rows, which {BLOCK} does not divide"
    if activations == "int8" and block * LARGEST * FORMATS[jnp.int8].unit >= 2**31:
        return f"an int32 cannot hold sums over {block} rows of 8-bit activations"
    return ""


def _compute_capability() -> float:
    """Of the GPU here; infinity where there is none, and the program is only compiled."""
    try:
        return float(jax.local_devices(backend="cuda")[0].compute_capability)
    except RuntimeError:
        return math.inf


def matmul(
    x_MxK: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    *,
    rows: int,
    activations: str,
    activation: str | None,
    tiles: tuple[Tile, ...] = TILES,
) -> jax.Array:
    """`activation(x @ w + bias)`, in one of the tiles; see `ternary_matmul`.

    Native float32 activations are multiplied as two bfloat16 terms, more precisely than TF32, or as
    three, exactly, if `jax.default_matmul_precision` asks for it.
    """
    row_scale = None
    terms = [x_MxK]
    if activations == "int8":
        terms[0], row_scale = quantize_rows(x_MxK)
    elif x_MxK.dtype == jnp.float32:
        terms = _terms(x_MxK, 3 if float32_is_exact() else 2)
    scale = scale if scale.ndim else scale[None, None]
    shape = (x_MxK.shape[0], rows, words.shape[1])
    config = Config(
        shape=shape,
        terms=len(terms),
        blocks=choose_blocks(shape, scale.shape[0], 8 * terms[0].dtype.itemsize, tiles),
        activation=activation,
        dtype=x_MxK.dtype,
    )
    operands = {
        "x": jnp.concatenate([_whole_words(term) for term in terms], axis=1),
        "words": words,
        "scale": expand(scale, (scale.shape[0], words.shape[1])),
        "row_scale": row_scale,
        "bias": None if bias is None else bias[None],
    }
    y_PxMxN = _call(config, operands)
    if y_PxMxN.shape[0] == 1:
        return y_PxMxN[0]
    return finish(config, y_PxMxN.sum(axis=0), row_scale, bias)


def _terms(x: jax.Array, count: int) -> list[jax.Array]:
    """bfloat16 arrays whose sum is the float32 x, to 8 bits a term; three hold all of its 24."""
    terms = []
    for _ in range(count):
        # XLA takes the liberty of leaving out a conversion there and back, but not this.
        rounded = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(rounded.astype(jnp.bfloat16))
        x = x - rounded
    return terms


def _whole_words(x_MxK: jax.Array) -> jax.Array:
    """x with zeros to the end of the last word, so that its rows begin where loads are widest."""
    return jnp.pad(x_MxK, [(0, 0), (0, -x_MxK.shape[1] % CODES_PER_WORD)])


def _call(config: Config, operands: dict[str, jax.Array | None]) -> jax.Array:
    """The result [1, M, N] in its dtype, or before what follows the sum float32 [parts, M, N]."""
    m, _, n = config.shape
    tile, parts = config.blocks.tile, config.blocks.parts
    operands = dict(zip(operands, vary_together(*operands.values()), strict=True))
    return pl.pallas_call(
        functools.partial(ternary_matmul_kernel, config),
        # Programs that run together have all of the columns, and share x.
        grid=(pl.cdiv(n, tile.columns), pl.cdiv(m, tile.rows), parts),
        out_shape=jax.ShapeDtypeStruct(
            (parts, m, n),
            config.dtype if parts == 1 else jnp.float32,
            manual_axis_type=jax.typeof(operands["x"]).manual_axis_type,
        ),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=STAGES),
    )(operands)
