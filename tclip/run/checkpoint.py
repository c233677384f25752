"""Checkpoints of a training run: asynchronous, all or nothing, restored onto any mesh.

The only module that knows Orbax. A checkpoint is a folder checkpoints/STEP with the train state;
which data comes next is a function of the step. Orbax writes it under another name and renames it
when it is whole, so a run that dies while it saves leaves the checkpoints before that one as they
were. All processes of a run write it together, and all call what is here.
"""

import logging
import math
import os
import re
import uuid
from pathlib import Path
from typing import Any, cast

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from tclip.files import read_json_object
from tclip.models import init_params
from tclip.parallel.processes import is_main, largest, main_says, wait_for_all
from tclip.parallel.sharding import path_name
from tclip.quant import init_quant
from tclip.run.experiment import Experiment, read_experiment
from tclip.run.state import Params, TrainState

CHECKPOINTS = "checkpoints"
LAST, BEST = "last", "best"
# Where Orbax keeps the metrics of a checkpoint.
METRICS = "metrics/metrics"
# In the name of what Orbax is still writing.
UNFINISHED = ".orbax-checkpoint-tmp"
# How an error of tensorstore begins: with a code. By these it speaks of the bytes that it read, by
# all others of reading them.
CODE = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")
DAMAGE = {"DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"}

logger = logging.getLogger(__name__)

