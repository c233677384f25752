"""Embedding the images of a data source, once for all evaluations."""

from dataclasses import dataclass

import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from tclip.data import Source, eval_batches
from tclip.prompts import Encoder, check_finite


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
    model: Encoder, source: Source, batch_size: int = 128, num_workers: int = 0
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
