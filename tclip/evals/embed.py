"""Embedding the images of a data source, once for all evaluations, and texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from tclip.data import Source, eval_batches
from tclip.inference import Model

# Texts between two steps of the progress bar; what is encoded at a time is up to the model.
TEXTS = 1024


@dataclass(frozen=True)
class ImageEmbeddings:
    """Unit embeddings of the images of a source that could be read.

    Attributes:
      embeddings_NxD: float32.
      labels_N: int32 class, -1 where the source has none.
      index_N: int32 position in the source.
      skipped: how many samples of the source could not be used.
    """

    embeddings_NxD: np.ndarray
    labels_N: np.ndarray
    index_N: np.ndarray
    skipped: int


def embed_images(
    model: Model, source: Source, batch_size: int = 128, num_workers: int = 0
) -> ImageEmbeddings:
    """Embeds every readable image of `source`.

    Each process reads its part of the images, and all return the same.

    Raises:
      ValueError: no image can be read, or the model's embeddings are not finite.
    """
    size = model.batch_size(batch_size)
    batches = eval_batches(source, model.preprocess, size, num_workers, model.local_rows(size))
    embeddings, rows = [], -(-len(source) // size) * size
    labels_N, valid_N = np.full(rows, -1, np.int32), np.zeros(rows, np.bool_)
    with tqdm(total=len(source), desc=f"images of {source.name}", disable=None) as bar:
        for batch in batches:
            embeddings.append(model.encode_image_rows(batch["images"], size))
            labels_N[batch["index"]], valid_N[batch["index"]] = batch["labels"], batch["valid"]
            bar.update(min(size, len(source) - bar.n))
    # Whoever has not read a row says -1 and False.
    gathered = multihost_utils.process_allgather((labels_N, valid_N))
    labels_N, valid_N = (x.max(axis=0) for x in gathered)
    (index_N,) = np.nonzero(valid_N)
    if not len(index_N):
        raise ValueError(f"{source.name}: none of its {len(source)} images can be read")
    embeddings_NxD = np.concatenate(embeddings)[index_N]
    check_finite("images", embeddings_NxD)
    skipped = source.left_out + len(source) - len(index_N)
    return ImageEmbeddings(embeddings_NxD, labels_N[index_N], index_N.astype(np.int32), skipped)


def embed_texts(model: Model, what: str, texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings of the texts, float32 [T, D]; `what` names them in messages.

    Raises:
      ValueError: the model's embeddings are not finite.
    """
    parts = []
    with tqdm(total=len(texts), desc=what, disable=None) as bar:
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            parts.append(model.encode_text(part))
            bar.update(len(part))
    embeddings_TxD = np.concatenate(parts)
    check_finite(what, embeddings_TxD)
    return embeddings_TxD


def check_finite(what: str, embeddings_NxD: np.ndarray) -> None:
    """Raises ValueError where a comparison of scores would be meaningless."""
    if not np.isfinite(embeddings_NxD).all():
        raise ValueError(f"the model's embeddings of {what} hold NaN or infinity")
