"""Compiles a training step for a TPU topology that is not there, and reads the program.

A process of its own, since the compiler takes its options from the environment when it is loaded
and aborts where it meets what it does not know: reads a job as JSON, answers with JSON.
"""

import dataclasses
import json
import math
import sys
from typing import Any

import jax
from jax.experimental import topologies

from tclip.config import build
from tclip.hardware.tpu_compiler import answer
from tclip.models import CLIPConfig
from tclip.parallel.sharding import check_batch, make_mesh
from tclip.plan.collectives import traffic
from tclip.plan.costs import hbm_bytes, matrix_flops
from tclip.plan.hlo import parse_module
from tclip.plan.inputs import abstract_batch, abstract_teacher
from tclip.run.experiment import Experiment
from tclip.train.sharded_step import make_sharded_step


def compile_step(job: dict[str, Any]) -> dict[str, Any]:
    """Compiles exactly the step that the trainer would run.

    Args:
      job: `experiment` and `teacher` (None for none) as nested dicts, `cached`, whether the
        teacher's embeddings are read, `topology` and `slices`.

    Returns:
      What `tclip.plan.compiler.Compiled` holds. `out_of_memory` is what the compiler says where
      the program needs more than there is; most figures are then absent.

    Raises:
      ValueError: the config does not fit the topology.
    """
    experiment = build(Experiment, job["experiment"])
    teacher = build(CLIPConfig, job["teacher"]) if job["teacher"] else None
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=job["topology"], num_slices=job["slices"]
    ).devices
    mesh = make_mesh(experiment.mesh, devices)
    check_batch(experiment.train.batch_size, experiment.optim.accumulate, mesh)
    jitted = make_sharded_step(experiment, teacher, mesh)
    inputs = (
        jitted.state,
        abstract_teacher(teacher, job["cached"], mesh),
        abstract_batch(experiment, teacher, job["cached"], mesh),
    )
    coords = [tuple(device.coords) for device in mesh.devices.flat]
    figures = {
        "device_kind": devices[0].device_kind,
        "devices": len(coords),
        # Slices are alike; in each, coordinates begin at 0.
        "chips": len(set(coords)) * job["slices"],
        "mesh": dict(mesh.shape),
        "argument_bytes": sum(map(_shard_bytes, jax.tree.leaves(inputs))),
    }
    try:
        compiled = jitted.step.lower(*inputs).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return figures | {"out_of_memory": str(error)}
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    module = parse_module(compiled.as_text())
    return figures | {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "matrix_flops": matrix_flops(module),
        "hbm_bytes": hbm_bytes(module),
        "xla_flops": counted["flops"],
        "xla_bytes": counted["bytes accessed"],
        "traffic": [dataclasses.asdict(t) for t in traffic(module, coords, job["slices"])],
    }


def _shard_bytes(x: jax.ShapeDtypeStruct) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def main() -> None:
    try:
        figures = compile_step(json.load(sys.stdin))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        figures = {"error": str(error)}
    answer(figures)


if __name__ == "__main__":
    main()
