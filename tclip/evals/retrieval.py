"""Image-to-text and text-to-image retrieval with several captions an image.

Captions that are equal as text are one entry of the gallery and one query: the text is right for
every image that carries it, and an image is found by any of its captions.
"""

import numpy as np

from tclip.data import Source
from tclip.evals.embed import ImageEmbeddings, check_finite
from tclip.evals.metrics import recall_at, retrieval_ranks
from tclip.inference import Model


def distinct_captions(
    source: Source, images: ImageEmbeddings
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """The distinct captions of the readable images, and which belong together.

    Returns:
      texts; for each image the positions of its texts; for each text the positions of its images.
      Positions of images count rows of `images.embeddings_NxD`.
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


def retrieval(model: Model, source: Source, images: ImageEmbeddings) -> dict[str, float]:
    """Recall at 1, 5 and 10, from image to text and from text to image.

    An image without captions is no query, and stays in the gallery.

    Args:
      model: float, fake-quantised or packed.
      source: has captions.
      images: `embed_images(model, source)`.

    Returns:
      i2t_r1 .. t2i_r10 (fractions; ties count as wrong) and n, the images with captions.

    Raises:
      ValueError: no image has a caption.
    """
    texts, texts_of_image, images_of_text = distinct_captions(source, images)
    if not texts:
        raise ValueError(f"{source.name}: no image has a caption")
    texts_TxD = model.encode_text(texts)
    check_finite("captions", texts_TxD)
    captioned = [row for row, of_image in enumerate(texts_of_image) if len(of_image)]
    queries_NxD = images.embeddings_NxD[captioned]
    i2t = retrieval_ranks(queries_NxD, texts_TxD, [texts_of_image[row] for row in captioned])
    t2i = retrieval_ranks(texts_TxD, images.embeddings_NxD, images_of_text)
    recalls = {
        f"{name}_r{k}": recall_at(ranks, k)
        for name, ranks in (("i2t", i2t), ("t2i", t2i))
        for k in (1, 5, 10)
    }
    return recalls | {"n": len(captioned)}
