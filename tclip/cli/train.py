"""Trains or distils a model.

tclip train --config=shapes:teacher --workdir=DIR [--config.optim.lr=3e-4 ...]

--config takes a recipe of tclip by its name, or NAME.py of your own, and after a colon its role.
Single keys are overridden as --config.optim.lr=3e-4. The same command continues an interrupted run.
On SIGTERM or Ctrl-C a checkpoint is saved, and the exit code is 75: run it again.
"""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tclip.cli.app import log_progress
from tclip.cli.process_flags import join_processes
from tclip.run.experiment import experiment_from_config
from tclip.train.loop import train
from tclip.train.preemption import EXIT_CODE, Preempted

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as PATH or PATH:ARG.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; made if missing.", required=True
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> int:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    join_processes(defer_sigterm=True)
    log_progress()
    try:
        train(experiment_from_config(_CONFIG.value), _WORKDIR.value)
    except Preempted as reason:
        print(reason, file=sys.stderr)
        return EXIT_CODE
    return 0
