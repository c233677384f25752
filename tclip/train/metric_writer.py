"""Metrics of a run: to the terminal, to metrics.jsonl and to TensorBoard."""

import contextlib
import datetime
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
from tensorboardX.event_file_writer import EventsWriter

# The names in them are made at run time.
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm

from tclip.files import append_json_line, naming, read_json_lines, write_json_lines
from tclip.train.bad_steps import is_bad
from tclip.train.goodput import Goodput
from tclip.train.throughput import StepClock, StepTime, Workload, device_memory

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
# What a row holds beside the metrics of the step. Two runs of the same differ in it.
CLOCK_METRICS = frozenset(
    {
        "steps_per_second",
        "samples_per_second",
        "samples_per_second_per_chip",
        "input_wait",
        "mfu",
        "hbm_bytes_in_use",
        "hbm_peak_bytes_in_use",
        "goodput",
    }
)

logger = logging.getLogger(__name__)


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Returns the rows of metrics.jsonl, in the order of their steps, without a torn last line."""
    return read_json_lines(Path(workdir) / METRICS_FILE)


class MetricFiles:
    """Rows of scalars in metrics.jsonl and TensorBoard's events; an OSError names the file."""

    def __init__(self, workdir: Path, start_step: int):
        """Drops rows after `start_step`, left by a killed run."""
        kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        self._jsonl, self._events = workdir / METRICS_FILE, workdir / TENSORBOARD
        write_json_lines(self._jsonl, kept)
        self._events.mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(self._events / "events"))
        # Tells TensorBoard to drop them as well.
        start = SessionLog(status=SessionLog.START)
        self._write_event(Event(step=start_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        # JSON has no NaN; what has none is missing from the row.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        append_json_line(self._jsonl, {"step": step, **values})
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write_event(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        with naming(self._events):
            self._tensorboard.close()

    def _write_event(self, event: Event) -> None:
        # Not through SummaryWriter: its thread dies on a full disk, and then its queue blocks.
        event.wall_time = time.time()
        with naming(self._events):
            self._tensorboard.write_event(event)
            self._tensorboard.flush()


class _Pending(NamedTuple):
    """A step that was dispatched."""

    step: int
    metrics: Mapping[str, jax.Array]
    batch: tuple[float, float]
    end: Future[float]


class MetricWriter:
    """Paces the steps, takes their times, and writes rows of scalars. Use as a context manager.

    On a terminal there is a progress bar with the time left; elsewhere a line for each row. A file
    that cannot be written is an OSError that names it.

    To what the step returns, a row of training adds the rates of `Workload.rates`, the memory of
    `device_memory`, and `Goodput.value`. The rates are those of the steps since the row before;
    pauses are left out.
    """

    def __init__(
        self,
        workdir: Path | None,
        start_step: int,
        total_steps: int,
        workload: Workload,
        log_every: int,
        started: float,
    ):
        """Opens the files of `workdir` and drops rows after `start_step`, left by a killed run.

        Args:
          workdir: None writes and says nothing: of several processes one writes.
          start_step: updates done before this process.
          total_steps: updates of the whole run; the last one is always logged.
          workload: what a step does, for the rates.
          log_every: steps between rows of training metrics.
          started: when this start of the run began, as of time.time().
        """
        self._files = MetricFiles(workdir, start_step) if workdir else None
        self._goodput = Goodput(workdir, start_step, started)
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=workdir is None or not sys.stderr.isatty(),
        )
        self._total_steps, self._workload, self._log_every = total_steps, workload, log_every
        self._ended: list[tuple[int, dict[str, float]]] = []
        self._pending: _Pending | None = None
        self._watcher = ThreadPoolExecutor(1, "step-clock")
        self._clock = StepClock()
        self._step = self._row_step = start_step
        self._time = StepTime()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._bar.close()
        self._watcher.shutdown(wait=False)
        try:
            if self._files:
                self._files.close()
        except OSError:
            # On the way out of an error, that error is the one to see.
            if kind is None:
                raise

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Returns what encloses the call that gets the next batch."""
        return self._clock.waiting()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Encloses what is not training, with no step running."""
        self.flush()
        self._goodput.save(self._step)
        yield
        self._clock.restart()

    def write_train(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running; looks at those of the one before.

        So the host stays one step ahead of the devices, and no more.
        """
        # Another thread waits for the step: this one may be busy, or wait for data, when it ends.
        end = self._watcher.submit(_end, metrics)
        self.flush()
        self._pending = _Pending(step, metrics, self._clock.batch, end)

    def flush(self) -> None:
        """Waits for the newest step and writes its row if one is due."""
        if self._pending is None:
            return
        (step, metrics, batch, end), self._pending = self._pending, None
        seconds = self._clock.ended(batch, end.result())
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        self._ended.append((step, values))
        self._step, self._time = step, self._time.plus(seconds)
        if not is_bad(values):
            self._goodput.add(seconds.compute)
        self._bar.update()
        if step % self._log_every == 0 or step == self._total_steps:
            self._write_train_row(values)
            self._row_step, self._time = step, StepTime()

    def take_ended(self) -> list[tuple[int, dict[str, float]]]:
        """Returns the steps that have ended since the last call, in their order, with metrics."""
        ended, self._ended = self._ended, []
        return ended

    def write_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of evaluation metrics, named "eval/..."."""
        if self._files is None:
            return
        self._files.write(step, {f"eval/{name}": value for name, value in metrics.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        with tqdm.external_write_mode():
            logger.info("step %d/%d: evaluation: %s", step, self._total_steps, text)

    def _write_train_row(self, values: dict[str, float]) -> None:
        if self._files is None:
            return
        rates = self._workload.rates(self._step - self._row_step, self._time)
        goodput = self._goodput.value()
        self._files.write(self._step, values | rates | device_memory() | {"goodput": goodput})
        text = f"loss {values['loss']:.4f}, {rates['samples_per_second']:.0f} samples/s"
        if "mfu" in rates:
            text += f", MFU {rates['mfu']:.1%}"
        text += f", input wait {rates['input_wait']:.1%}, goodput {goodput:.1%}"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            left = (self._total_steps - self._step) / rates["steps_per_second"]
            left = datetime.timedelta(seconds=round(left))
            logger.info("step %d/%d: %s, %s left", self._step, self._total_steps, text, left)


def _end(metrics: Mapping[str, jax.Array]) -> float:
    """Waits for a step and returns the moment of its end."""
    jax.block_until_ready(metrics)
    return time.perf_counter()
