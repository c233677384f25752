"""Has a training step compiled for TPUs in another process, and takes its answer."""

import dataclasses
import logging
import re

from tclip.config import to_dict
from tclip.hardware.tpu_compiler import ask, libtpu_version
from tclip.models import CLIPConfig
from tclip.plan.collectives import Traffic
from tclip.run.experiment import Experiment

_TOPOLOGY = re.compile(r"(?:(\d+)x)?([a-z]\w*:\d+(?:x\d+)*)")
# As in "(26.72G) exceeds available HBM", or "Used 17.1G of 15.75G hbm".
_NEEDED = re.compile(r"([\d.]+)([KMGT])\)? (?:exceeds available HBM|of [\d.]+[KMGT] hbm)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Topology:
    """TPUs. Attributes: name: as "v5e:16x16", of a slice; slices: how many."""

    name: str
    slices: int = 1

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices}x{self.name}"


def parse_topology(text: str) -> Topology:
    """Reads "v5e:16x16", or "2xv5e:16x16" for two slices; ValueError for anything else."""
    match = _TOPOLOGY.fullmatch(text)
    if match is None or match[1] == "0":
        raise ValueError(f"topology {text!r}: write it as v5e:16x16, or as 2xv5e:16x16")
    return Topology(match[2], int(match[1] or 1))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step's program; bytes and operations are of one device, and of one step.

    Attributes:
      device_kind: jax's name of the chip.
      devices, chips: in the mesh; a chip may be two devices.
      mesh: sizes of its axes.
      argument_bytes: state, teacher and batch.
      output_bytes: of what is not put in the arguments' place.
      temporary_bytes: everything else that lives during a step; with `out_of_memory` what the
        compiler says of it.
      code_bytes: of the program.
      matrix_flops: operations of the matrix unit, with what is recomputed.
      hbm_bytes: read and written.
      xla_flops, xla_bytes: XLA's own counts, which take the body of a loop once and all memories
        alike.
      traffic: what is sent to other devices.
      out_of_memory: the compiler's message where the program does not fit, else "".
    """

    device_kind: str
    devices: int
    chips: int
    mesh: dict[str, int]
    argument_bytes: float
    output_bytes: float = 0.0
    temporary_bytes: float = 0.0
    code_bytes: float = 0.0
    matrix_flops: float = 0.0
    hbm_bytes: float = 0.0
    xla_flops: float = 0.0
    xla_bytes: float = 0.0
    traffic: tuple[Traffic, ...] = ()
    out_of_memory: str = ""


def compile_step(
    experiment: Experiment, teacher: CLIPConfig | None, cached: bool, topology: Topology
) -> Compiled:
    """Compiles the trainer's step; see `tclip.plan.worker.compile_step`.

    Raises:
      ValueError: libtpu is not installed; the config does not fit the topology, or the compiler
        does not know what it is asked for, or died of it.
    """
    libtpu_version()
    job = {
        "experiment": to_dict(experiment),
        "teacher": to_dict(teacher),
        "cached": cached,
        "topology": topology.name,
        "slices": topology.slices,
    }
    logger.info("compiling for %s", topology)
    answer = ask("tclip.plan.worker", job, f"the compiler for {topology}")
    if "error" in answer:
        raise ValueError(answer["error"].partition("\n")[0])
    answer["traffic"] = tuple(Traffic(**t) for t in answer.get("traffic", ()))
    message = answer.get("out_of_memory", "")
    if message:
        needed = _NEEDED.search(message)
        answer["temporary_bytes"] = float(needed[1]) * _UNITS[needed[2]] if needed else 0.0
        answer["out_of_memory"] = message.partition("\n")[0]
    return Compiled(**answer)
