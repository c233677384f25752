"""Metrics of a run: to the terminal, to metrics.jsonl and to TensorBoard."""

import datetime
import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from tclip.distributed import is_main
from tclip.files import naming, write_whole

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"

logger = logging.getLogger(__name__)


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Returns the rows of metrics.jsonl, in the order of their steps, without a torn last line."""
    path = Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class MetricWriter:
    """Writes rows of scalars, of several processes the first one. Use as a context manager.

    On a terminal there is a progress bar with the time left; elsewhere a line for each row. A file
    that cannot be written is an OSError that names it.
    """

    def __init__(
        self, workdir: Path, start_step: int, total_steps: int, batch_size: int, log_every: int
    ):
        """Opens the files of `workdir` and drops rows after `start_step`, left by a killed run.

        Args:
          start_step: updates done before this process.
          total_steps: updates of the whole run; the last one is always logged.
          batch_size: images a step, for the throughput.
          log_every: steps between rows of training metrics.
        """
        self._jsonl, self._events = workdir / METRICS_FILE, workdir / TENSORBOARD
        self._writes = is_main()
        if self._writes:
            kept = [row for row in read_metrics(workdir) if row["step"] <= start_step]
            write_whole(self._jsonl, "".join(json.dumps(row) + "\n" for row in kept))
            self._events.mkdir(exist_ok=True)
            self._tensorboard = EventsWriter(str(self._events / "events"))
            # Tells TensorBoard to drop them as well.
            start = SessionLog(status=SessionLog.START)
            self._write_event(Event(step=start_step + 1, session_log=start))
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._writes and sys.stderr.isatty()),
        )
        self._total_steps, self._batch_size, self._log_every = total_steps, batch_size, log_every
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._restart_clock(start_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._bar.close()
        if not self._writes:
            return
        try:
            with naming(self._events):
                self._tensorboard.close()
        except OSError:
            # On the way out of an error, that error is the one to see.
            if kind is None:
                raise

    def write_train(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of a step that may still be running; looks at those of the one before.

        So the host stays one step ahead of the devices, and no more.

        Raises:
          FloatingPointError: loss or gradient of the step before are not finite.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Waits for the newest step and writes its row if one is due; raises as `write_train`."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise FloatingPointError(
                    f"{name} is {values[name]} at step {step}; the checkpoints before it are kept: "
                    "lower optim.lr or optim.grad_clip"
                )
        self._bar.update()
        if step % self._log_every == 0 or step == self._total_steps:
            self._write_train_row(step, values)

    def write_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of evaluation metrics, named "eval/..."."""
        self._write(step, {f"eval/{name}": value for name, value in metrics.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        with tqdm.external_write_mode():
            logger.info("step %d/%d: evaluation: %s", step, self._total_steps, text)
        # Evaluation is not training time.
        self._restart_clock(step)

    def _write_train_row(self, step: int, values: dict[str, float]) -> None:
        seconds, steps = time.perf_counter() - self._since_time, step - self._since_step
        speed = steps * self._batch_size / seconds
        self._write(step, values | {"images_per_second": round(speed, 1)})
        text = f"loss {values['loss']:.4f}, {speed:.0f} images/s"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            left = datetime.timedelta(seconds=round((self._total_steps - step) * seconds / steps))
            logger.info("step %d/%d: %s, %s left", step, self._total_steps, text, left)
        self._restart_clock(step)

    def _restart_clock(self, step: int) -> None:
        self._since_step, self._since_time = step, time.perf_counter()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._writes:
            return
        # Opened for every row: a handle keeps what it failed to write and fails again at close.
        with naming(self._jsonl), self._jsonl.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write_event(Event(step=step, summary=Summary(value=scalars)))

    def _write_event(self, event: Event) -> None:
        # Not through SummaryWriter: its thread dies on a full disk, and then its queue blocks.
        event.wall_time = time.time()
        with naming(self._events):
            self._tensorboard.write_event(event)
            self._tensorboard.flush()
