"""Ternary matmul for NVIDIA GPUs where x has few rows, and reading the weight is what takes time.

A code at the top of a float is a float: its two bits 01 are 2 and 11 are -2, in bfloat16 as in
float16, and in int8 they are 64 and -64. So a shift and a mask turn a word into two floats or four
int8, of the codes that lie 16 or 8 bits apart in it. They take the places of neighbouring inputs in
an operand of the tensor cores, and x is rearranged to match.

Programs share columns and K, so that there are enough of them, and write what they sum. The rest,
the sum of those sums, scales, bias and activation function, XLA fuses with what follows.

Written in Pallas for Triton. Its arithmetic is tested in interpret mode, and the compiler takes it
for NVIDIA's GPUs; it has not run on one.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import AbstractDevice

from tclip.kernels.activations import activate
from tclip.kernels.int8 import LARGEST, quantize_rows
from tclip.kernels.manual_axes import split_by_compiler, vary_together
from tclip.kernels.ternary_matmul.parts import block_scales, float32_is_exact
from tclip.quant.packing import CODES_PER_WORD
from tclip.quant.tensor import TernaryTensor

# Up to so many rows it is taken where no implementation is named: derived, not measured. Reading
# the weight is the bound up to 26 rows on an H200 and 37 on an H100 (52 and 74 in int8), and then
# arithmetic is. As compiled, the reference writes the weight out in 8 bits and reads it back, which
# takes as long as 206 and 295 rows of arithmetic at the peak (twice that in int8), or half as long
# if a cache holds it. So up to here the kernel has a third of the peak to reach.
MOST_ROWS = {"native": 32, "int8": 64}
# Programs that keep a GPU busy: two for each of the 132 multiprocessors of an H100 or H200.
PROGRAMS = 264
# Columns of a program, which tensor cores of that generation take at a time, and its warps.
COLUMNS, WARPS = 64, 4
# Rows of x in a program, a power of two: those that tensor cores take at least, and the most.
FEWEST, MOST = 16, 64
# A K-block of scales has a multiple of so many rows: the sums of each are written out.
BLOCK = 256
# By dtype of x: the code 1 as that dtype, and the integer that has its size.
UNITS = {jnp.bfloat16: 2, jnp.float16: 2, jnp.int8: 64}
LANES_AS = {2: jnp.int16, 4: jnp.int8}


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
    if activations == "int8" and block * LARGEST * UNITS[jnp.int8] >= 2**31:
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
) -> jax.Array:
    """`activation(x @ w + bias)`; see `ternary_matmul`.

    Native float32 activations are multiplied as two bfloat16 terms, more precisely than TF32, or as
    three, exactly, if `jax.default_matmul_precision` asks for it.
    """
    m, n = x_MxK.shape[0], words.shape[1]
    row_scale = None
    terms = [x_MxK]
    if activations == "int8":
        terms[0], row_scale = quantize_rows(x_MxK)
    elif x_MxK.dtype == jnp.float32:
        terms = _terms(x_MxK, 3 if float32_is_exact() else 2)
    scale_GxN = block_scales(scale, n)
    x = jnp.concatenate(terms)
    config = choose_config(x.shape[0], rows, n, scale_GxN.shape[0], x.dtype)
    sums = _call(config, _arrange(x), words).reshape(scale_GxN.shape[0], -1, n, len(terms), m)
    sums_GxNxM = sums.sum(axis=(1, 3)).astype(jnp.float32)
    y_MxN = (sums_GxNxM * (scale_GxN / UNITS[x.dtype.type])[..., None]).sum(axis=0).T
    y_MxN = y_MxN if row_scale is None else y_MxN * row_scale
    y_MxN = y_MxN if bias is None else y_MxN + bias.astype(jnp.float32)
    y_MxN = activate(y_MxN, activation) if activation else y_MxN
    return y_MxN.astype(x_MxK.dtype)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is static in the kernel.

    Attributes:
      shape: M, K and N of [M, K] @ [K, N].
      scale_blocks: scales along K, whose sums are kept apart.
      splits: programs that share a K-block, each with sums of its own.
      steps: loads of words of a program.
      rows: of x in a program.
      words: rows of words that are loaded at once.
      stages: loads under way at a time, and one.
    """

    shape: tuple[int, int, int]
    scale_blocks: int
    splits: int
    steps: int
    rows: int
    words: int
    stages: int

    @property
    def words_in_block(self) -> int:
        return pl.cdiv(pl.cdiv(self.shape[1], CODES_PER_WORD), self.scale_blocks)


