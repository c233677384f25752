"""Plans a run on TPUs that are not there: does it fit, how fast could it be, what would it cost.

tclip compile --config=vit_h14 --teacher_arch=ViT-H/14 --topology=v5e:16x16[,v6e:8x8] [--out=FILE]

Compiles exactly the step that `tclip train` would run, so all its overrides count. 2xv5e:16x16 or
--slices=2 are two slices; several topologies are compared. Needs libtpu (pip install "tclip[tpu]"),
but no TPU, no data, no weights and no network; a teacher that is no folder here needs
--teacher_arch. Exits with 2 if the run does not fit. --suggest compiles a number of batches, meshes
and kinds of rematerialisation.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from tclip.cli.app import log_progress
from tclip.plan.compiler import Topology, parse_topology
from tclip.plan.models import settle_models
from tclip.plan.report import compare, describe, plan_run, remedies
from tclip.plan.suggest import describe_candidates, search
from tclip.run.experiment import experiment_from_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, as PATH or PATH:ARG.")
_TOPOLOGY = flags.DEFINE_list("topology", None, "Chips, as v5e:16x16.", required=True)
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
    log_progress()
    topologies = [_topology(text) for text in _TOPOLOGY.value]
    experiment = experiment_from_config(_CONFIG.value)
    if _CACHED.value:
        # Which the experiment checks as it would the folder of a run.
        teacher = dataclasses.replace(experiment.teacher, cache="--cached_teacher")
        experiment = dataclasses.replace(experiment, teacher=teacher)
    models, cached = settle_models(experiment, _TEACHER.value), bool(experiment.teacher.cache)
    for note in models.notes:
        print(f"note: {note}")
    if _SUGGEST.value:
        if len(topologies) > 1:
            raise ValueError("--suggest searches for one topology")
        found = search(models, cached, topologies[0])
        print(describe_candidates(found))
        _write([candidate.to_dict() for candidate in found])
        return 0 if found else DOES_NOT_FIT
    plans = {str(t): plan_run(models, cached, t) for t in topologies}
    if len(plans) > 1:
        print(compare(plans, "topology"))
        _write([plan.to_dict() for plan in plans.values()])
    else:
        (plan,) = plans.values()
        print(describe(plan))
        _write(plan.to_dict())
        if not plan.fits:
            print(
                "it does not fit; what makes it smaller:",
                *remedies(models.experiment, plan),
                sep="\n  ",
            )
    return 0 if all(plan.fits for plan in plans.values()) else DOES_NOT_FIT


def _topology(text: str) -> Topology:
    topology = parse_topology(text)
    if topology.slices > 1 and _SLICES.value > 1:
        raise ValueError(f"--topology={text} already says how many slices: leave out --slices")
    return dataclasses.replace(topology, slices=max(topology.slices, _SLICES.value))


def _write(values: dict | list) -> None:
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(values, indent=1) + "\n")
