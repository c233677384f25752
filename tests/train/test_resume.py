"""Runs that are killed again and again end with the same bits as a run that is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tclip.train.preemption import EXIT_CODE
from tests.helpers import benchmark_folders, faults
from tests.helpers.runs import assert_same_bits, rows_of, run_config, samples_in, state_of

STEPS = 80
KILLS = 30
SEED = 7


def make_config(folder: Path) -> dict:
    """Everything that has a state: ternary weights, the optimiser, a moving average, the data."""
    return run_config(
        samples_in(folder),
        quant={"policy": "ffn"},
        optim={"ema_decay": 0.9},
        train={
            "steps": STEPS,
            "batch_size": 8,
            "log_every": 1,
            "eval_every": STEPS,
            "checkpoint_every": 2,
        },
    )


def train(config: dict, workdir: Path, cache: Path, kills: int) -> list[list[int]]:
    """Trains under faults; returns signal, exit code and last logged step of every attempt."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": "",
        # What the first attempt compiles serves all.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, faults.__file__, json.dumps(config), str(workdir)]
    done = subprocess.run(
        [*command, str(SEED), str(kills)],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_identical(tmp_path):
    benchmark_folders.write_dataset(tmp_path / "data", benchmark_folders.captioned(), "retrieval")
    config, whole, killed = make_config(tmp_path), tmp_path / "whole", tmp_path / "killed"
    assert train(config, whole, tmp_path / "xla", kills=0) == [[0, 0, STEPS]]
    *attempts, last = train(config, killed, tmp_path / "xla", KILLS)

    assert last == [0, 0, STEPS]
    codes = [code for _, code, _ in attempts]
    assert len(codes) == KILLS
    assert set(codes) == {-9, EXIT_CODE}
    assert codes.count(EXIT_CODE) >= 3
    assert len({step for _, _, step in attempts}) > KILLS / 3

    assert rows_of(killed) == rows_of(whole)
    assert [row["step"] for row in rows_of(killed)] == list(range(1, STEPS + 1))
    expected = state_of(whole, STEPS)
    names = {"step", "trainable", "opt_state", "ema", "skipped", "bad_steps"}
    assert set(expected) == names
    assert_same_bits(state_of(killed, STEPS), expected)
    assert json.loads((killed / "result.json").read_text())["step"] == STEPS
