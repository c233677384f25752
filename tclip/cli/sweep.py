"""Trains a config at every point of its sweep() and compares the results.

tclip sweep --config=shapes:student --workdir=DIR             # prints the commands
tclip sweep --config=shapes:student --workdir=DIR --execute   # runs them

Elsewhere than here, in a DIR that is seen from both: --launcher="launch/slurm.sh train
--name={name} --nodes=1 --gpus-per-node=8 --". Run again later, it shows what has finished.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tclip.folder_lock import folder_lock
from tclip.run.recipe import load_recipe
from tclip.train.sweep import execute, plan, write_results

_CONFIG = flags.DEFINE_string(
    "config", None, "Config file, with :arg if it takes one.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_EXECUTE = flags.DEFINE_bool("execute", False, "Run the commands one after the other.")
_LAUNCHER = flags.DEFINE_string(
    "launcher", "", "What to put before each command; {name} in it becomes a name of the point."
)


def main(argv: Sequence[str]) -> int:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    file, *arg = _CONFIG.value.split(":", 1)
    module = load_recipe(Path(file))
    if not hasattr(module, "sweep"):
        raise ValueError(f"{file} has no sweep()")
    workdir = Path(_WORKDIR.value).absolute()
    launcher = shlex.split(_LAUNCHER.value)
    runs = plan(module.get_config(*arg), module.sweep(), _CONFIG.value, workdir, launcher)
    for point in runs:
        print(shlex.join(point.command), flush=True)
    if not _EXECUTE.value:
        return 0
    with folder_lock(workdir):
        outcomes = execute(runs, queued=bool(launcher))
        print(write_results(runs, outcomes, workdir))
    return int("failed" in outcomes)
