"""Measures models on the data sets of CLIP_benchmark; what is measured is kept at once.

OUT/MODEL/DATASET.json   one result; MODEL is the beginning of the model's fingerprint
OUT/suite.md, .json, .csv   all of them side by side (tclip/evals/summary.py)
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tclip.data import SourceConfig
from tclip.data.tar_index import open_index
from tclip.data.webdataset import WebDatasetSource
from tclip.evals.clip_benchmark import find_datasets, measure, open_dataset
from tclip.files import write_whole
from tclip.folder_lock import folder_lock
from tclip.prompts import Encoder


@dataclasses.dataclass(frozen=True)
class Result:
    """What a model scored on a data set, or why it could not be measured.

    Attributes:
      model: as the user named it.
      dataset: name in `DATASETS`.
      kind: classification, multilabel or retrieval; "" after an error.
      metrics: fractions by name; empty after an error.
      n: images that took part.
      skipped: samples that could not be used.
      error: the reason, "" when all went well.
    """

    model: str
    dataset: str
    kind: str = ""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    n: int = 0
    skipped: int = 0
    error: str = ""


def run_suite(
    models: Sequence[str],
    load: Callable[[str], Encoder],
    cfg: SourceConfig,
    out: Path,
    batch_size: int = 128,
    num_workers: int = 0,
) -> Iterator[Result]:
    """Measures every model on every data set under the folder `cfg.source`, one model at a time.

    A result in `out` is taken over when it is of the same weights, tokenizer and preprocessing, and
    of the same samples by number, labels and sizes. What cannot be measured is a result with an
    error; it is tried again by the next run.

    Raises:
      FolderInUseError: another suite writes to `out`.
      FileNotFoundError: there is no data set, or a model is missing.
      ValueError: a model cannot be read.
      OSError: a result cannot be written.
    """
    with folder_lock(out):
        yield from _measure_all(models, load, cfg, out, (batch_size, num_workers))


def _measure_all(
    models: Sequence[str],
    load: Callable[[str], Encoder],
    cfg: SourceConfig,
    out: Path,
    batching: tuple[int, int],
) -> Iterator[Result]:
    folders = find_datasets(Path(os.path.expanduser(cfg.source)))
    models = list(dict.fromkeys(models))
    for path in models[1:]:
        load(path)  # better told now than after hours with the first
    for path in models:
        model = load(path)
        fingerprint = model_fingerprint(model)
        folder = out / fingerprint[:16]
        folder.mkdir(parents=True, exist_ok=True)
        for name in folders:
            file = folder / f"{name.replace('/', '-')}.json"
            try:
                kind, source = open_dataset(name, folders[name], cfg)
                binding = {
                    "model_fingerprint": fingerprint,
                    "dataset_fingerprint": dataset_fingerprint(kind, source),
                }
                if kept := _kept(file, binding):
                    yield dataclasses.replace(kept, model=path)
                    continue
                scores = measure(model, kind, source, *batching)
            except (ValueError, OSError) as error:
                yield Result(path, name, error=str(error))
                continue
            n, skipped = int(scores.pop("n")), int(scores.pop("skipped"))
            result = Result(path, name, kind, scores, n, skipped)
            write_whole(file, json.dumps(dataclasses.asdict(result) | binding, indent=1) + "\n")
            yield result
        del model  # before the next one is read


def model_fingerprint(model: Encoder) -> str:
    """SHA-256 of all that decides about the embeddings."""
    parts = model.fingerprint, model.config.dtype, model.preprocess, model.tokenizer.fingerprint
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def dataset_fingerprint(kind: str, source: WebDatasetSource) -> str:
    """SHA-256 of names, templates, and of the number, labels, places and sizes of the samples."""
    digest = hashlib.sha256(repr((kind, source.fingerprint)).encode())
    digest.update(open_index(source.index_path).tobytes())
    return digest.hexdigest()


def _kept(file: Path, binding: dict[str, str]) -> Result | None:
    """The result in a file, None where it is absent, damaged or of something else."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        of = {key: saved.pop(key) for key in binding}
        result = Result(**saved)
        numbers = result.n, result.skipped, *result.metrics.values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return result if of == binding and all(isinstance(x, int | float) for x in numbers) else None
