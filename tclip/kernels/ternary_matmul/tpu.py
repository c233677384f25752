"""Ternary matmul for the TPU, which reads the packed words as int2.

A step of the grid multiplies a block of x by a block of words. The words are bitcast to int2 and
widened in VMEM to what the matrix unit takes: int8 for int8 activations where there is an int8
matrix unit (v5e, v5p, v6e), else bfloat16.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice

from tclip.kernels.activations import activate
from tclip.kernels.int8 import LARGEST, quantize_rows
from tclip.kernels.shard_map import split_by_compiler
from tclip.kernels.target import float32_is_exact
from tclip.kernels.ternary_matmul.blocks import LANES, MOST, Blocks, choose_blocks
from tclip.kernels.ternary_matmul.tpu_units import (
    has_paired_units,
    paired_dot,
    quantize_block,
    unit_dot,
)
from tclip.quant.groups import block_scales
from tclip.quant.packing import CODES_PER_WORD
from tclip.quant.tensor import TernaryTensor

NAME = "ternary_matmul"  # of the kernel in the lowered program
# As many 8-bit integers add up exactly in float32.
EXACT_IN_FLOAT32 = 2**24 // LARGEST
SUBLANES = 8
# Of the vector memory, what the kernel may take; the rest is the compiler's.
VMEM_SHARE = 3 / 4


def unavailable(
    x_MxK: jax.Array, w: TernaryTensor, activations: str, device: AbstractDevice
) -> str:
    """Why the kernel cannot multiply x by w on the device; "" if it can."""
    if device.platform != "tpu":
        return f"it needs a TPU, and the program is for {device.platform}"
    info = pltpu.get_tpu_info()
    if (str(info.chip_version), False) not in MOST:
        return f"{device.device_kind} does not read int2; v5e, v5p, v6e and TPU7x do"
    if split_by_compiler():
        return "XLA cannot split a kernel over a mesh; call it under jax.shard_map"
    if 0 in (*x_MxK.shape, *w.shape):
        return "there is nothing to multiply"
    block = w.rows // w.scale.shape[0] if w.scale.ndim else w.rows
    if block != w.rows and block % LANES:
        return f"the K-blocks of its scale have {block} rows, which {LANES} does not divide"
    if activations == "int8" and not info.int8_ops_per_second and w.rows > EXACT_IN_FLOAT32:
        return f"a float32 sum over {w.rows} rows is not exact, and there is no int8 matrix unit"
    return ""


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

    Native float32 activations are multiplied as precisely as `jax.default_matmul_precision` asks
    for, in one or in three passes of bfloat16.
    """
    info = pltpu.get_tpu_info()
    int8 = activations == "int8"
    scale = block_scales(scale, words.shape[1])
    code_dtype = jnp.int8 if int8 and info.int8_ops_per_second else jnp.bfloat16
    blocks = choose_blocks(
        (x_MxK.shape[0], rows, words.shape[1]),
        scale.shape[0],
        int8=code_dtype == jnp.int8,
        chip=str(info.chip_version),
        cores=info.num_cores,
    )
    # There is no float16 in the kernel's language.
    x = x_MxK.astype(jnp.float32) if x_MxK.dtype == jnp.float16 else x_MxK
    missing = -rows % blocks.inputs
    if missing and (rows > blocks.inputs or x.shape[0] < SUBLANES):
        # The kernel masks what lies beyond K in whole tiles and in the first step only.
        x, rows = jnp.pad(x, [(0, 0), (0, missing)]), rows + missing
    config = _Config(
        blocks=blocks,
        cores=info.num_cores,
        rows=rows,
        scale_blocks=scale.shape[0],
        int8=int8,
        code_dtype=code_dtype,
        paired=code_dtype == jnp.int8 and has_paired_units(),
        activation=activation,
    )
    return _call(config, x, words, scale, bias).astype(x_MxK.dtype)


def vmem_limit() -> int:
    """Bytes of vector memory that a kernel may take on the device that is traced for."""
    return int(VMEM_SHARE * pltpu.get_tpu_info().vmem_capacity_bytes)


@dataclasses.dataclass(frozen=True)
class _Config:
    """What is static in the kernel: K is `rows`, with `scale_blocks` scales along it;
    `paired` multiplies by `paired_dot`."""

    blocks: Blocks
    cores: int
    rows: int
    scale_blocks: int
    int8: bool
    code_dtype: jnp.dtype
    paired: bool
    activation: str | None

    @property
    def steps(self) -> int:
        """Steps in which K is added up."""
        return pl.cdiv(self.rows, self.blocks.inputs)


