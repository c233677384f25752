"""From a compiled step to what a run on these chips would be: does it fit, how fast, how long."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tclip.hardware.chips import Chip, chip_of
from tclip.models import CLIPConfig
from tclip.plan.collectives import Traffic
from tclip.plan.compiler import Compiled, Topology, compile_step
from tclip.plan.models import PlannedModels
from tclip.run.experiment import Experiment
from tclip.run.flops import step_flops
from tclip.tables import markdown_table, percent


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology; bytes and operations are of one chip.

    Attributes:
      topology: as written, with the number of slices.
      chip: its name. chips: how many. mesh: sizes of the axes.
      batch_size, steps: of the run.
      fits: whether the program can be loaded.
      memory: bytes by "arguments", "outputs", "temporaries", "code"; "total", and "available".
      model_flops: operations of the model in a step, over all chips, and `sample_flops` for each
        pair of the batch, by formula.
      matrix_flops: operations of the matrix unit in the program.
      hbm_bytes: read and written by the program.
      xla_flops, xla_bytes: XLA's own counts, of one device, which take a loop's body once.
      traffic: what a device sends to others.
      seconds: least time of a step by "compute", "HBM", "ICI" and "DCN"; empty if nothing was
        compiled.
      out_of_memory: the compiler's message, or "".
    """

    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    steps: int
    fits: bool
    memory: dict[str, float]
    model_flops: float
    sample_flops: float
    matrix_flops: float
    hbm_bytes: float
    xla_flops: float
    xla_bytes: float
    traffic: tuple[Traffic, ...]
    seconds: dict[str, float]
    peak_flops: float
    out_of_memory: str

    @property
    def binds(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        """Least time of a step: everything at its peak, and at once."""
        return max(self.seconds.values())

    @property
    def samples_per_second(self) -> float:
        return self.batch_size / self.step_seconds

    @property
    def mfu(self) -> float:
        """Operations of the model over what the chips could do in the time of the bound."""
        return self.model_flops / (self.peak_flops * self.chips * self.step_seconds)

    @property
    def hours(self) -> float:
        """Of the whole run, without evaluation, checkpoints and compilation."""
        return self.steps * self.step_seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with those that follow from others."""
        values = dataclasses.asdict(self)
        if self.seconds:
            names = "binds", "step_seconds", "samples_per_second", "mfu", "hours"
            values |= {name: getattr(self, name) for name in names}
            values["chip_hours"] = self.chips * self.hours
        return values


def plan_run(models: PlannedModels, cached: bool, topology: Topology) -> Plan:
    """Compiles a run's step and plans by it; see `compile_step` and `make_plan`."""
    compiled = compile_step(models.experiment, models.teacher, cached, topology)
    return make_plan(models.experiment, models.teacher, cached, topology, compiled)


def make_plan(
    experiment: Experiment,
    teacher: CLIPConfig | None,
    cached: bool,
    topology: Topology,
    compiled: Compiled,
) -> Plan:
    """Puts the program's figures beside the chip's.

    Raises:
      ValueError: the chip's peaks are not known.
    """
    chip = chip_of(compiled.device_kind)
    if chip is None:
        raise ValueError(f"{topology}: the peaks of {compiled.device_kind!r} are not known")
    per_chip = compiled.devices / compiled.chips
    memory = {
        "arguments": per_chip * compiled.argument_bytes,
        "outputs": per_chip * compiled.output_bytes,
        "temporaries": per_chip * compiled.temporary_bytes,
        "code": per_chip * compiled.code_bytes,
    }
    memory |= {"total": sum(memory.values()), "available": chip.hbm_bytes}
    sample = step_flops(experiment, teacher, cached)
    return Plan(
        topology=str(topology),
        chip=chip.name,
        chips=compiled.chips,
        mesh=compiled.mesh,
        batch_size=experiment.train.batch_size,
        steps=experiment.train.steps,
        fits=not compiled.out_of_memory and memory["total"] <= memory["available"],
        memory=memory,
        model_flops=sample * experiment.train.batch_size,
        sample_flops=sample,
        matrix_flops=per_chip * compiled.matrix_flops,
        hbm_bytes=per_chip * compiled.hbm_bytes,
        xla_flops=compiled.xla_flops,
        xla_bytes=compiled.xla_bytes,
        traffic=compiled.traffic,
        seconds={} if compiled.out_of_memory else least_seconds(compiled, chip),
        peak_flops=chip.flops,
        out_of_memory=compiled.out_of_memory,
    )


def least_seconds(compiled: Compiled, chip: Chip) -> dict[str, float]:
    """Time of a step at the peak of each resource.

    A collective uses the links along the dimensions of the torus that its group spans, two each;
    what devices of a chip send each other is free.
    """
    per_chip = compiled.devices / compiled.chips
    links = {t: 2 * t.dimensions * chip.link_bandwidth for t in compiled.traffic}
    return {
        "compute": per_chip * compiled.matrix_flops / chip.flops,
        "HBM": per_chip * compiled.hbm_bytes / chip.hbm_bandwidth,
        "ICI": per_chip * sum(t.ici_bytes / rate for t, rate in links.items() if rate),
        "DCN": per_chip * sum(t.dcn_bytes for t in compiled.traffic) / chip.network_bandwidth,
    }


def remedies(experiment: Experiment, plan: Plan) -> list[str]:
    """Flags that make a program smaller, mildest first; never empty."""
    flags = []
    accumulate, remat = experiment.optim.accumulate, experiment.model.remat
    ways = plan.mesh["slice"] * plan.mesh["data"] * plan.mesh["fsdp"]
    if remat == "none":
        flags.append("--config.model.remat=dots: recompute attention scores and what lies between")
    if remat != "full":
        flags.append("--config.model.remat=full: recompute each block; about a third more compute")
    if experiment.train.batch_size % (2 * accumulate * ways) == 0:
        flags.append(f"--config.optim.accumulate={2 * accumulate}: halve the micro-batch")
    fsdp, data = plan.mesh["fsdp"], plan.mesh["data"]
    if larger := next((n for n in (16, 8, 4, 2) if data % n == 0), None):
        rest = "" if experiment.mesh.data == -1 else " --config.mesh.data=-1"
        flags.append(f"--config.mesh.fsdp={larger * fsdp}{rest}: spread weights over more chips")
    return [*flags, "more chips, or chips with more memory"]


def describe(plan: Plan) -> str:
    """The plan as a table for people."""
    rows = [
        ("chips", f"{plan.chips:,} x {plan.chip}"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())),
        ("batch", f"{plan.batch_size:,} pairs, {plan.batch_size / plan.chips:g} a chip"),
        ("fits", "yes" if plan.fits else "NO"),
    ]
    rows += [
        (f"HBM a chip, {name}", _gibibytes(size)) for name, size in plan.memory.items() if size
    ]
    rows += [
        ("model FLOPs a sample", _prefixed(plan.sample_flops)),
        ("model FLOPs a step", _prefixed(plan.model_flops)),
    ]
    if not plan.seconds:
        return markdown_table((plan.topology, ""), rows)
    executed = plan.matrix_flops * plan.chips / plan.model_flops
    rows.append(("matrix FLOPs of the program / of the model", f"{executed:.3f}"))
    rows.append(("HBM traffic a chip and step", f"{_prefixed(plan.hbm_bytes)}B"))
    rows += _traffic_rows(plan.traffic)
    for name, seconds in plan.seconds.items():
        mark = " (binds)" if name == plan.binds else ""
        if seconds:
            rows.append((f"least time by {name}{mark}", f"{1e3 * seconds:,.3g} ms"))
    rows += [
        ("at this bound: samples/s", f"{plan.samples_per_second:,.0f}"),
        ("at this bound: MFU", percent(plan.mfu)),
        (f"at this bound: {plan.steps:,} steps", f"{plan.hours:,.2f} hours"),
        ("at this bound: chip-hours", f"{plan.chips * plan.hours:,.1f}"),
    ]
    return markdown_table((plan.topology, ""), rows)


