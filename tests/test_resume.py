"""Runs that are killed with SIGKILL end with the same bits as runs that are left alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_same_bits, rows_of, state_of

from tclip.checkpoint import CHECKPOINTS
from tclip.metrics import read_metrics

STEPS = 20
TOWER = {"width": 32, "heads": 2, "mlp_dim": 64, "layers": 1}
MAIN = """
import json, sys
from tclip.config import build
from tclip.experiment import Experiment
from tclip.trainer import train
train(build(Experiment, json.loads(sys.argv[1])), sys.argv[2])
"""


def make_config(data_dir: Path) -> dict:
    """Everything that has a state: ternary weights, a moving average, accumulation, the data."""
    source = {"source": "shapes:tiny", "data_dir": str(data_dir)}
    return {
        "model": {
            "embed_dim": 32,
            "vision": TOWER | {"image_size": 32, "patch_size": 8},
            "text": TOWER | {"context_length": 16},
        },
        "train_data": source,
        "preprocess": {"image_size": 32},
        "quant": {"policy": "all"},
        "optim": {"warmup_steps": 2, "ema_decay": 0.9, "accumulate": 2},
        "train": {
            "steps": STEPS,
            "batch_size": 32,
            "log_every": 1,
            "eval_every": STEPS,
            "checkpoint_every": 5,
        },
    }


def start(config: dict, workdir: Path, cache: Path) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", MAIN, json.dumps(config), str(workdir)]
    return subprocess.Popen(command, env=environment)


def kill_when(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    """Kills the process once `moment()`; it must not have ended before."""
    while not moment():
        assert process.poll() is None, "the run ended before the moment to kill it came"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9


@pytest.mark.slow
def test_killed_at_several_moments_and_continued_is_bit_identical(tmp_path):
    config, cache = make_config(tmp_path / "data"), tmp_path / "cache"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # The run that is left alone compiles, the others load what it has compiled.
    assert start(config, whole, cache).wait() == 0

    checkpoints = killed / CHECKPOINTS

    def saving() -> bool:
        return any(checkpoints.glob("*.orbax-checkpoint-tmp/state*"))

    def last_step() -> int:
        return max((row["step"] for row in read_metrics(killed)), default=0)

    # Before the first checkpoint; during the first save; during a later one; between two.
    kill_when(start(config, killed, cache), lambda: last_step() >= 2)
    assert not (killed / "result.json").exists()
    kill_when(start(config, killed, cache), saving)
    kill_when(start(config, killed, cache), lambda: (checkpoints / "5").exists() and saving())
    kill_when(start(config, killed, cache), lambda: last_step() >= 12)
    assert start(config, killed, cache).wait() == 0

    expected = state_of(whole, STEPS)
    assert set(expected) == {"step", "trainable", "opt_state", "ema", "skipped"}
    assert_same_bits(state_of(killed, STEPS), expected)
    assert rows_of(killed) == rows_of(whole)
    assert [row["step"] for row in rows_of(killed)] == list(range(1, STEPS + 1))
    assert json.loads((killed / "result.json").read_text())["step"] == STEPS