def _call(
    config: _Config, x: jax.Array, words: jax.Array, scale: jax.Array, bias: jax.Array | None
) -> jax.Array:
    m, n = x.shape[0], words.shape[1]
    rows, columns, inputs = dataclasses.astuple(config.blocks)
    row_blocks, column_blocks = pl.cdiv(m, rows), pl.cdiv(n, columns)
    out = jax.ShapeDtypeStruct((m, n), x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
    row_scale = None
    if config.int8 and config.steps > 1:
        x, row_scale = quantize_rows(x)
    keeps_q = config.int8 and config.steps == 1 and column_blocks > 1 and row_blocks >= config.cores
    operands = {
        "x": x,
        "row_scale": row_scale,
        "words": words,
        "scale": scale[:, None],
        "bias": None if bias is None else bias[None].astype(jnp.float32),
    }
    scales = max(config.scale_blocks // config.steps, 1)
    specs = {
        "x": pl.BlockSpec((rows, inputs), lambda i, j, k: (i, k)),
        "row_scale": pl.BlockSpec((rows, 1), lambda i, j, k: (i, 0)),
        "words": pl.BlockSpec((inputs // CODES_PER_WORD, columns), lambda i, j, k: (k, j)),
        "scale": pl.BlockSpec(
            (scales, 1, columns), lambda i, j, k: (k if config.scale_blocks > 1 else 0, 0, j)
        ),
        "bias": pl.BlockSpec((1, columns), lambda i, j, k: (0, j)),
    }
    scratch: dict[str, Any] = {"sum": None, "q": None, "row_scale": None}
    if config.steps > 1:
        scratch["sum"] = pltpu.VMEM((rows, columns), jnp.float32)
    elif keeps_q:
        scratch["q"] = pltpu.VMEM((rows, inputs), config.code_dtype)
        scratch["row_scale"] = pltpu.VMEM((rows, 1), jnp.float32)
    return pl.pallas_call(
        functools.partial(_kernel, config),
        grid=(row_blocks, column_blocks, config.steps),
        in_specs=[{name: specs[name] if a is not None else None for name, a in operands.items()}],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j, k: (i, j)),
        scratch_shapes=[scratch],
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary" if keeps_q else "parallel", "arbitrary"),
            vmem_limit_bytes=vmem_limit(),
        ),
        name=NAME,
    )(operands)


def _kernel(config: _Config, refs: dict, out_ref, scratch: dict) -> None:
    """One block of the output, or of K the share of one step in it."""
    step = pl.program_id(2)
    x, row_scale = _activations(config, refs, scratch)
    product = _product(config, x, refs)

    def finish(y):
        y = y if row_scale is None else y * row_scale
        y = y if refs["bias"] is None else y + refs["bias"][...]
        y = _activate(y, config.activation) if config.activation else y
        out_ref[...] = y.astype(out_ref.dtype)

    if config.steps == 1:
        finish(product)
        return
    sum_ref = scratch["sum"]

    @pl.when(step == 0)
    def _first():
        sum_ref[...] = product

    @pl.when(step > 0)
    def _later():
        sum_ref[...] += product

    @pl.when(step == config.steps - 1)
    def _last():
        finish(sum_ref[...])


def _activations(config: _Config, refs: dict, scratch: dict):
    """What is multiplied by the codes, and the scale of its rows or None."""
    if config.int8 and config.steps > 1:
        return _block(config, refs["x"]).astype(config.code_dtype), refs["row_scale"][...]
    if not config.int8:
        return _block(config, refs["x"]), None
    if scratch["q"] is None:
        return quantize_block(_block(config, refs["x"]), config.code_dtype)

    # The first block of columns quantises for all.
    @pl.when(pl.program_id(1) == 0)
    def _quantize_once():
        q, row_scale = quantize_block(_block(config, refs["x"]), config.code_dtype)
        scratch["q"][...], scratch["row_scale"][...] = q, row_scale

    return scratch["q"][...], scratch["row_scale"][...]


def _block(config: _Config, x_ref) -> jax.Array:
    """The block of x, with zeros for what lies beyond K, where memory may hold anything."""
    x = x_ref[...]
    if config.rows % config.blocks.inputs == 0:
        return x
    inside = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) < config.rows
    return jnp.where(inside, x, jnp.zeros_like(x))


def _product(config: _Config, x: jax.Array, refs: dict) -> jax.Array:
    """float32 x @ (scale * codes), before the scale of the rows."""
    codes = pltpu.bitcast(refs["words"][...], jnp.int2).astype(config.code_dtype)
    sums = jnp.int32 if config.code_dtype == jnp.int8 else jnp.float32
    scales = refs["scale"].shape[0]
    size = codes.shape[0] // scales
    dot = paired_dot if config.paired else functools.partial(unit_dot, preferred_element_type=sums)
    product = 0.0
    for block in range(scales):
        part = slice(block * size, (block + 1) * size)
        total = cast(jax.Array, sum(dot(term, codes[part]) for term in _terms(x[:, part])))
        product += total.astype(jnp.float32) * refs["scale"][block]
    return cast(jax.Array, product)


def _terms(x: jax.Array) -> list[jax.Array]:
    """Arrays that the matrix unit takes and whose sum is x, to the precision that is asked for."""
    if x.dtype != jnp.float32:
        return [x]
    terms = []
    for _ in range(3 if float32_is_exact() else 1):
        terms.append(x.astype(jnp.bfloat16))
        x = x - terms[-1].astype(jnp.float32)
    return terms


def _activate(y: jax.Array, activation: str) -> jax.Array:
    """`activate`, with erf for erfc, which the kernel's language does not have."""
    if activation == "gelu":
        return 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))
    return activate(y, activation)
