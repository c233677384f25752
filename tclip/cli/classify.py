"""Which of these labels fits the image best?

python -m launch.classify --model=DIR IMAGE... --labels="a cat,a dog" [--template="a photo of {}"]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

import tclip
from tclip.evals import class_embeddings
from tclip.tables import markdown_table, percent

_MODEL = flags.DEFINE_string("model", None, "Packed folder or training workdir.", required=True)
_LABELS = flags.DEFINE_list("labels", None, "Labels separated by commas.", required=True)
_TEMPLATE = flags.DEFINE_multi_string("template", ["{}"], 'Prompt with "{}" for the label.')
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")


def main(argv: Sequence[str]) -> int:
    images = argv[1:]
    labels = [label.strip() for label in _LABELS.value if label.strip()]
    if not images or not labels:
        raise ValueError("give at least one image and one label")
    for template in _TEMPLATE.value:
        if "{}" not in template:
            raise ValueError(f"--template {template!r} has no {{}} for the label")
    model = tclip.load(_MODEL.value)
    labels_CxD = class_embeddings(model, labels, _TEMPLATE.value)
    answers, failed = [], False
    for image in images:
        try:
            (embedding_D,) = model.encode_image([Path(image)])
        except (ValueError, OSError) as error:
            print(f"classify: error: {error}", file=sys.stderr)
            failed = True
            continue
        probabilities_C = _softmax(model.logit_scale * labels_CxD @ embedding_D)
        best_first = np.argsort(-probabilities_C, kind="stable")
        ranked = [
            {"label": labels[i], "probability": float(probabilities_C[i])} for i in best_first
        ]
        answers.append({"image": image, "labels": ranked})
    if _JSON.value:
        print(json.dumps(answers, indent=1))
    else:
        for answer in answers:
            rows = [(line["label"], percent(line["probability"])) for line in answer["labels"]]
            print(markdown_table((answer["image"], "probability"), rows) + "\n")
    return int(failed)


def _softmax(logits_C: np.ndarray) -> np.ndarray:
    odds_C = np.exp(logits_C - logits_C.max())
    return odds_C / odds_C.sum()
