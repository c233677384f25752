"""A tile of a ternary product, in Pallas for Triton.

A code at the top of a float is a float: its two bits 01 are 2 and 11 are -2, in bfloat16 as in
float16, and in int8 they are 64 and -64. So a shift, a multiplication that spreads neighbouring
codes over a register, and a mask make of a word what tensor cores multiply.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tclip.kernels.activations import activate
from tclip.kernels.ternary_matmul.gpu_blocks import Blocks
from tclip.quant.packing import CODES_PER_WORD

# Rows of a tile that are finished at a time: what an activation function needs for all of them
# would take the registers of another program.
FINISHED = 32


@dataclasses.dataclass(frozen=True)
class Format:
    """Codes as numbers of the tensor cores.

    Attributes:
      unit: what the code 1 becomes.
      integer: of the size of a number.
      lanes: numbers in a register.
      spread: masks of codes that lie next to each other in the low bits of a word, and factors that
        move those under a mask to the top of their lanes, or to where no code is kept.
    """

    unit: int
    integer: jnp.dtype
    lanes: int
    spread: tuple[tuple[int, int], ...]

    @property
    def top(self) -> int:
        """The mask of the top two bits of every lane."""
        bits = 32 // self.lanes
        return sum(0b11 << bits * (lane + 1) - 2 for lane in range(self.lanes)) - 2**32


# The factor 1 leaves codes at the bottom of the lowest lane as well. Without, the compiler would
# find that this lane needs no mask, and take the lanes apart to spare it.
_PAIRS = Format(2, jnp.int16, 2, ((0b1111, 1 | 1 << 14 | 1 << 28),))
_QUADS = Format(
    64, jnp.int8, 4, ((0b00110011, 1 | 1 << 6 | 1 << 18), (0b11001100, 1 << 12 | 1 << 24))
)
FORMATS = {jnp.bfloat16: _PAIRS, jnp.float16: _PAIRS, jnp.int8: _QUADS}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is static in the kernel: M, K and N of [M, K] @ [K, N]; x in so many terms, one after
    the other along K; how programs divide that; and what the result becomes."""

    shape: tuple[int, int, int]
    terms: int
    blocks: Blocks
    activation: str | None
    dtype: jnp.dtype