def compare(plans: Mapping[str, Plan], what: str) -> str:
    """A table with a row for each plan; `what` heads their names."""
    header = (what, "fits", "HBM a chip", "binds", "samples/s", "MFU", "hours", "chip-hours")
    rows = []
    for name, plan in plans.items():
        row = [name, "yes" if plan.fits else "NO", _gibibytes(plan.memory["total"])]
        if plan.seconds:
            row += [plan.binds, f"{plan.samples_per_second:,.0f}", percent(plan.mfu)]
            row += [f"{plan.hours:,.1f}", f"{plan.chips * plan.hours:,.0f}"]
        rows.append(row + [""] * (len(header) - len(row)))
    return markdown_table(header, rows)


def _traffic_rows(traffic: tuple[Traffic, ...]) -> list[tuple[str, str]]:
    rows = []
    for network, key in (("ICI", "ici_bytes"), ("DCN", "dcn_bytes")):
        moving = [t for t in traffic if getattr(t, key)]
        for kind in dict.fromkeys(t.kind for t in moving):
            alike = [t for t in moving if t.kind == kind]
            sent = _prefixed(sum(getattr(t, key) for t in alike))
            count = sum(t.count for t in alike)
            rows.append((f"{network}, {kind} x {count:,}", f"{sent}B a device"))
    return rows


def _gibibytes(size: float) -> str:
    """Bytes as GiB, as the memory of chips is counted."""
    return f"{size / 2**30:.2f} GiB"


def _prefixed(value: float) -> str:
    """A number with the prefix of its thousands, to four digits."""
    prefixes = iter(" kMGTPE")
    while value >= 1000:
        value /= 1000
        next(prefixes)
    return f"{value:.4g} {next(prefixes).strip()}"
