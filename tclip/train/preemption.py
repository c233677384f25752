"""Stopping on SIGTERM and Ctrl-C: between two steps, in every process at the same one, with a
checkpoint.

Before the first step there is nothing to save, and a process that is alone stops at once.
"""

import os
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

# "Try again later" of sysexits.h: the same command goes on with the run.
EXIT_CODE = os.EX_TEMPFAIL


class Preempted(BaseException):
    """Training was asked to stop, and its state is saved; the message says where and after what.

    It may come at any moment of the preparation, and is no error for the code that meets it.
    """


class StopRequests:
    """Tells after which step to stop. Use as a context manager, within which SIGTERM ends nothing,
    and SIGINT (Ctrl-C) only when it comes a second time.

    Until the first step is over it raises `Preempted`. With several processes that of any of them
    counts, and jax finds a step that none has passed, which is at the earliest the first.
    """

    def __enter__(self) -> "StopRequests":
        self._asked = self._begun = False
        several = jax.distributed.is_initialized()
        # Unless asked to by `tclip.parallel.processes.initialize` jax does not look for signals.
        listening = jax.config.jax_enable_preemption_service  # pyright: ignore[reportAttributeAccessIssue]
        self._shared = several and listening
        # Only the main thread may listen.
        self._listens = not several and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        if self._listens:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def is_last(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked after every step, in every process."""
        self._begun = True
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if number == signal.SIGINT:
            # The next one is as if nobody listened.
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            print("stopping after this step; Ctrl-C again ends at once", file=sys.stderr)
        if not self._begun:
            raise Preempted("stopped before the first step; what was saved before is as it was")
