"""Trains a config at every point of its sweep() and compares the results.

python -m launch.sweep --config=configs/x.py[:arg] --workdir=DIR             # prints the commands
python -m launch.sweep --config=configs/x.py[:arg] --workdir=DIR --execute   # runs them
"""

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from absl import flags

from launch.cli import run
from tclip.sweep import execute, plan, write_results

_CONFIG = flags.DEFINE_string(
    "config", None, "Config file, with :arg if it takes one.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_EXECUTE = flags.DEFINE_bool("execute", False, "Run the commands one after the other.")


def main(argv: Sequence[str]) -> int:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    file, *arg = _CONFIG.value.split(":", 1)
    module = _load(Path(file))
    if not hasattr(module, "sweep"):
        raise ValueError(f"{file} has no sweep()")
    workdir = Path(_WORKDIR.value).absolute()
    runs = plan(module.get_config(*arg), module.sweep(), _CONFIG.value, workdir)
    for point in runs:
        print(shlex.join(point.command), flush=True)
    if not _EXECUTE.value:
        return 0
    outcomes = execute(runs)
    print(write_results(runs, outcomes, workdir))
    return int("failed" in outcomes)


def _load(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such config")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    run(main)
