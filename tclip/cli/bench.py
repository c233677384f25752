"""Runs a benchmark.

tclip bench train_step [--layers=2 ... --out=figures.json]

`tclip bench NAME --help` lists the flags of a benchmark, which are the parameters of the `run` of
its module in tclip/bench.
"""

import importlib
import inspect
import json
import typing
from collections.abc import Callable, Sequence

from absl import flags

BENCHMARKS = (
    "encoder",
    "engine",
    "gpu_schedule",
    "index",
    "input_wait",
    "loader",
    "loss_memory",
    "matmul",
    "teacher_cache",
    "tpu_schedule",
    "train_step",
    "trainer_overhead",
)
_DEFINE = {int: flags.DEFINE_integer, str: flags.DEFINE_string}
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; none by default")


def benchmark(name: str) -> Callable[..., dict]:
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"tclip.bench.{name}").run


def define_flags(arguments: Sequence[str]) -> None:
    """Defines a flag for every parameter of the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        return
    for parameter in inspect.signature(benchmark(arguments[0])).parameters.values():
        kind, description = typing.get_args(parameter.annotation)
        _DEFINE[kind](parameter.name, parameter.default, description)


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"name one benchmark: {', '.join(BENCHMARKS)}")
    function = benchmark(argv[1])
    figures = function(
        **{name: flags.FLAGS[name].value for name in inspect.signature(function).parameters}
    )
    if _OUT.value:
        with open(_OUT.value, "w") as file:
            json.dump(figures, file, indent=2)
