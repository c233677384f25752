"""Zero-shot classification: the class whose captions are nearest to the image."""

from collections.abc import Sequence

import numpy as np

from tclip.data import Source
from tclip.evals.embed import ImageEmbeddings, check_finite
from tclip.evals.metrics import classification_metrics, label_ranks
from tclip.inference import Model


def class_embeddings(
    model: Model, classnames: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Unit embeddings of the classes, float32 [C, D].

    A class is the renormalised mean of the unit embeddings of its name in every template (the
    prompt ensemble of CLIP, arXiv 2103.00020, section 3.1.4).

    Raises:
      ValueError: no class, no template, a template without "{}", or embeddings that are not finite.
    """
    if not classnames or not templates:
        raise ValueError("zero-shot classification needs class names and templates")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the name of the class")
    prompts = [template.replace("{}", name) for name in classnames for template in templates]
    prompts_CxTxD = model.encode_text(prompts).reshape(len(classnames), len(templates), -1)
    check_finite("class names", prompts_CxTxD)
    mean_CxD = prompts_CxTxD.mean(axis=1)
    norm_Cx1 = np.linalg.norm(mean_CxD, axis=1, keepdims=True)
    return mean_CxD / np.where(norm_Cx1 == 0, 1, norm_Cx1)


def zeroshot_classification(
    model: Model, source: Source, images: ImageEmbeddings
) -> dict[str, float]:
    """Accuracy of `model` over the classes of `source`.

    Args:
      model: float, fake-quantised or packed.
      source: has class names, templates and labels.
      images: `embed_images(model, source)`.

    Returns:
      top1, top5, mean_per_class (fractions; ties count as wrong).

    Raises:
      ValueError: a label is not among the classes.
    """
    classes = len(source.classnames)
    outside = (images.labels_N < 0) | (images.labels_N >= classes)
    if outside.any():
        first = int(images.index_N[outside][0])
        raise ValueError(
            f"{source.name}: sample {first} has label {int(images.labels_N[outside][0])}, "
            f"expected 0 to {classes - 1}"
        )
    classes_CxD = class_embeddings(model, source.classnames, source.templates)
    ranks = [
        label_ranks(
            images.embeddings_NxD[i : i + 1024] @ classes_CxD.T, images.labels_N[i : i + 1024]
        )
        for i in range(0, len(images.labels_N), 1024)
    ]
    return classification_metrics(np.concatenate(ranks), images.labels_N)
