"""How much of its time a training run waits for data."""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from tclip.run.experiment import experiment_from_config
from tclip.run.recipe import load_recipe
from tclip.tables import markdown_table
from tclip.train.loop import train
from tclip.train.metric_writer import read_metrics

# So many rows of metrics in all. The first is left out: no batch is ready when it begins.
ROWS = 11


def run(
    config: Annotated[str, "recipe, as PATH or PATH:ARG"] = "configs/shapes.py:teacher",
    steps: Annotated[int, "steps that are measured"] = 100,
) -> dict[str, Any]:
    """Trains the recipe for a tenth more steps than are measured, without evaluations.

    Returns:
      The share of the measured time in which the devices had nothing to do because the next batch
      was not there, the largest such share in a tenth of the steps, and samples a second.

    Raises:
      ValueError: too few steps.
    """
    if steps < ROWS - 1:
        raise ValueError(f"--steps={steps}: must be at least {ROWS - 1}")
    log_every = steps // (ROWS - 1)
    file, *arg = config.split(":", 1)
    recipe = load_recipe(Path(file)).get_config(*arg)
    recipe.eval.data.source = ""
    recipe.train.log_every = log_every
    recipe.train.steps = recipe.train.eval_every = recipe.train.checkpoint_every = ROWS * log_every
    recipe.optim.warmup_steps = 0
    experiment = experiment_from_config(recipe)
    with tempfile.TemporaryDirectory() as workdir:
        train(experiment, workdir)
        rows = read_metrics(workdir)[1:]
    seconds = [log_every / row["steps_per_second"] for row in rows]
    waits = [row["input_wait"] for row in rows]
    total = sum(seconds)
    share = sum(s * wait for s, wait in zip(seconds, waits, strict=True)) / total
    measured = log_every * len(rows)
    rate = measured * experiment.train.batch_size / total
    load = os.getloadavg()[0]
    print(f"{config}, {measured} steps, batch {experiment.train.batch_size}, load {load:.1f}")
    lines = [
        ("input wait", f"{share:.2%}"),
        ("input wait, worst tenth", f"{max(waits):.2%}"),
        ("samples a second", f"{rate:.0f}"),
    ]
    print(markdown_table(("training", "value"), lines))
    return {
        "config": config,
        "steps": measured,
        "batch_size": experiment.train.batch_size,
        "input_wait": share,
        "worst_input_wait": max(waits),
        "samples_per_second": rate,
        "load": load,
    }
