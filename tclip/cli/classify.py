"""Says which of some labels fits an image best.

tclip classify IMAGE...                                     # the demo model and its ten labels
tclip classify --model=DIR IMAGE... --labels="a cat,a dog" [--template="a photo of {}"]

DIR is whatever tclip.load takes: a packed folder, a training workdir, a CLIP folder of Hugging Face
or open_clip, or the id of one on the hub.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

import tclip
from tclip import demo
from tclip.prompts import Encoder, class_embeddings
from tclip.tables import markdown_table, percent

_MODEL = flags.DEFINE_string("model", None, "What tclip.load takes; the demo model by default.")
_LABELS = flags.DEFINE_list(
    "labels", None, "Labels separated by commas; by default those of the demo model."
)
_TEMPLATE = flags.DEFINE_multi_string("template", None, 'Prompt with "{}" for the label.')
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")


def main(argv: Sequence[str]) -> int:
    images = argv[1:]
    if not images:
        raise ValueError("give at least one image, as in: tclip classify photo.jpg")
    if _MODEL.value is not None and _LABELS.value is None:
        raise ValueError('--model needs --labels, as in: --labels="a cat,a dog"')
    labels = [label.strip() for label in _LABELS.value or demo.LABELS if label.strip()]
    if not labels:
        raise ValueError("--labels is empty")
    templates = _TEMPLATE.value or [demo.TEMPLATE if _LABELS.value is None else "{}"]
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--template {template!r} has no {{}} for the label")
    if _MODEL.value is None:
        print(f"classify: using the demo model, {demo.MODEL}", file=sys.stderr)
    model = tclip.load(_MODEL.value or demo.MODEL)
    answers, failed = [], False
    for image, ranked in classify(model, images, labels, templates):
        if isinstance(ranked, Exception):
            print(f"classify: error: {ranked}", file=sys.stderr)
            failed = True
        else:
            answers.append({"image": image, "labels": ranked})
    if _JSON.value:
        print(json.dumps(answers, indent=1))
    else:
        for answer in answers:
            print(table(answer["image"], answer["labels"]) + "\n")
    return int(failed)


def classify(
    model: Encoder, images: Sequence[str], labels: Sequence[str], templates: Sequence[str]
) -> list[tuple[str, list[dict] | Exception]]:
    """Ranks the labels for each image, best first; an image that cannot be read has an error."""
    labels_CxD = class_embeddings(model, labels, templates)
    answers = []
    for image in images:
        try:
            (embedding_D,) = model.encode_image([Path(image)])
        except (ValueError, OSError) as error:
            answers.append((image, error))
            continue
        probabilities_C = _softmax(model.logit_scale * labels_CxD @ embedding_D)
        best_first = np.argsort(-probabilities_C, kind="stable")
        ranked = [
            {"label": labels[i], "probability": float(probabilities_C[i])} for i in best_first
        ]
        answers.append((image, ranked))
    return answers


def table(image: str, ranked: Sequence[dict]) -> str:
    """The labels of an image and their probabilities."""
    rows = [(line["label"], percent(line["probability"])) for line in ranked]
    return markdown_table((image, "probability"), rows)


def _softmax(logits_C: np.ndarray) -> np.ndarray:
    odds_C = np.exp(logits_C - logits_C.max())
    return odds_C / odds_C.sum()
