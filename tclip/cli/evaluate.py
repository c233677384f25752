"""Zero-shot classification and retrieval of any model that tclip loads.

tclip evaluate --model=DIR [--data=shapes --data=wds:DIR ...] [--split=test]
tclip evaluate --suite=clip_benchmark --data=ROOT --model=A [--model=B ...] [--out=DIR]
The second measures what stands under ROOT of the data sets that CLIP_benchmark publishes, such as
ROOT/wds_vtab-cifar10; run again, it goes on where it was. DIR is clip_benchmark_results by default.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

import tclip
from tclip.data import SourceConfig, open_source
from tclip.evals import evaluate
from tclip.evals.suite import run_suite
from tclip.evals.summary import result_line, write_summary
from tclip.model_kind import model_kind
from tclip.run.experiment import read_experiment
from tclip.tables import markdown_table, percent

_MODEL = flags.DEFINE_multi_string("model", None, "What tclip.load takes.", required=True)
_STEP = flags.DEFINE_string("step", None, "Checkpoint of a workdir: last, best or a step.")
_SUITE = flags.DEFINE_enum("suite", None, ["clip_benchmark"], "Data sets under --data to measure.")
_DATA = flags.DEFINE_multi_string(
    "data", [], "shapes, wds:PATTERN, wds:DIR or tfds:NAME; a workdir's own by default."
)
_SPLIT = flags.DEFINE_string("split", None, 'Split; "test" of --data by default.')
_KEYS = {
    name: flags.DEFINE_string(name, getattr(SourceConfig(source=""), name), f"{name} of --data.")
    for name in ("image_key", "label_key", "caption_key", "data_dir")
}
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images at a time.", lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes that decode.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "JSON, evaluation.json in --model or here by default; DIR.")


def main(argv: Sequence[str]) -> int:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    if _SUITE.value:
        return _evaluate_suite()
    path, *more = _MODEL.value
    if more:
        raise ValueError("several models are compared by --suite only: give one --model")
    model = tclip.load(path, step=_STEP.value)
    results = {}
    for config in _sources(path):
        scores = evaluate(model, open_source(config), _BATCH_SIZE.value, _NUM_WORKERS.value)
        results[f"{config.source} {config.split}"] = scores
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    rows = [(name, *(_cell(scores.get(name)) for scores in results.values())) for name in names]
    # First, so that it is seen even where it cannot be written.
    print(markdown_table(("metric", *results), rows), flush=True)
    is_ours = model_kind(path) in ("packed", "workdir")
    folder = Path(path) if is_ours else Path()  # not another's
    out = Path(_OUT.value or folder / "evaluation.json")
    step = {} if _STEP.value is None else {"step": _STEP.value}
    written = {"model": path, **step, "results": results}
    out.write_text(json.dumps(written, indent=1) + "\n")
    return 0


def _evaluate_suite() -> int:
    if len(_DATA.value) != 1:
        raise ValueError(f"--suite={_SUITE.value} needs one --data, the folder of its data sets")
    (data,), out = _given(), Path(_OUT.value or "clip_benchmark_results")
    load = functools.partial(tclip.load, step=_STEP.value)
    batching, results = (_BATCH_SIZE.value, _NUM_WORKERS.value), []
    for result in run_suite(_MODEL.value, load, data, out, *batching):
        print(result_line(result), flush=True)
        results.append(result)
    print(write_summary(results, out))
    return int(any(result.error for result in results))


def _sources(path: str) -> list[SourceConfig]:
    if _DATA.value:
        return _given()
    if model_kind(path) != "workdir":
        raise ValueError(f"{path} is no training workdir with data of its own: give --data")
    own = read_experiment(Path(path)).eval.data
    if not own.source:
        raise ValueError(f"{path} was trained without evaluation data: give --data")
    return [dataclasses.replace(own, split=_SPLIT.value or own.split)]


def _given() -> list[SourceConfig]:
    keys: dict[str, Any] = {name: flag.value for name, flag in _KEYS.items()}
    return [SourceConfig(data, _SPLIT.value or "test", **keys) for data in _DATA.value]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return percent(value) if isinstance(value, float) else f"{value:,}"
