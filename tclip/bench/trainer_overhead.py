"""What the training loop adds to its steps: batches, metrics, and whatever else is not compiled."""

import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import jax

from tclip.bench.steps import TimedStep, experiment_of, random_batch
from tclip.data import SourceConfig
from tclip.models import architecture
from tclip.parallel.sharding import batch_sharding, make_mesh
from tclip.run.experiment import Experiment, read_experiment
from tclip.run.optim import OptimConfig
from tclip.tables import markdown_table
from tclip.train.loop import train
from tclip.train.metric_writer import read_metrics


def run(
    arch: Annotated[str, "architecture that is trained"] = "small-32",
    batch_size: Annotated[int, "image-caption pairs a step"] = 160,
    steps: Annotated[int, "steps that are timed at once"] = 20,
    repeats: Annotated[int, "timings of each kind"] = 5,
) -> dict[str, Any]:
    """Times training runs and the bare step in turn, on all devices.

    A run is that of launch.train on rendered shapes: it reads, decodes and tokenises its batches,
    and writes a row of metrics every `steps` steps. Its compilation, the filling of its buffers and
    its checkpoint are not timed. The bare step is the same compiled program over and over on one
    batch that stays on the devices.

    For eight devices on a CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8. They share
    their cores with the loop, which on an accelerator they do not.

    Returns:
      The median seconds of a step of each kind, and of the pairs' overheads, the share of a run's
      time that the bare step does not need, median and range.
    """
    source = SourceConfig("shapes:tiny")
    schedule = dataclasses.replace(
        Experiment().train,
        steps=2 * steps,
        batch_size=batch_size,
        log_every=steps,
        eval_every=2 * steps,
        checkpoint_every=2 * steps,
    )
    experiment = experiment_of(
        architecture(arch), train_data=source, train=schedule, optim=OptimConfig(warmup_steps=0)
    )
    seconds: dict[str, list[float]] = {"training": [], "bare step": []}
    bare = None
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as workdir:
            train(experiment, workdir)
            *_, last = read_metrics(workdir)
            seconds["training"].append(1 / last["steps_per_second"])
            bare = bare or _bare_step(read_experiment(Path(workdir)))
        seconds["bare step"].append(bare.seconds(steps) / steps)
    overheads = [1 - step / loop for loop, step in zip(*seconds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    overhead, low, high = statistics.median(overheads), min(overheads), max(overheads)
    load, devices = os.getloadavg()[0], jax.devices()
    rows = [(name, f"{1e3 * median:.1f} ms") for name, median in medians.items()]
    rows.append(("overhead", f"{overhead:.2%} ({low:.2%} to {high:.2%})"))
    print(
        f"{arch}, batch {batch_size}, {len(devices)} devices, "
        f"{repeats} x {steps} steps of each kind, load {load:.1f}"
    )
    print(markdown_table(("a step of", "median"), rows))
    return {
        "arch": arch,
        "batch_size": batch_size,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "seconds": medians,
        "overhead": overhead,
        "overhead_range": (low, high),
        "load": load,
    }


def _bare_step(experiment: Experiment) -> TimedStep:
    mesh = make_mesh(experiment.mesh)
    batch = random_batch(experiment.model, experiment.train.batch_size)
    return TimedStep(experiment, jax.device_put(batch, batch_sharding(mesh)), mesh=mesh)
