"""Goodput: the share of a run's time that its result owes something to."""

import time
from pathlib import Path

from tclip.files import append_json_line, read_json_lines, write_json_lines

GOODPUT_FILE = "goodput.jsonl"


class Goodput:
    """Adds up the time of the steps that were kept, over all starts of a run.

    Goodput after step n is K / W. W is the time on the clock of the wall from when the run was
    first started. K is the time that the devices spent on the steps 1..n, each counted once: in the
    attempt whose result the state holds. So compilation, restoring, waiting for data, evaluation,
    the stalls of checkpoints, the time between a kill and the next start, and every step that was
    done but lost with a kill, or skipped because it was bad, count in W alone.

    The file's first line is {"started": seconds since the epoch}; a line {"step", "seconds"} gives
    K after that step, which a start that continues after it reads.
    """

    def __init__(self, workdir: Path | None, start_step: int, started: float):
        """Drops what was counted after `start_step`, left by a killed run.

        Args:
          workdir: None keeps no file, and knows of no start but this one.
          start_step: updates done before this start of the run.
          started: when that was, as of time.time().
        """
        self._path = workdir and workdir / GOODPUT_FILE
        if self._path is None:
            self._started, self._seconds = started, 0.0
            return
        first, *rows = read_json_lines(self._path) or [{}]
        kept = [row for row in rows if row["step"] <= start_step]
        self._started = min(started, first.get("started", started))
        self._seconds = kept[-1]["seconds"] if kept else 0.0
        write_json_lines(self._path, [{"started": self._started}, *kept])

    def add(self, seconds: float) -> None:
        """Counts a step of this many seconds."""
        self._seconds += seconds

    def value(self) -> float:
        """Returns K / W as of now."""
        return self._seconds / max(time.time() - self._started, self._seconds)

    def save(self, step: int) -> None:
        """Writes what was counted up to `step`; an OSError names the file."""
        if self._path:
            append_json_line(self._path, {"step": step, "seconds": self._seconds})
