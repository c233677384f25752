"""The numbers of the report: teacher, post-training ternarisation and student."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tclip import loading
from tclip.data import Source, open_source
from tclip.evals import embed_images, evaluate, zeroshot_classification
from tclip.export import export_packed
from tclip.inference import Model
from tclip.model_kind import model_kind
from tclip.packed import folder_bytes, size_summary
from tclip.quant import ESTIMATORS, TernaryPolicy
from tclip.run.experiment import EvalConfig

SHARED = ("zeroshot_top1", "retrieval_i2t_r1", "retrieval_t2i_r1", "size_bytes")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is evaluated on, and how; `unseen` has the pairs that training never showed, or None."""

    source: Source
    unseen: Source | None
    batch_size: int
    num_workers: int

    def evaluate(self, model: Model) -> dict[str, float]:
        """`evals.evaluate` on the source, and zeroshot_top1_unseen."""
        results = evaluate(model, self.source, self.batch_size, self.num_workers)
        if self.unseen is not None:
            images = embed_images(model, self.unseen, self.batch_size, self.num_workers)
            scores = zeroshot_classification(model, self.unseen, images)
            results["zeroshot_top1_unseen"] = scores["top1"]
        return results


def open_data(settings: EvalConfig, split: str) -> Data:
    """Opens `split` of what a run is evaluated on; of `shapes` its unseen pairs as well.

    Raises:
      ValueError: the run has no evaluation data, or that has no classes.
    """
    config = dataclasses.replace(settings.data, split=split)
    if not config.source:
        raise ValueError("the student was trained without eval.data, there is nothing to report on")
    source = open_source(config)
    if not source.classnames:
        raise ValueError(f"{config.source} has no class names; the report is about zero-shot")
    unseen = None
    if config.source.partition(":")[0] == "shapes":
        unseen = open_source(dataclasses.replace(config, split="test_unseen"))
    return Data(source, unseen, settings.batch_size, settings.num_workers)


def collect(
    teacher: Path, policy: TernaryPolicy, packed: Path, data: Data
) -> dict[str, dict[str, Any]]:
    """Evaluates the three models.

    Args:
      teacher: workdir of the float teacher.
      policy: of the student; the teacher is made ternary by the same without training.
      packed: folder of the packed student.
      data: what to evaluate on.

    Returns:
      "teacher", "post_training" and "student", each with the metrics of `Data.evaluate` and
      size_bytes; the student with `size_summary`; post_training with the estimator that did best
      and zeroshot_top1_by_estimator.
    """
    if model_kind(packed) != "packed":
        raise ValueError(f"{packed} is no packed model; make it with launch.export")
    float_model, packed_model = loading.load(teacher), loading.load(packed)
    sizes = size_summary(packed_model.params, folder_bytes(packed))
    results = {
        "teacher": data.evaluate(float_model) | {"size_bytes": _float32_bytes(float_model)},
        "post_training": _post_training(teacher, policy, data),
        "student": data.evaluate(packed_model) | sizes,
    }
    return {name: _with_shared_keys(values) for name, values in results.items()}


def _post_training(teacher: Path, policy: TernaryPolicy, data: Data) -> dict[str, Any]:
    candidates = {}
    for estimator in ESTIMATORS:
        chosen = dataclasses.replace(
            policy, estimator=estimator, learn_scale=False, learn_threshold=False
        )
        with tempfile.TemporaryDirectory() as folder:
            sizes = export_packed(teacher, Path(folder) / "packed", policy=chosen)
            model = loading.load(Path(folder) / "packed")
        candidates[estimator] = data.evaluate(model) | {"size_bytes": sizes["size_bytes"]}
    top1 = {name: values["zeroshot_top1"] for name, values in candidates.items()}
    best = max(top1, key=top1.__getitem__)
    return candidates[best] | {"estimator": best, "zeroshot_top1_by_estimator": top1}


def _float32_bytes(model: Model) -> int:
    return 4 * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.params))


def _with_shared_keys(values: dict[str, Any]) -> dict[str, Any]:
    # Retrieval may have had no data; the key says so rather than being absent.
    return {name: values.get(name) for name in SHARED} | values