def choose_config(m: int, k: int, n: int, scale_blocks: int, dtype: jnp.dtype) -> Config:
    """The blocks for a product [m, k] @ [k, n], and how often K is split.

    What is loaded ahead fits the 99 kB of shared memory that the smaller cards have. K is split
    into parts of at least two steps until there are enough programs to keep a GPU busy.
    """
    rows = min(max(pl.next_power_of_2(m), FEWEST), MOST)
    words = 32 if rows == FEWEST or dtype == jnp.int8 else 16
    stages = 2 if rows == MOST else 3
    steps = pl.cdiv(pl.cdiv(pl.cdiv(k, CODES_PER_WORD), scale_blocks), words)
    programs = pl.cdiv(m, rows) * pl.cdiv(n, COLUMNS) * scale_blocks
    share = pl.cdiv(steps, max(min(PROGRAMS // programs, steps // 2), 1))
    return Config((m, k, n), scale_blocks, pl.cdiv(steps, share), share, rows, words, stages)


def _terms(x: jax.Array, count: int) -> list[jax.Array]:
    """bfloat16 arrays whose sum is the float32 x, to 8 bits a term; three hold all of its 24."""
    terms = []
    for _ in range(count):
        # XLA takes the liberty of leaving out a conversion there and back, but not this.
        rounded = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        terms.append(rounded.astype(jnp.bfloat16))
        x = x - rounded
    return terms


def _arrange(x_MxK: jax.Array) -> jax.Array:
    """x in the order in which codes come out of their words.

    A shift of a word takes a code of each of its `lanes`: in word r, of lane l by shift f, that of
    input 16 r + shifts l + f. Returns [shifts * M, lanes * ceil(K / 16)].
    """
    m, k = x_MxK.shape
    lanes = 4 // x_MxK.dtype.itemsize
    x = jnp.pad(x_MxK, [(0, 0), (0, -k % CODES_PER_WORD)])
    x = x.reshape(m, -1, lanes, CODES_PER_WORD // lanes).transpose(3, 0, 1, 2)
    return x.reshape(m * CODES_PER_WORD // lanes, -1)


def _call(config: Config, x: jax.Array, words: jax.Array) -> jax.Array:
    """x @ (unit * codes) in parts, [scale_blocks * splits, N, M]: float32, or int32 of int8."""
    m, _, n = config.shape
    parts = config.scale_blocks * config.splits
    x, words = vary_together(x, words)
    return pl.pallas_call(
        functools.partial(ternary_matmul_kernel, config),
        grid=(pl.cdiv(m, config.rows), pl.cdiv(n, COLUMNS), parts),
        out_shape=jax.ShapeDtypeStruct(
            (parts, n, m),
            jnp.int32 if x.dtype == jnp.int8 else jnp.float32,
            manual_axis_type=jax.typeof(x).manual_axis_type,
        ),
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=config.stages),
    )(x, words)


def ternary_matmul_kernel(config: Config, x_ref, words_ref, out_ref) -> None:
    """The part of K of a program, for a block of rows and one of columns; named for profiles."""
    m, _, n = config.shape
    shifts = x_ref.shape[0] // m
    lanes = CODES_PER_WORD // shifts
    bits = 32 // lanes
    row, column, part = pl.program_id(0) * config.rows, pl.program_id(1) * COLUMNS, pl.program_id(2)
    block, split = part // config.splits, part % config.splits
    in_m = row + lax.iota(jnp.int32, config.rows) < m
    in_n = column + lax.iota(jnp.int32, COLUMNS) < n
    start = block * config.words_in_block + split * config.steps * config.words
    end = (block + 1) * config.words_in_block

    def step(i, sums):
        first = start + i * config.words
        inside = first + lax.iota(jnp.int32, config.words) < end
        words = plgpu.load(
            words_ref.at[pl.ds(first, config.words), pl.ds(column, COLUMNS)],
            mask=inside[:, None] & in_n[None],
            other=0,
        )
        inside = lanes * first + lax.iota(jnp.int32, lanes * config.words) < lanes * end
        for shift in range(shifts):
            x = plgpu.load(
                x_ref.at[pl.ds(shift * m + row, config.rows), pl.ds(lanes * first, inside.size)],
                mask=in_m[:, None] & inside[None],
                other=0,
            )
            codes = _top_bits(words << (bits - 2 - 2 * shift), lanes, x.dtype)
            sums += lax.dot_general(
                codes, x, (((0,), (1,)), ((), ())), preferred_element_type=sums.dtype
            )
        return sums

    zeros = jnp.zeros((COLUMNS, config.rows), out_ref.dtype)
    sums = lax.fori_loop(0, config.steps, step, zeros)
    plgpu.store(
        out_ref.at[part, pl.ds(column, COLUMNS), pl.ds(row, config.rows)],
        sums,
        mask=in_n[:, None] & in_m[None],
    )


def _top_bits(words: jax.Array, lanes: int, dtype: jnp.dtype) -> jax.Array:
    """The two bits at the top of each lane of words [W, N], as `dtype`, [lanes * W, N]."""
    bits = 32 // lanes
    top = sum(0b11 << bits * (lane + 1) - 2 for lane in range(lanes)) - 2**32
    words &= jnp.int32(top)
    parts = [
        lax.shift_right_logical(words, jnp.int32(bits * lane)).astype(LANES_AS[lanes])
        for lane in range(lanes)
    ]
    # Triton joins two arrays at a time, along a new last axis.
    while len(parts) > 1:
        pairs = zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True)
        parts = [lax.concatenate([a[..., None], b[..., None]], a.ndim) for a, b in pairs]
    (joined,) = parts
    joined = joined.transpose(0, *range(2, joined.ndim), 1)
    return lax.bitcast_convert_type(joined.reshape(lanes * words.shape[0], -1), dtype)
