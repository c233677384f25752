"""A small search over batch, mesh and rematerialisation for the fastest run that fits."""

import dataclasses
import itertools
import logging
from typing import Any

from tclip.plan.compiler import Topology
from tclip.plan.models import PlannedModels
from tclip.plan.report import Plan, compare, plan_run
from tclip.run.experiment import Experiment

# Mildest first: what already fits is not recomputed further.
REMATS = ("none", "dots", "full")
BATCHES = (1, 2)  # times the config's
FSDP = (1, 4, 16)
BEST = 5

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Attributes: changes: of the config, by dotted key; plan: what they make of it."""

    changes: dict[str, int | str]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        return {"changes": self.changes, "plan": self.plan.to_dict()}


def search(models: PlannedModels, cached: bool, topology: Topology) -> list[Candidate]:
    """Compiles at most 18 variants and returns the best that fit, most samples a second first.

    The numbers of steps shrink as the batch grows, so that all see the same samples.

    Raises:
      ValueError: no variant can be compiled at all; says why the last could not.
    """
    found, refused, tried = [], "", 0
    for factor, fsdp in itertools.product(BATCHES, FSDP):
        for remat in REMATS:
            changes = _changes(models.experiment, factor, fsdp, remat)
            try:
                plan = _plan(models, cached, topology, changes)
            except ValueError as error:
                refused = str(error)
                logger.info("%s: %s", _flags(changes), refused)
                break
            tried += 1
            speed = f"{plan.samples_per_second:,.0f} samples/s" if plan.seconds else "no"
            logger.info("%s: %s", _flags(changes), speed if plan.fits else "does not fit")
            if plan.fits:
                found.append(Candidate(changes, plan))
                break
    if not tried:
        raise ValueError(refused)
    found.sort(key=lambda c: (-c.plan.samples_per_second, c.plan.memory["total"]))
    return found[:BEST]


def _changes(experiment: Experiment, factor: int, fsdp: int, remat: str) -> dict[str, int | str]:
    return {
        "train.batch_size": factor * experiment.train.batch_size,
        "train.steps": -(-experiment.train.steps // factor),
        "optim.warmup_steps": -(-experiment.optim.warmup_steps // factor),
        "mesh.data": -1,
        "mesh.fsdp": fsdp,
        "model.remat": remat,
    }


def _plan(
    models: PlannedModels, cached: bool, topology: Topology, changes: dict[str, int | str]
) -> Plan:
    experiment = models.experiment
    for key, value in changes.items():
        group, name = key.split(".")
        changed = dataclasses.replace(getattr(experiment, group), **{name: value})
        experiment = dataclasses.replace(experiment, **{group: changed})
    teacher = models.teacher
    if teacher is not None:
        teacher = dataclasses.replace(teacher, remat=experiment.model.remat)
    return plan_run(PlannedModels(experiment, teacher), cached, topology)


def describe_candidates(candidates: list[Candidate]) -> str:
    """A table of them, by the flags to give."""
    if not candidates:
        return "nothing that was tried fits"
    return compare({_flags(c.changes): c.plan for c in candidates}, "changes")


def _flags(changes: dict[str, int | str]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
