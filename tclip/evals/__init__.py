"""Evaluation of any model on any data source."""

from tclip.data import Source
from tclip.evals.classification import zeroshot_classification
from tclip.evals.embed import ImageEmbeddings, embed_images
from tclip.evals.retrieval import distinct_captions, retrieval
from tclip.prompts import Encoder, class_embeddings

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
    model: Encoder, source: Source, batch_size: int = 128, num_workers: int = 0
) -> dict[str, float]:
    """All that `source` allows: zero-shot if it has class names, retrieval if it has captions.

    Returns:
      zeroshot_top1, zeroshot_top5, zeroshot_mean_per_class, retrieval_i2t_r1 .. retrieval_t2i_r10
      (fractions), zeroshot_n and retrieval_n (images that took part), skipped (unusable samples).

    Raises:
      ValueError: no image can be read, the source has neither class names nor captions, or the
        model's embeddings are not finite.
    """
    images = embed_images(model, source, batch_size, num_workers)
    has_captions = any(source[int(index)].captions for index in images.index_N[:100])
    if not source.classnames and not has_captions:
        raise ValueError(f"{source.name}: neither class names nor captions to evaluate on")
    results: dict[str, float] = {}
    if source.classnames:
        scores = zeroshot_classification(model, source, images)
        results |= {f"zeroshot_{name}": value for name, value in scores.items()}
    if has_captions:
        scores = retrieval(model, source, images)
        results |= {f"retrieval_{name}": value for name, value in scores.items()}
    return results | {"skipped": images.skipped}
