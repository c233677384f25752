"""Running a config at several points, and comparing what came out.

A config with a `sweep()` function yields one mapping of dotted overrides a run:

    def sweep():
        for lr in (1e-4, 3e-4):
            yield {"optim.lr": lr}
"""

import csv
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tclip.run.experiment import experiment_from_config
from tclip.tables import markdown_table
from tclip.train.loop import RESULT_FILE


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: its workdir, its overrides, and the command that trains it."""

    workdir: Path
    overrides: dict[str, Any]
    command: tuple[str, ...]

    def result(self) -> dict[str, Any] | None:
        """What the finished run wrote, or None."""
        try:
            return json.loads((self.workdir / RESULT_FILE).read_text())
        except FileNotFoundError:
            return None


def plan(
    config: ConfigDict,
    points: Iterable[Mapping[str, Any]],
    config_flag: str,
    workdir: Path,
    launcher: Sequence[str] = (),
) -> list[SweepPoint]:
    """Turns the points of a sweep into runs, all checked before the first one starts.

    Args:
      config: the resolved config that every point overrides.
      points: what `sweep()` yields.
      config_flag: the value of --config that made `config`, for the commands.
      workdir: folder of the sweep; each run gets a folder in it, named after its overrides.
      launcher: what stands before each command to run it elsewhere; "{name}" in it becomes a
        name of the run that launchers take.

    Raises:
      ValueError: no point, two equal points, an unknown key or a value of the wrong type.
    """
    runs: dict[str, SweepPoint] = {}
    for number, point in enumerate(points):
        overrides = dict(point)
        _check(config, overrides, number)
        name = run_name(overrides)
        if name in runs:
            raise ValueError(f"sweep point {number}: the same overrides as an earlier one: {name}")
        folder = workdir / name
        flags = [f"--config.{key}={_flag_value(value)}" for key, value in overrides.items()]
        prefix = (word.replace("{name}", _job_name(folder)) for word in launcher)
        command = (
            *(*prefix, "python" if launcher else sys.executable, "-m", "launch.train"),
            *(f"--config={config_flag}", f"--workdir={folder}", *flags),
        )
        runs[name] = SweepPoint(folder, overrides, command)
    if not runs:
        raise ValueError("the sweep has no points")
    return list(runs.values())


def run_name(overrides: Mapping[str, Any]) -> str:
    """A folder name that depends on the overrides alone, for instance "optim.lr=0.001"."""
    text = ",".join(f"{key}={_flag_value(overrides[key])}" for key in sorted(overrides))
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "_", text) or "base"
    if name == (text or "base") and len(name) <= 120:
        return name
    # Characters were replaced or the tail is cut: a digest keeps different points apart.
    return f"{name[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def execute(
    runs: Sequence[SweepPoint], call: Callable[..., int] = subprocess.call, queued: bool = False
) -> list[str]:
    """Starts the runs one after the other; a failed one does not stop the others.

    Args:
      runs: what `plan` returned.
      call: runs a command and returns its exit code.
      queued: whether a command may return before its run has ended.

    Returns:
      for each run "finished", "skipped" (it had finished before), "queued" or "failed".
    """
    outcomes = []
    for run in runs:
        if run.result() is not None:
            outcomes.append("skipped")
            continue
        if call(run.command) != 0:
            outcomes.append("failed")
        elif run.result() is not None:
            outcomes.append("finished")
        else:
            outcomes.append("queued" if queued else "failed")
    return outcomes


def write_results(runs: Sequence[SweepPoint], outcomes: Sequence[str], workdir: Path) -> str:
    """Writes results.json and results.csv into the folder `workdir`; returns them as a table."""
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    records = []
    for run, outcome in zip(runs, outcomes, strict=True):
        result = (run.result() or {}) if outcome != "failed" else {}
        numbers = {name: value for name, value in result.items() if isinstance(value, int | float)}
        overrides = {key: run.overrides.get(key) for key in keys}
        records.append({"run": run.workdir.name, "status": outcome, **overrides, **numbers})
    columns = list(dict.fromkeys(name for record in records for name in record))
    (workdir / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    with (workdir / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(records)
    shown = [name for name in columns if name != "run"]
    rows = [[_cell(record.get(name)) for name in shown] for record in records]
    return markdown_table(shown, rows)


def _job_name(folder: Path) -> str:
    return f"point-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def _check(config: ConfigDict, overrides: Mapping[str, Any], number: int) -> None:
    values = config.to_dict()
    for key, value in overrides.items():
        *groups, last = key.split(".")
        group = values
        for name in groups:
            group = group.get(name)
            if not isinstance(group, dict):
                raise ValueError(f"sweep point {number}: {key!r}: unknown key")
        if isinstance(group.get(last), dict):
            raise ValueError(f"sweep point {number}: {key!r} is a group of keys, not a value")
        group[last] = value
    try:
        experiment_from_config(ConfigDict(values))
    except ValueError as error:
        raise ValueError(f"sweep point {number}: {error}") from None


def _flag_value(value: Any) -> str:
    return repr(value) if isinstance(value, float | tuple | list) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
