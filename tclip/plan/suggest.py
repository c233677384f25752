"""A small search over batch, mesh and rematerialisation for the fastest run that fits."""

import dataclasses
import itertools
import logging
from typing import Any

from tclip.experiment import Experiment
from tclip.models import CLIPConfig
from tclip.plan.compiler import Topology, compile_step
from tclip.plan.models import Models
from tclip.plan.report import Plan, gibibytes, make_plan
from tclip.tables import markdown_table, percent

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


def search(models: Models, cached: bool, topology: Topology) -> list[Candidate]:
    """Compiles at most 18 variants and returns the best that fit, most samples a second first.

    The number of steps shrinks as the batch grows, so that all see the same samples.

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
        "mesh.data": -1,
        "mesh.fsdp": fsdp,
        "model.remat": remat,
    }


def _plan(models: Models, cached: bool, topology: Topology, changes: dict[str, int | str]) -> Plan:
    experiment = models.experiment
    for key, value in changes.items():
        group, name = key.split(".")
        changed = dataclasses.replace(getattr(experiment, group), **{name: value})
        experiment = dataclasses.replace(experiment, **{group: changed})
    teacher: CLIPConfig | None = models.teacher
    if teacher is not None:
        teacher = dataclasses.replace(teacher, remat=experiment.model.remat)
    compiled = compile_step(experiment, teacher, cached, topology)
    return make_plan(experiment, teacher, cached, topology, compiled)


def describe_candidates(candidates: list[Candidate]) -> str:
    """A table of them, with the flags to give."""
    rows = [
        (
            _flags(c.changes),
            gibibytes(c.plan.memory["total"]),
            c.plan.binds,
            f"{c.plan.samples_per_second:,.0f}",
            percent(c.plan.mfu),
            f"{c.plan.chips * c.plan.hours:,.1f}",
        )
        for c in candidates
    ]
    if not rows:
        return "nothing that was tried fits"
    header = ("changes", "HBM a chip", "binds", "samples/s", "MFU", "chip-hours")
    return markdown_table(header, rows)


def _flags(changes: dict[str, int | str]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())
