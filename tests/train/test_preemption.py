"""Processes that are told to stop, or killed: all of them end, and the run goes on."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tclip.cli.app import INTERRUPTED, LOST
from tclip.run.checkpoint import CHECKPOINTS
from tclip.train.metric_writer import read_metrics
from tclip.train.preemption import EXIT_CODE, Preempted, StopRequests
from tests.helpers import benchmark_folders, processes
from tests.helpers.runs import assert_same_bits, rows_of, run_config, samples_in, state_of

STEPS = 60
SAVED_EVERY = 4

# The command itself for one folder after another, with a pause in every step.
PROGRAM = """
import os, time
import jax
from tclip.cli.main import run_command
from tclip.train.metric_writer import MetricWriter

config, workdirs, cache, pause = arguments
os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
write_train = MetricWriter.write_train

def slowly(self, *args):
    time.sleep(pause)
    write_train(self, *args)

MetricWriter.write_train = slowly
for workdir in workdirs:
    try:
        run_command("train", [f"--config={config}", f"--workdir={workdir}"])
    except SystemExit as error:
        if error.code:
            raise
"""

# The command itself, which says when it begins to train a tokenizer, and takes long for it.
PREPARES = """
import time
from tclip.cli.main import run_command
from tclip.train import setup

def train_tokenizer(*_):
    print("preparing", flush=True)
    time.sleep(600)

setup.train_tokenizer = train_tokenizer
run_command("train", arguments)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("preemption")
    benchmark_folders.write_dataset(folder / "data", benchmark_folders.captioned(), "retrieval")
    values = run_config(
        samples_in(folder),
        train={
            "steps": STEPS,
            "batch_size": 4,
            "log_every": 1,
            "eval_every": STEPS,
            "checkpoint_every": SAVED_EVERY,
        },
    )
    text = "import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict("
    (folder / "config.py").write_text(f"{text}{values!r})\n")
    return folder / "config.py"


def start(
    config: Path, workdirs: list[Path], pause: float, number: int = 2
) -> list[subprocess.Popen]:
    cache = str(config.parent / "xla")
    return processes.start(
        PROGRAM, (str(config), list(map(str, workdirs)), cache, pause), number, 1
    )


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def wait_for_step(running: list[subprocess.Popen], workdir: Path, step: int) -> None:
    while last_step(workdir) < step:
        for process in running:
            assert process.poll() is None, process.communicate()[1][-5000:]
        time.sleep(0.01)


def saved_steps(workdir: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (workdir / CHECKPOINTS).glob("*") if path.name.isdigit()
    )


@pytest.mark.slow
def test_a_run_of_two_processes_survives_what_happens_to_one(config, tmp_path):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    running = start(config, [disturbed], 0.2)
    wait_for_step(running, disturbed, SAVED_EVERY + 1)
    running[1].send_signal(signal.SIGTERM)
    ended = processes.finish(running)
    assert [code for code, *_ in ended] == [EXIT_CODE, EXIT_CODE], ended
    stopped = last_step(disturbed)
    assert SAVED_EVERY < stopped < STEPS
    assert saved_steps(disturbed)[-1] == stopped
    for _, _, messages in ended:
        assert f"stopped after step {stopped}, which is saved" in messages

    running = start(config, [disturbed], 0.2)
    wait_for_step(running, disturbed, stopped + 2 * SAVED_EVERY)
    running[1].kill()
    (code, _, messages), (killed, _, _) = processes.finish(running)
    assert killed == -signal.SIGKILL
    # Not waiting for ever; where it was just saving, by the error of that.
    # A process that jax aborts ends with the signal, or by its exit code behind a shell.
    assert code in (1, LOST, -signal.SIGABRT)
    words = "start all processes again", "/job:jax_worker/", "tasks are unhealthy"
    assert any(text in messages for text in words), messages

    for code, _, messages in processes.finish(start(config, [disturbed, whole], 0)):
        assert code == 0, messages[-5000:]
    assert rows_of(disturbed) == rows_of(whole)
    assert [row["step"] for row in rows_of(disturbed)] == list(range(1, STEPS + 1))
    assert_same_bits(state_of(disturbed, STEPS), state_of(whole, STEPS))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_before_the_first_step_stops_at_once(config, tmp_path, number):
    flags = [f"--config={config}", f"--workdir={tmp_path}"]
    running = processes.start(PREPARES, flags, 1, 1)
    assert running[0].stdout.readline() == "preparing\n"
    running[0].send_signal(number)
    ((code, _, messages),) = processes.finish(running)
    assert code == EXIT_CODE
    assert messages.splitlines()[-1].startswith("stopped before the first step")


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_ctrl_c_saves_the_step_that_it_comes_in_and_a_second_one_nothing(config, tmp_path, again):
    running = start(config, [tmp_path], 1, number=1)
    wait_for_step(running, tmp_path, 2)
    running[0].send_signal(signal.SIGINT)
    if again:
        while "Ctrl-C again" not in (line := running[0].stderr.readline()):
            assert line, "the command has ended"
        running[0].send_signal(signal.SIGINT)
    ((code, _, messages),) = processes.finish(running)
    assert code == (INTERRUPTED if again else EXIT_CODE), messages
    assert "Traceback" not in messages
    assert saved_steps(tmp_path) == ([] if again else [last_step(tmp_path)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_after_a_step_is_an_answer(number):
    with StopRequests() as stop:
        assert not stop.is_last(1)
        os.kill(os.getpid(), number)
        assert stop.is_last(2)
    # What catches every error of a part of the preparation does not catch this.
    with pytest.raises(Preempted), StopRequests(), contextlib.suppress(Exception):
        os.kill(os.getpid(), number)


def test_a_second_ctrl_c_is_that_of_python():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequests() as stop:
        assert not stop.is_last(1)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
