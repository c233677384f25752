"""The results of a suite side by side: tables for people, JSON and CSV for programs."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

from tclip.evals.clip_benchmark import DATASETS, GROUPS
from tclip.evals.suite import Result
from tclip.files import write_whole
from tclip.tables import markdown_table, percent


def headline(metrics: dict[str, float]) -> tuple[str, float]:
    """The figure that stands for a data set, and its name.

    For retrieval it is the mean of the recalls at 1 of both directions, as in DataComp (arXiv
    2304.14108).
    """
    for name in ("acc1", "mean_average_precision"):
        if name in metrics:
            return name, metrics[name]
    both = metrics["image_retrieval_recall@1"], metrics["text_retrieval_recall@1"]
    return "mean recall@1", sum(both) / 2


def averages(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Means of the headline figures by group, over the data sets that every model was measured on.

    Returns:
      for each group that has any, the mean of each model and "n", the number of data sets.
    """
    models = _models(results)
    scores = {(r.model, r.dataset): headline(r.metrics)[1] for r in results if not r.error}
    means = {}
    for group, names in (GROUPS | {"all": DATASETS}).items():
        common = [name for name in names if all((model, name) in scores for model in models)]
        if common:
            of_models = {m: sum(scores[m, name] for name in common) / len(common) for m in models}
            means[group] = of_models | {"n": len(common)}
    return means


def write_summary(results: Sequence[Result], out: Path) -> str:
    """Writes suite.md, suite.json and suite.csv into `out`.

    Returns:
      what suite.md begins with: the headline figures, their averages, and what failed, was skipped
      or is missing.
    """
    models, means = _models(results), averages(results)
    rows = [*_headline_rows(results), *_average_rows(means, models)]
    text = "\n\n".join([markdown_table(("data set", "metric", *models), rows), *_notes(results)])
    every = markdown_table(("data set", "metric", *models), _metric_rows(results))
    write_whole(out / "suite.md", f"{text}\n\n{every}\n")
    records = [dataclasses.asdict(result) for result in results]
    document = {"averages": means, "missing": _missing(results), "results": records}
    write_whole(out / "suite.json", json.dumps(document, indent=1) + "\n")
    write_whole(out / "suite.csv", _csv(records))
    return text


def result_line(result: Result) -> str:
    """One result in a line, for a log."""
    where = f"{result.dataset}, {result.model}: "
    if result.error:
        return f"{where}failed: {result.error}"
    metric, value = headline(result.metrics)
    return f"{where}{metric} {percent(value)} of {result.n:,} images"


def _models(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.model for result in results))


def _by_dataset(results: Sequence[Result]) -> dict[str, list[Result]]:
    """For each data set, in the order of `DATASETS`, the results of all models."""
    groups = {name: [r for r in results if r.dataset == name] for name in DATASETS}
    return {name: group for name, group in groups.items() if group}


def _missing(results: Sequence[Result]) -> list[str]:
    return [name for name in DATASETS if name not in _by_dataset(results)]


def _headline_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    rows = []
    for name, group in _by_dataset(results).items():
        figures = [None if result.error else headline(result.metrics) for result in group]
        metric = next((figure[0] for figure in figures if figure), "")
        rows.append((name, metric, *(percent(f[1]) if f else "failed" for f in figures)))
    return rows


def _average_rows(
    means: dict[str, dict[str, float]], models: Sequence[str]
) -> list[tuple[str, ...]]:
    return [
        (
            f"average: {group}",
            f"{of_models['n']} of {len(GROUPS.get(group, DATASETS))}",
            *(percent(of_models[model]) for model in models),
        )
        for group, of_models in means.items()
    ]


def _metric_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    return [
        (name, metric, *(percent(r.metrics[metric]) if metric in r.metrics else "" for r in group))
        for name, group in _by_dataset(results).items()
        for metric in dict.fromkeys(metric for result in group for metric in result.metrics)
    ]


def _notes(results: Sequence[Result]) -> list[str]:
    notes = []
    for name, group in _by_dataset(results).items():
        for error in dict.fromkeys(result.error for result in group if result.error):
            notes.append(f"{name} failed: {error}")
        if skipped := max(result.skipped for result in group):
            notes.append(f"{name}: {skipped:,} unusable samples were skipped")
    if missing := _missing(results):
        notes.append(f"Missing, {len(missing)} of {len(DATASETS)}: {', '.join(missing)}")
    return notes


def _csv(records: Sequence[dict]) -> str:
    rows = [record | record["metrics"] for record in records]
    columns = dict.fromkeys(name for row in rows for name in row if name != "metrics")
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