Policies = ocp.training.preservation_policies


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message names it and what is left."""


class DamagedError(CheckpointError):
    """What is on disk is not what was saved."""


class Checkpoints:
    """The checkpoints of one run, to write and to resume from. Use as a context manager."""

    def __init__(self, workdir: Path, keep_last: int, best_metric: str):
        """Opens workdir/checkpoints and removes, with a warning, what an interrupted save left.

        Args:
          keep_last: newest checkpoints that are kept.
          best_metric: the checkpoint whose metric of this name is largest is kept as well.
        """
        self.directory = workdir.absolute() / CHECKPOINTS
        for path in self.directory.glob(f"*{UNFINISHED}*"):
            logger.warning("%s was left half-written; it is removed", path)
        best = Policies.BestN(
            n=1,
            get_metric_fn=lambda metrics: _metric(metrics, best_metric),
            keep_checkpoints_without_metrics=False,
        )
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            # When to save is the caller's business.
            save_decision_policy=cast(
                Any, ocp.training.save_decision_policies.FixedIntervalPolicy(1)
            ),
            preservation_policy=cast(
                Any, Policies.AnyPreservationPolicy([Policies.LatestN(keep_last), best])
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        try:
            self._orbax.close()
        except Exception as error:
            if error_type is None:
                raise self._failure(error) from error
            # The error that is already on its way came first.
            logger.error("%s", self._failure(error))

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Starts saving and returns once `state` may be donated; waits for the save before it.

        Args:
          metrics: of the evaluation at this step, if there was one.

        Raises:
          CheckpointError: the save before this one failed, or this one cannot start.
        """
        self.wait()
        try:
            self._orbax.save_checkpointables_async(
                step,
                {"state": state},
                force=True,
                metrics=None if metrics is None else {**metrics},
            )
        except Exception as error:
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when the last save is on disk; raises CheckpointError if it failed."""
        try:
            self._orbax.wait()
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, abstract_state: TrainState) -> TrainState | None:
        """Loads the newest checkpoint that is not damaged; None where there is none.

        Damaged ones are set aside with a warning: they are renamed, and none is deleted. Which
        there are is what process 0 sees, and damaged is what any process finds damaged.

        Args:
          abstract_state: ShapeDtypeStructs with the shardings that the state shall have.

        Raises:
          CheckpointError: all are damaged; or one is of another shape, or some process is not let
            read it, and nothing was renamed.
        """
        steps = {info.step for info in self._orbax.checkpoints}
        damaged: dict[int, CheckpointError] = {}
        while (step := main_says(max(steps - damaged.keys(), default=-1))) >= 0:
            path, state, error = self.directory / str(step), None, None
            try:
                state = _load(path, abstract_state)
            except CheckpointError as failure:
                error = failure
            severity = 0 if error is None else 1 if isinstance(error, DamagedError) else 2
            severity = largest(severity)
            if severity == 0:
                self._set_aside(damaged)
                return state
            error = error or CheckpointError(f"{path} is read by this process, not by another")
            if severity == 2:
                raise error
            damaged[step] = error
        if damaged:
            raise damaged[max(damaged)]
        return None

    def _set_aside(self, failures: dict[int, CheckpointError]) -> None:
        for step, error in failures.items():
            path = self.directory / str(step)
            aside = path.with_name(f"damaged-{step}-{uuid.uuid4().hex[:8]}")
            logger.warning("%s; the checkpoint before is used, and this one set aside", error)
            if is_main():
                path.rename(aside)
        if failures:
            wait_for_all("damaged checkpoints")
            self._orbax.reload()

    def _failure(self, error: Exception) -> CheckpointError:
        steps = _whole_steps(self.directory)
        left = f"that of step {max(steps)} is whole" if steps else "there is none before it"
        return CheckpointError(
            f"a checkpoint could not be written to {self.directory}; {left}: {_first_line(error)}"
        )


def has_checkpoint(workdir: Path) -> bool:
    """Whether `workdir` holds a checkpoint that was written to its end."""
    return bool(_whole_steps(workdir / CHECKPOINTS))


def load_trained(
    workdir: str | Path, step: str | int = LAST
) -> tuple[Experiment, Params, dict[str, Any]]:
    """Reads the weights of a training run, finished or not, onto the default device.

    Args:
      step: which of its checkpoints: the "last"; the "best", whose train.best_metric is largest; or
        that of a step, by its number.

    Returns:
      The experiment, the latent float32 parameters and the scales and thresholds (`quant`); of the
      moving average where the run keeps one.

    Raises:
      FileNotFoundError: no workdir, or no checkpoint in it yet.
      ValueError: config.json is damaged, or there is no checkpoint of this `step`.
      CheckpointError: the checkpoint is damaged or of another shape.
    """
    workdir = Path(workdir)
    experiment = read_experiment(workdir)
    path = _checkpoint_of(workdir, step, experiment.train.best_metric)
    sharding = SingleDeviceSharding(jax.local_devices()[0])

    def weights() -> dict[str, Any]:
        params = init_params(experiment.model, jax.random.key(0))
        return {"params": params, "quant": init_quant(params, experiment.quant)}

    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(weights),
    )
    group = "ema" if experiment.optim.ema_decay else "trainable"
    loaded = _load(path, {group: abstract}, partial=True)[group]
    return experiment, loaded["params"], loaded["quant"]


def _checkpoint_of(workdir: Path, step: str | int, best_metric: str) -> Path:
    directory = workdir.absolute() / CHECKPOINTS
    steps = sorted(_whole_steps(directory))
    if not steps:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet; train it with launch.train")
    there = f"{workdir} has checkpoints of the steps {', '.join(map(str, steps))}"
    if step == LAST:
        return directory / str(steps[-1])
    if step == BEST:
        scores = {n: _metric(_metrics_of(directory / str(n)), best_metric) for n in steps}
        best = max(steps, key=lambda n: (scores[n], n))
        if scores[best] == -math.inf:
            raise ValueError(
                f"step={BEST!r}: {there}, none of which was evaluated by {best_metric} "
                f"(train.best_metric); use {LAST!r} or a number"
            )
        return directory / str(best)
    number = int(step) if str(step).isdecimal() else None
    if number not in steps:
        raise ValueError(f"step={step!r}: {there}; use {LAST!r}, {BEST!r} or one of these")
    return directory / str(number)


def _metrics_of(path: Path) -> dict[str, float]:
    """The metrics that a checkpoint was saved with; {} if there was no evaluation."""
    try:
        return read_json_object(path / METRICS)
    except FileNotFoundError:
        return {}


def _whole_steps(directory: Path) -> list[int]:
    # What is still being written has a suffix.
    return [int(path.name) for path in directory.glob("*") if path.name.isdigit()]


def _load(path: Path, abstract: Any, partial: bool = False) -> Any:
    """Reads the state in a checkpoint. No process waits for another, which might not come.

    Args:
      abstract: ShapeDtypeStructs with the shardings that it shall have.
      partial: whether the checkpoint may hold more.

    Raises:
      DamagedError: the checkpoint is damaged.
      CheckpointError: it is of another shape, or this process is not let read it.
    """
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.pytree.loading.partial_load = partial
    try:
        with context:
            return ocp.load_checkpointables(str(path), {"state": abstract})["state"]
    except Exception as error:
        raise _unreadable(path, error, abstract, partial) from error


def _unreadable(path: Path, error: BaseException, abstract: Any, partial: bool) -> CheckpointError:
    """What the error of `_load` comes from."""
    while error.__cause__:
        error = error.__cause__
    # Of tensorstore, or of the code that reads the text files and compares shapes.
    of_bytes = isinstance(error, (ValueError, LookupError, TypeError, FileNotFoundError))
    code = CODE.match(str(error))
    if code and code[1] not in DAMAGE:
        of_bytes = False
    if not of_bytes or not os.path.exists(path):
        return CheckpointError(
            f"{path} cannot be read, and stays as it is; run the command again: "
            f"{_first_line(error)}"
        )
    if difference := _difference(path, abstract, partial):
        return CheckpointError(f"{path} is of another architecture than config.json: {difference}")
    return DamagedError(f"{path} is damaged: {_first_line(error)}")


def _difference(path: Path, abstract: Any, partial: bool) -> str:
    """Names an array that a checkpoint lacks, or has in another shape; "" if it has all of them, or
    does not tell."""
    try:
        stored = ocp.checkpointables_metadata(str(path)).metadata.get("state")
    except Exception:
        stored = None
    if stored is None:
        return ""
    there, here = _shapes(stored), _shapes(abstract)
    for name in here if partial else sorted(here | there):
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
    return ""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path_name(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(tree)}


def _metric(metrics: dict[str, float] | None, name: str) -> float:
    return (metrics or {}).get(name, -math.inf)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
