"""Compiles matrix products for TPUs that are not there, and reads their schedules.

A process of its own, since the compiler takes its flags from the environment when it is loaded and
aborts where it meets what it does not know: reads jobs as lines of JSON, answers each with one.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tclip.bench.schedule import take_schedules
from tclip.hardware.tpu_compiler import answer
from tclip.kernels import ternary_matmul
from tclip.kernels.ternary_matmul.tpu import vmem_limit
from tclip.kernels.ternary_matmul.tpu_units import has_paired_units, paired_dot
from tclip.quant import TernaryTensor
from tclip.quant.packing import CODES_PER_WORD

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


def compile_job(job: dict, dump: Path) -> dict[str, float]:
    """Compiles one product.

    Args:
      job: `chip`, `kernel`, `shape` [M, K, N], and for a dense Pallas kernel `blocks`, the rows and
        columns of a block of the output.
      dump: the folder that the compiler writes to.

    Returns:
      `bundles`, those issued in all; `inner`, those of the loop; `trips` of it; `matrix_share`, the
      share of the program's bundles in which a matrix unit gets work.
    """
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[job["chip"]]
    ).devices
    mesh = Mesh(devices[:1], ("x",), axis_types=(AxisType.Auto,))
    function, shapes = _PROGRAMS[job["kernel"]](*job["shape"], *job.get("blocks", ()))
    replicated = NamedSharding(mesh, PartitionSpec())
    inputs = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated), shapes
    )
    with jax.set_mesh(mesh):
        jax.jit(function).lower(*inputs).compile()
    # What surrounds a dense product, such as a change of layout of its scales, is not held against
    # it; what surrounds the ternary product is part of it.
    schedules = sorted(take_schedules(dump), key=lambda s: s.executed)
    main = schedules[-1]
    counted = schedules if job["kernel"].startswith("ternary") else [main]
    return {
        "bundles": sum(schedule.executed for schedule in counted),
        "inner": main.inner,
        "trips": main.trips,
        "matrix_share": round(main.matrix_bundles / main.bundles, 3),
    }


def _ternary(activations: str) -> Callable:
    def program(m: int, k: int, n: int):
        words: Any = jax.ShapeDtypeStruct((-(-k // CODES_PER_WORD), n), jnp.int32)
        scale: Any = jax.ShapeDtypeStruct((1, n), jnp.float32)
        w = TernaryTensor(words, scale, k)

        def function(x, w):
            return ternary_matmul(x, w, activations=activations, implementation="pallas_tpu")

        return function, (jax.ShapeDtypeStruct((m, k), jnp.bfloat16), w)

    return program


def _dense_inputs(m: int, k: int, n: int, dtype: jnp.dtype) -> tuple:
    """x and w; for int8 also their scales, of rows and of columns, as x comes quantised."""
    inputs = (jax.ShapeDtypeStruct((m, k), dtype), jax.ShapeDtypeStruct((k, n), dtype))
    if dtype == jnp.bfloat16:
        return inputs
    scales = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((m, 1), (1, n)))
    return (*inputs, *scales)


def _dense_product(
    x: jax.Array, w: jax.Array, *scales: jax.Array, paired: bool = False
) -> jax.Array:
    if paired:
        y = paired_dot(x, w)
    else:
        sums = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
        y = jnp.dot(x, w, preferred_element_type=sums)
    y = y.astype(jnp.float32)
    for scale in scales:
        y = y * scale
    return y.astype(jnp.bfloat16)


def _xla(dtype: jnp.dtype) -> Callable:
    def program(m: int, k: int, n: int):
        return _dense_product, _dense_inputs(m, k, n, dtype)

    return program


def _pallas(dtype: jnp.dtype) -> Callable:
    """The dense product in the structure of the ternary kernel: all of K in a step."""

    def kernel(*refs):
        *inputs, out_ref = refs
        paired = dtype == jnp.int8 and has_paired_units()
        out_ref[...] = _dense_product(*(ref[...] for ref in inputs), paired=paired)

    def program(m: int, k: int, n: int, rows: int, columns: int):
        specs = [
            pl.BlockSpec((rows, k), lambda i, j: (i, 0)),
            pl.BlockSpec((k, columns), lambda i, j: (0, j)),
            pl.BlockSpec((rows, 1), lambda i, j: (i, 0)),
            pl.BlockSpec((1, columns), lambda i, j: (0, j)),
        ]
        inputs = _dense_inputs(m, k, n, dtype)

        def function(*arrays):
            return pl.pallas_call(
                kernel,
                grid=(pl.cdiv(m, rows), pl.cdiv(n, columns)),
                in_specs=specs[: len(arrays)],
                out_specs=pl.BlockSpec((rows, columns), lambda i, j: (i, j)),
                out_shape=jax.ShapeDtypeStruct((m, n), jnp.bfloat16),
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=vmem_limit()
                ),
            )(*arrays)

        return function, inputs

    return program


_PROGRAMS = {
    "xla_bfloat16": _xla(jnp.bfloat16),
    "xla_int8": _xla(jnp.int8),
    "pallas_bfloat16": _pallas(jnp.bfloat16),
    "pallas_int8": _pallas(jnp.int8),
    "ternary_native": _ternary("native"),
    "ternary_int8": _ternary("int8"),
}


def main() -> None:
    dump = Path(sys.argv[1])
    # A program that is taken from a cache has no schedule to read.
    jax.config.update("jax_enable_compilation_cache", False)
    for line in sys.stdin:
        try:
            figures = compile_job(json.loads(line), dump)
        except Exception as error:
            figures = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answer(figures)


if __name__ == "__main__":
    main()
