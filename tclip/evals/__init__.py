"""Evaluation of any model on any data source."""

from tclip.data import Source
from tclip.evals.classification import class_embeddings, zeroshot_classification
from tclip.evals.embed import ImageEmbeddings, embed_images
from tclip.evals.retrieval import distinct_captions, retrieval
from tclip.inference import Model

__all__ = [
    "ImageEmbeddings",
    "class_embeddings",
    "distinct_captions",
    "embed_images",
    "evaluate",
    "retrieval",
    "zeroshot_classification",
]


def evaluate(
    model: Model,
    labelled: Source | None,
    captioned: Source | None,
    batch_size: int = 128,
    num_workers: int = 0,
) -> dict[str, float]:
    """Zero-shot classification on `labelled`, retrieval on `captioned`; None leaves one out.

    When both are the same object its images are read and embedded once.

    Returns:
      zeroshot_top1, zeroshot_top5, zeroshot_mean_per_class and retrieval_i2t_r1 .. retrieval_t2i_r10
      (fractions), zeroshot_n and retrieval_n (images that took part), skipped (unreadable images).

    Raises:
      ValueError: no image of a source can be read or has a label or a caption, or the model's
        embeddings are not finite.
    """
    results: dict[str, float] = {"skipped": 0}
    images = None
    for name, source, task in (
        ("zeroshot", labelled, zeroshot_classification),
        ("retrieval", captioned, retrieval),
    ):
        if source is None:
            continue
        if images is None or captioned is not labelled:
            images = embed_images(model, source, batch_size, num_workers)
            results["skipped"] += images.skipped
        scores = task(model, source, images)
        results |= {f"{name}_{key}": value for key, value in scores.items()}
    return results
