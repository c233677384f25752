"""Image-to-text and text-to-image retrieval with several captions an image."""

from collections.abc import Callable

import numpy as np

from tclip.data import Source
from tclip.evals.embed import ImageEmbeddings
from tclip.evals.metrics import Ties, recall_at, retrieval_ranks
from tclip.prompts import Encoder, embed_texts

# Texts; for each image the positions of its texts; for each text the positions of its images.
# Positions of images count rows of `images.embeddings_NxD`.
Captions = tuple[list[str], list[np.ndarray], list[np.ndarray]]


def distinct_captions(source: Source, images: ImageEmbeddings) -> Captions:
    """The distinct captions of the readable images, and which belong together.

    Captions that are equal as text are one entry of the gallery and one query: the text is right
    for every image that carries it, and an image is found by any of its captions.
    """
    position: dict[str, int] = {}
    texts_of_image, images_of_text = [], []
    for row, index in enumerate(images.index_N):
        captions = dict.fromkeys(source[int(index)].captions)
        for caption in captions:
            if position.setdefault(caption, len(position)) == len(images_of_text):
                images_of_text.append([])
            images_of_text[position[caption]].append(row)
        texts_of_image.append(np.array([position[caption] for caption in captions], np.int64))
    return list(position), texts_of_image, [np.array(rows) for rows in images_of_text]


def every_caption(source: Source, images: ImageEmbeddings) -> Captions:
    """All captions of the readable images, each right for its own image alone."""
    texts, texts_of_image, images_of_text = [], [], []
    for row, index in enumerate(images.index_N):
        captions = source[int(index)].captions
        texts_of_image.append(np.arange(len(texts), len(texts) + len(captions)))
        images_of_text += [np.array([row])] * len(captions)
        texts += captions
    return texts, texts_of_image, images_of_text


def retrieval(
    model: Encoder,
    source: Source,
    images: ImageEmbeddings,
    captions: Callable[[Source, ImageEmbeddings], Captions] = distinct_captions,
    ties: Ties = "against",
) -> dict[str, float]:
    """Recall at 1, 5 and 10, from image to text and from text to image.

    An image without captions is no query, and stays in the gallery.

    Args:
      model: float, fake-quantised or packed.
      source: has captions.
      images: `embed_images(model, source)`.
      captions: which texts there are.
      ties: see tclip/evals/metrics.py.

    Returns:
      i2t_r1 .. t2i_r10 (fractions) and n, the images with captions.

    Raises:
      ValueError: no image has a caption.
    """
    texts, texts_of_image, images_of_text = captions(source, images)
    if not texts:
        raise ValueError(f"{source.name}: no image has a caption")
    texts_TxD = embed_texts(model, "captions", texts)
    captioned = [row for row, of_image in enumerate(texts_of_image) if len(of_image)]
    queries_NxD = images.embeddings_NxD[captioned]
    of_queries = [texts_of_image[row] for row in captioned]
    i2t = retrieval_ranks(queries_NxD, texts_TxD, of_queries, ties=ties)
    t2i = retrieval_ranks(texts_TxD, images.embeddings_NxD, images_of_text, ties=ties)
    recalls = {
        f"{name}_r{k}": recall_at(ranks, k)
        for name, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in (1, 5, 10)
    }
    return recalls | {"n": len(captioned)}
