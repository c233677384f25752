"""Zero-shot classification: the class whose captions are nearest to the image."""

import numpy as np

from tclip.data import Source
from tclip.evals.embed import ImageEmbeddings
from tclip.evals.metrics import Ties, classification_metrics, label_ranks
from tclip.prompts import Encoder, class_embeddings

CHUNK = 1024


def zeroshot_classification(
    model: Encoder, source: Source, images: ImageEmbeddings, ties: Ties = "against"
) -> dict[str, float]:
    """Accuracy over the classes of `source`; images without a label (-1) take no part.

    Args:
      model: float, fake-quantised or packed.
      source: has class names, templates and labels.
      images: `embed_images(model, source)`.
      ties: see tclip/evals/metrics.py.

    Returns:
      top1, top5, mean_per_class (fractions) and n, the images that took part.

    Raises:
      ValueError: a label is beyond the classes, or no image has one.
    """
    classes = len(source.classnames)
    if images.labels_N.max() >= classes:
        worst = int(images.labels_N.argmax())
        raise ValueError(
            f"{source.name}: sample {int(images.index_N[worst])} has label "
            f"{int(images.labels_N[worst])}, but there are {classes} classes"
        )
    labelled = images.labels_N >= 0
    if not labelled.any():
        raise ValueError(f"{source.name}: no image has a label")
    embeddings_NxD, labels_N = images.embeddings_NxD[labelled], images.labels_N[labelled]
    classes_CxD = class_embeddings(model, source.classnames, source.templates)
    ranks = [
        label_ranks(embeddings_NxD[i : i + CHUNK] @ classes_CxD.T, labels_N[i : i + CHUNK], ties)
        for i in range(0, len(labels_N), CHUNK)
    ]
    return classification_metrics(np.concatenate(ranks), labels_N) | {"n": len(labels_N)}
