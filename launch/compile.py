"""Plans a run on TPUs that are not there: does it fit, how fast could it be, what would it cost.

python -m launch.compile --config=configs/....py[:ARG] --topology=v5e:16x16 [--out=plan.json]

Compiles exactly the step that launch.train would run, so all its overrides count. 2xv5e:16x16 or
--slices=2 are two slices. Needs libtpu (pip install "tclip[tpu]"), but no TPU, no data, no weights
and no network; a teacher that is no folder here needs --teacher_arch. Exits with 2 if the run does
not fit. --suggest compiles a number of batches, meshes and kinds of rematerialisation.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.cli import run
from tclip.experiment import experiment_from_config
from tclip.plan.compiler import Topology, compile_step, parse_topology
from tclip.plan.models import settle_models
from tclip.plan.report import describe, make_plan, remedies
from tclip.plan.suggest import describe_candidates, search

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as PATH or PATH:ARG.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, as v5e:16x16.", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "How many such slices.", lower_bound=1)
_TEACHER = flags.DEFINE_string("teacher_arch", "", "The teacher's architecture, as ViT-L/14.")
_CACHED = flags.DEFINE_bool("cached_teacher", False, "Embeddings as with teacher.cache.")
_SUGGEST = flags.DEFINE_bool("suggest", False, "Search batch, mesh and rematerialisation.")
_OUT = flags.DEFINE_string("out", "", "JSON file for the plan; none by default.")
flags.mark_flag_as_required("config")

DOES_NOT_FIT = 2


def main(argv: Sequence[str]) -> int:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    topology = _topology()
    models = settle_models(experiment_from_config(_CONFIG.value), _TEACHER.value)
    for note in models.notes:
        print(f"note: {note}")
    cached = models.teacher is not None and (_CACHED.value or bool(models.experiment.teacher.cache))
    if _SUGGEST.value:
        found = search(models, cached, topology)
        print(describe_candidates(found))
        _write([candidate.to_dict() for candidate in found])
        return 0 if found else DOES_NOT_FIT
    compiled = compile_step(models.experiment, models.teacher, cached, topology)
    plan = make_plan(models.experiment, models.teacher, cached, topology, compiled)
    print(describe(plan))
    _write(plan.to_dict())
    if plan.fits:
        return 0
    print(plan.out_of_memory or "the program needs more memory than the chip has")
    print("what makes it smaller:", *remedies(models.experiment, plan), sep="\n  ")
    return DOES_NOT_FIT


def _topology() -> Topology:
    topology = parse_topology(_TOPOLOGY.value)
    if topology.slices > 1 and _SLICES.value > 1:
        raise ValueError(f"--topology={topology} already says how many slices: leave out --slices")
    return dataclasses.replace(topology, slices=max(topology.slices, _SLICES.value))


def _write(values: dict | list) -> None:
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
