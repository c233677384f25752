"""What the report's pictures show, taken from runs, weights and data."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tclip.data import Source
from tclip.evals import distinct_captions, embed_images
from tclip.inference import Model
from tclip.models import leaves_by_path
from tclip.processing import decode_image
from tclip.quant import ESTIMATORS, TernaryPolicy, ternary_paths
from tclip.quant.groups import expand
from tclip.report.results import Data

CAPTIONS, IMAGES_A_CAPTION, EXAMPLES = 5, 8, 4


def curve(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric in the rows of metrics.jsonl."""
    points = [(int(row["step"]), row[metric]) for row in rows if metric in row]
    return [step for step, _ in points], [value for _, value in points]


def middle_layer(
    params: Mapping[str, Any], quant: Mapping[str, Any], policy: TernaryPolicy
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """A ternary kernel amid the model: its path, weights, scales and thresholds, [K, N] each."""
    paths = ternary_paths(params, policy)
    feed_forward = [path for path in paths if re.search(r"vision/.*mlp/fc1/", path)]
    path = (feed_forward or paths)[len(feed_forward or paths) // 2]
    weights = leaves_by_path(params)[path]
    scale, threshold = ESTIMATORS[policy.estimator](weights, policy.group)
    learned = quant.get(path, {})
    scale = np.exp(learned["log_scale"]) if "log_scale" in learned else scale
    threshold = np.exp(learned["log_threshold"]) if "log_threshold" in learned else threshold
    arrays = weights, *(expand(values, weights.shape) for values in (scale, threshold))
    # Layers under scan share a leaf; the middle one is shown.
    weights_KxN, scale_KxN, threshold_KxN = (
        np.asarray(x)[x.shape[0] // 2] if x.ndim == 3 else np.asarray(x) for x in arrays
    )
    return path, weights_KxN, scale_KxN, threshold_KxN


def retrieved(model: Model, data: Data) -> list[tuple[str, list[tuple[Image.Image, bool]]]]:
    """The best images for a few captions, short ones and long ones, with whether they are right."""
    images = embed_images(model, data.source, data.batch_size, data.num_workers)
    texts, _, images_of_text = distinct_captions(data.source, images)
    # The first caption of an image is the plainest one.
    first = {captions[0] for i in images.index_N if (captions := data.source[int(i)].captions)}
    plain = sorted(
        (n for n, text in enumerate(texts) if text in first), key=lambda n: len(texts[n])
    )
    if not plain:
        return []
    chosen = [plain[(2 * i + 1) * len(plain) // (2 * CAPTIONS)] for i in range(CAPTIONS)]
    rows = []
    for number in dict.fromkeys(chosen):
        scores_N = images.embeddings_NxD @ model.encode_text([texts[number]])[0]
        best = np.argsort(-scores_N, kind="stable")[:IMAGES_A_CAPTION]
        shown = [
            (_image(data.source, int(images.index_N[row])), row in images_of_text[number])
            for row in best
        ]
        rows.append((texts[number], shown))
    return rows


def write_examples(folder: Path, source: Source) -> None:
    """Writes one image each of a few classes, named after it, and their names as labels.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(source.classnames)
    wanted = {(2 * i + 1) * count // (2 * EXAMPLES) for i in range(EXAMPLES)}
    names = []
    for index in range(len(source)):
        label = source[index].label
        if label in wanted:
            wanted.remove(label)
            names.append(source.classnames[label])
            _image(source, index).save(folder / (re.sub(r"\W+", "_", names[-1]) + ".png"))
        if not wanted:
            break
    (folder / "labels.txt").write_text(",".join(names) + "\n")


def _image(source: Source, index: int) -> Image.Image:
    return decode_image(source[index].image)
