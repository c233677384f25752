"""Runs a benchmark: python -m launch.bench train_step [--layers=2 --batch_size=16 ...]."""

import json
from collections.abc import Sequence

from absl import flags

from launch.cli import run
from tclip.bench import train_step

_ARCH = flags.DEFINE_string("arch", "ViT-B/16", "architecture whose widths are used")
_LAYERS = flags.DEFINE_integer("layers", 12, "layers of each tower")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "image-caption pairs a step")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed repetitions")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "what is computed in")
_OUT = flags.DEFINE_string("out", "", "JSON file for the figures; none by default")

BENCHMARKS = {"train_step": train_step.run}


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2 or argv[1] not in BENCHMARKS:
        raise ValueError(f"name one benchmark: {', '.join(BENCHMARKS)}")
    figures = BENCHMARKS[argv[1]](
        _ARCH.value, _LAYERS.value, _BATCH_SIZE.value, _REPEATS.value, _DTYPE.value
    )
    if _OUT.value:
        with open(_OUT.value, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    run(main)
