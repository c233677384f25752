"""Trains a model: python -m launch.train --config=configs/shapes.py:teacher --workdir=DIR.

Single keys are overridden as --config.optim.lr=3e-4. The same command continues an interrupted run.
"""

import logging
import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from tclip.experiment import experiment_from_config
from tclip.trainer import train

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as PATH or PATH:ARG.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is missing.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("tclip").setLevel(logging.INFO)
    # Compiled programs are kept: a resumed or repeated run starts at once.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache/tclip/xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        train(experiment_from_config(CONFIG.value), WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
