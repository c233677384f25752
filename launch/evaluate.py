"""Zero-shot classification and retrieval of a packed model or a training workdir.

python -m launch.evaluate --model=DIR [--data=shapes --data=wds:DIR ...] [--split=test]
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import tclip
from launch.cli import run
from tclip.data import SourceConfig, open_source
from tclip.evals import evaluate
from tclip.experiment import read_experiment
from tclip.packed import is_packed
from tclip.tables import markdown_table, percent

_MODEL = flags.DEFINE_string("model", None, "Packed folder or training workdir.", required=True)
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
_OUT = flags.DEFINE_string("out", None, "JSON to write; evaluation.json in --model by default.")


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    model = tclip.load(_MODEL.value)
    results = {}
    for config in _sources():
        scores = evaluate(model, open_source(config), _BATCH_SIZE.value, _NUM_WORKERS.value)
        results[f"{config.source} {config.split}"] = scores
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    rows = [(name, *(_cell(scores.get(name)) for scores in results.values())) for name in names]
    # The table first: what took long to compute is seen even where it cannot be written.
    print(markdown_table(("metric", *results), rows), flush=True)
    out = Path(_OUT.value or Path(_MODEL.value) / "evaluation.json")
    out.write_text(json.dumps({"model": _MODEL.value, "results": results}, indent=1) + "\n")


def _sources() -> list[SourceConfig]:
    if _DATA.value:
        keys = {name: flag.value for name, flag in _KEYS.items()}
        split = _SPLIT.value or "test"
        return [SourceConfig(source=data, split=split, **keys) for data in _DATA.value]
    if is_packed(_MODEL.value):
        raise ValueError("a packed model has no data of its own: give --data")
    own = read_experiment(Path(_MODEL.value)).eval.data
    if not own.source:
        raise ValueError(f"{_MODEL.value} was trained without evaluation data: give --data")
    return [dataclasses.replace(own, split=_SPLIT.value or own.split)]


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return percent(value) if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    run(main)
