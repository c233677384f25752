"""Stores a teacher's embeddings to train from.

tclip cache_teacher --config=shapes:student --out=DIR [--augmentations=4]

The config is that of the training run, overrides included: its data, seed, crops and teacher are
what the embeddings are of. Then train with --config.teacher.cache=DIR. The same command continues
an interrupted one.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from tclip.cli.app import log_progress
from tclip.cli.process_flags import join_processes
from tclip.run.experiment import experiment_from_config
from tclip.train.fill_teacher_cache import cache_teacher

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as PATH or PATH:ARG.")
_OUT = flags.DEFINE_string("out", None, "Folder of the cache; made if missing.", required=True)
_AUGMENTATIONS = flags.DEFINE_integer(
    "augmentations", 4, "How often every sample is augmented; training takes them in turn."
)
flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    join_processes()
    log_progress()
    experiment = experiment_from_config(_CONFIG.value)
    counts = cache_teacher(experiment, _OUT.value, _AUGMENTATIONS.value)
    print(f"{counts['embeddings']:,} embeddings stored, {counts['skipped']:,} samples skipped")