def ternary_matmul_kernel(config: Config, refs: dict, out_ref) -> None:
    """A tile of the result, or of the sum over a part of K; named for profiles."""
    blocks, tile = config.blocks, config.blocks.tile
    column, row = pl.program_id(0) * tile.columns, pl.program_id(1) * tile.rows
    # Not %, which is not understood between integers of the kernel and of Python.
    first = pl.program_id(2) // blocks.splits
    split = pl.program_id(2) - first * blocks.splits

    def scaled_sum(block):
        sums_NxM = _sum(config, refs, block, split, row, column)
        scale_1xN = _row_of(refs["scale"], block, column, tile.columns)
        unit = FORMATS[refs["x"].dtype.type].unit
        return sums_NxM.astype(jnp.float32) * (scale_1xN.astype(jnp.float32) / unit).T

    if blocks.scale_blocks == 1:
        y_NxM = scaled_sum(first)
    else:
        y_NxM = lax.fori_loop(
            0,
            blocks.scale_blocks,
            lambda i, y: y + scaled_sum(first * blocks.scale_blocks + i),
            jnp.zeros((tile.columns, tile.rows), jnp.float32),
        )
    # In parts, because what an activation function needs for all at once would take the registers
    # of another program.
    size = min(tile.rows, FINISHED)
    for i, part_NxS in enumerate(lax.split(y_NxM, [size] * (tile.rows // size), axis=1)):
        _store(config, refs, out_ref, part_NxS.T, row + i * size, column)


def _store(config: Config, refs: dict, out_ref, y_SxN: jax.Array, row, column) -> None:
    """Writes a part of the result, or of the sum, that begins in a row and a column."""
    m, _, n = config.shape
    rows, columns = y_SxN.shape
    inside = _inside(row, rows, m).T
    if out_ref.shape[0] == 1:
        row_scale, bias = refs["row_scale"], refs["bias"]
        if row_scale is not None:
            at = row_scale.at[pl.ds(row, rows), pl.ds(0, 1)]
            row_scale = plgpu.load(at, mask=inside, other=0)
        bias = None if bias is None else _row_of(bias, 0, column, columns)
        y_SxN = finish(config, y_SxN, row_scale, bias)
    at = out_ref.at[pl.program_id(2), pl.ds(row, rows), pl.ds(column, columns)]
    plgpu.store(at, y_SxN, mask=inside & _columns_inside(column, columns, n))


def _sum(config: Config, refs: dict, block, split, row, column) -> jax.Array:
    """unit * codes.T @ x.T over a part of a K-block, [columns, rows]."""
    blocks, tile = config.blocks, config.blocks.tile
    x_ref, words_ref = refs["x"], refs["words"]
    all_words, n = words_ref.shape
    words_in_block = all_words // refs["scale"].shape[0]
    start = block * words_in_block + split * blocks.steps * blocks.words
    end = (block + 1) * words_in_block
    whole = blocks.splits * blocks.steps * blocks.words == words_in_block
    # Rows beyond the last are the last again, which takes no mask.
    rows = jnp.minimum(row + lax.iota(jnp.int32, tile.rows), config.shape[0] - 1)

    def step(i, sums):
        term = i // blocks.steps if config.terms > 1 else 0
        first = start + (i - term * blocks.steps) * blocks.words
        words = _load(
            words_ref,
            (pl.ds(first, blocks.words), pl.ds(column, tile.columns)),
            (whole or _inside(first, blocks.words, end).T)
            & _columns_inside(column, tile.columns, n),
        )
        inputs = CODES_PER_WORD * blocks.words
        start_of_x = CODES_PER_WORD * (term * all_words + first)
        x = _load(
            x_ref,
            (rows[:, None], (start_of_x + lax.iota(jnp.int32, inputs))[None]),
            whole or _inside(CODES_PER_WORD * first, inputs, CODES_PER_WORD * end),
        )
        return sums + lax.dot_general(
            _unpack(words, x.dtype),
            x,
            (((0,), (1,)), ((), ())),
            preferred_element_type=sums.dtype,
        )

    dtype = jnp.int32 if x_ref.dtype == jnp.int8 else jnp.float32
    zeros = jnp.zeros((tile.columns, tile.rows), dtype)
    return lax.fori_loop(0, config.terms * blocks.steps, step, zeros)


def _inside(start, size: int, end) -> jax.Array:
    """Which of `size` places from a start lie before an end, [1, size]."""
    return (start + lax.iota(jnp.int32, size) < end)[None]


def _columns_inside(column, columns: int, n: int) -> jax.Array | bool:
    """Which columns of a tile there are, [1, columns]; True if that is all of them in any tile."""
    return n % columns == 0 or _inside(column, columns, n)


def _load(ref, at: tuple, mask: jax.Array | bool) -> jax.Array:
    """What is there, and zeros outside of the mask."""
    return plgpu.load(ref.at[at], **({} if mask is True else {"mask": mask, "other": 0}))


def _row_of(ref, row, column, columns: int) -> jax.Array:
    """[1, columns] of an array that has a row of columns, or one number for them."""
    if ref.shape[1] == 1:
        return plgpu.load(ref.at[pl.ds(row, 1), pl.ds(0, 1)])
    at = pl.ds(row, 1), pl.ds(column, columns)
    return _load(ref, at, _columns_inside(column, columns, ref.shape[1]))


def _unpack(words: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The codes of words [W, N] as numbers, [16 W, N]."""
    codes = FORMATS[dtype.type]
    w, n = words.shape
    registers = CODES_PER_WORD // codes.lanes
    shape = (w, registers, n)
    shift = 32 // registers * lax.broadcasted_iota(jnp.int32, (1, registers), 1)
    near = lax.shift_right_logical(
        lax.broadcast_in_dim(words, shape, (0, 2)), lax.broadcast_in_dim(shift, shape, (0, 1))
    )
    spread = sum((near & mask) * factor for mask, factor in codes.spread) & codes.top
    bits = 32 // codes.lanes
    numbers = [
        lax.shift_right_logical(spread, jnp.int32(bits * lane)).astype(codes.integer)
        for lane in range(codes.lanes)
    ]
    # Triton joins two arrays at a time, along a new last axis.
    while len(numbers) > 1:
        pairs = zip(numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :], strict=True)
        numbers = [lax.concatenate([a[..., None], b[..., None]], a.ndim) for a, b in pairs]
    (joined,) = numbers
    joined = joined.transpose(0, 1, *range(3, joined.ndim), 2)
    return lax.bitcast_convert_type(joined.reshape(CODES_PER_WORD * w, n), dtype)


def finish(
    config: Config, y_MxN: jax.Array, row_scale: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """What follows the sum, in float32, for row_scale [M, 1] and bias [N] or [1, N]."""
    y_MxN = y_MxN if row_scale is None else y_MxN * row_scale
    y_MxN = y_MxN if bias is None else y_MxN + bias.astype(jnp.float32)
    if config.activation == "gelu":
        y_MxN = _gelu(y_MxN)
    elif config.activation:
        y_MxN = activate(y_MxN, config.activation)
    return y_MxN.astype(config.dtype)


def _gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), with an error below 3e-7 |x|; the kernel's language has no erf.

    The complementary error function is formula 7.1.26 of Abramowitz and Stegun, Handbook of
    Mathematical Functions.
    """
    z = jnp.abs(x) * 0.5**0.5
    t = 1 / (1 + 0.3275911 * z)
    series = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + coefficient) * t
    tail = 0.5 * series * jnp.exp(-z * z)
    return x * jnp.where(x < 0, tail, 1 - tail)
