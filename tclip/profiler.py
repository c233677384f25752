"""Traces of the profiler, of the steps that the config asks for."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

PROFILE = "profile"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A trace for TensorBoard's profiler, of process 0, written to the workdir's profile/.

    Attributes:
      start: first step that is traced; 0 traces none.
      steps: how many steps are traced.
    """

    start: int = 0
    steps: int = 5

    def __post_init__(self):
        if self.start < 0:
            raise ValueError(f"profile.start={self.start}: must not be negative")
        if self.steps < 1:
            raise ValueError(f"profile.steps={self.steps}: must be at least 1")


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
