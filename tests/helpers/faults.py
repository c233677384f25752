"""Trains again and again, each time until it is killed at a random moment, and at last to the end.

python -m tests.helpers.faults CONFIG WORKDIR SEED KILLS prints a JSON list of
[signal, exit code, step].
Everything is imported once; each attempt is a fork, from before jax has started any thread.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from tclip.config import build
from tclip.run.checkpoint import CHECKPOINTS
from tclip.run.experiment import Experiment
from tclip.train import preemption
from tclip.train.loop import train
from tclip.train.metric_writer import METRICS_FILE, read_metrics

# Of an attempt that is not killed before its first step.
LONGEST_STEPS = 4
POLL_SECONDS = 0.002


def start(experiment: Experiment, workdir: Path) -> int:
    """Forks a process that trains; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        train(experiment, workdir)
        code = 0
    except preemption.Preempted:
        code = preemption.EXIT_CODE
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Ended(Exception):
    """The attempt was over before the moment came to kill it."""


def wait_until(child: int, moment) -> None:
    while not moment():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise Ended
        time.sleep(POLL_SECONDS)


def last_step(workdir: Path) -> int:
    return max((row["step"] for row in read_metrics(workdir)), default=0)


def kill_at_random(child: int, workdir: Path, rng: random.Random, startup: float) -> int:
    """Sends SIGKILL or SIGTERM: as the attempt starts, after some steps, or while it saves.

    Returns:
      The signal.
    """
    metrics, checkpoints = workdir / METRICS_FILE, workdir / CHECKPOINTS
    before = metrics.stat().st_ino if metrics.exists() else None
    sent = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM])
    kind, steps = rng.choice(["start", "step", "step", "save"]), rng.randrange(1, LONGEST_STEPS)
    if kind == "start":
        # SIGTERM comes before there is anything to save, or as one after a step.
        end = time.monotonic() + rng.uniform(0, startup)
        wait_until(child, lambda: time.monotonic() > end)
    else:
        # A new attempt writes the file anew, without the steps that it will repeat.
        wait_until(child, lambda: metrics.exists() and metrics.stat().st_ino != before)
        goal = last_step(workdir) + steps
        wait_until(child, lambda: last_step(workdir) >= goal)
    if kind == "save":
        wait_until(child, lambda: any(checkpoints.glob("*.orbax-checkpoint-tmp*")))
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, sent)
    return sent


def main(config: str, workdir: str, seed: str, kills: str) -> None:
    experiment, folder = build(Experiment, json.loads(config)), Path(workdir)
    rng, startup, log = random.Random(int(seed)), 1.0, []
    while True:
        began = time.monotonic()
        child = start(experiment, folder)
        sent = None
        if len(log) < int(kills):
            with contextlib.suppress(Ended):
                sent = kill_at_random(child, folder, rng, startup)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if sent is None:
            break
        startup = max(startup, min(time.monotonic() - began, 2 * startup))
        log.append((int(sent), code, last_step(folder)))
    print(json.dumps([*log, (0, code, last_step(folder))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
