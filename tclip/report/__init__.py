"""The report on a compressed model: report.json, report.md and pictures."""

import json
from pathlib import Path

from tclip import loading
from tclip.report import pictures, plots
from tclip.report.markdown import comparison_table, render
from tclip.report.results import collect, open_data
from tclip.run.checkpoint import load_trained
from tclip.train.metric_writer import read_metrics


def make_report(
    teacher: str | Path, student: str | Path, packed: str | Path, out: str | Path, split: str
) -> str:
    """Evaluates teacher, post-training ternarisation and packed student, and writes the report.

    Args:
      teacher: workdir of the float teacher.
      student: workdir of the ternary student, for its config, curves and latent weights.
      packed: packed folder of the student, which is what is evaluated.
      out: folder for report.json, report.md, PNGs, and examples/ with a few images to classify.
      split: of the student's eval.data.

    Returns:
      The table of the three models.

    Raises:
      ValueError, OSError: a run or folder is missing, damaged, or has no evaluation data.
    """
    teacher, student, packed, out = map(Path, (teacher, student, packed, out))
    experiment, params, quant = load_trained(student)
    data = open_data(experiment.eval, split)
    results = collect(teacher, experiment.quant, packed, data)

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    plots.accuracy_against_size(
        out / "accuracy_vs_size.png",
        {
            name: (results[name]["size_bytes"], results[name]["zeroshot_top1"])
            for name in plots.NAMES
        },
    )
    runs = {"teacher": read_metrics(teacher), "student": read_metrics(student)}
    plots.training_curves(
        out / "training_curves.png",
        {name: pictures.curve(rows, "loss") for name, rows in runs.items()},
        {name: pictures.curve(rows, "eval/zeroshot_top1") for name, rows in runs.items()},
    )
    plots.weight_histogram(
        out / "weights.png", *pictures.middle_layer(params, quant, experiment.quant)
    )
    files = {
        "accuracy_vs_size.png": "Zero-shot accuracy against size",
        "training_curves.png": "Training curves",
        "weights.png": "Latent weights of a layer with thresholds and ternary levels",
    }
    rows = pictures.retrieved(loading.load(packed), data)
    if rows:
        plots.retrieval_grid(out / "retrieval.png", rows)
        files["retrieval.png"] = (
            "Best images of the packed student; those that carry the caption are framed"
        )
    pictures.write_examples(out / "examples", data.source)
    where = f"{data.source.name}, split {split}"
    (out / "report.md").write_text(render(results, where, experiment.quant, files))
    return comparison_table(results)
