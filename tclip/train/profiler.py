"""Traces of the profiler, of the steps that the config asks for."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from tclip.run.experiment import ProfileConfig

PROFILE = "profile"

logger = logging.getLogger(__name__)


class Profiler:
    """Starts and stops the trace. Use as a context manager: a trace that was begun is written."""

    def __init__(
        self, config: ProfileConfig, workdir: Path, pause: Callable[[], AbstractContextManager]
    ):
        """Traces nothing yet.

        Args:
          pause: encloses what is not training; it waits until the steps before have ended.
        """
        wanted = config.start and jax.process_index() == 0
        self._steps = range(config.start, config.start + config.steps) if wanted else ()
        self._directory, self._pause = workdir / PROFILE, pause
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if not self._running:
            return
        try:
            self._stop()
        except Exception as error:
            if kind is None:
                raise
            # The error that is already on its way came first.
            logger.error("no trace was written to %s: %s", self._directory, error)

    def step(self, step: int) -> AbstractContextManager:
        """Returns what encloses the host's part of a step, and gives the trace its number."""
        if self._running != (step in self._steps):
            with self._pause():
                self._stop() if self._running else self._start()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def _start(self) -> None:
        jax.profiler.start_trace(self._directory)
        self._running = True

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        logger.info("wrote a trace to %s", self._directory)
