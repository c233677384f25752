"""What a model takes, whatever runs it: images of any kind as pixels, a tokenizer that fits."""

from pathlib import Path

import numpy as np
from PIL import Image

from tclip.processing.bad_sample import BadSample
from tclip.processing.tokenizer import Tokenizer
from tclip.processing.transforms import PreprocessConfig, decode_image, preprocess

ImageInput = str | Path | bytes | Image.Image


def read_pixels(image: ImageInput, config: PreprocessConfig) -> np.ndarray:
    """Preprocessed pixels, float32 [S, S, 3], of a path, encoded bytes or a PIL image.

    Raises:
      ValueError: the image cannot be decoded.
      FileNotFoundError: the path does not exist.
    """
    name = "an image"
    if isinstance(image, str | Path):
        name, image = image, Path(image).read_bytes()
    try:
        return preprocess(decode_image(image), config)
    except BadSample as error:
        raise ValueError(f"{name}: {error}") from None


def check_inputs(
    config: PreprocessConfig,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    context_length: int,
    vocab_size: int,
    eot_token_id: int | None,
) -> None:
    """ValueError unless preprocessing and tokenizer make what a model of these sizes takes.

    Args:
      eot_token_id: None for a model that does not look for the end of a text.
    """
    if config.image_size != image_size:
        raise ValueError(
            f"preprocessing makes images of {config.image_size} pixels, the model "
            f"takes {image_size}"
        )
    if (
        tokenizer.context_length != context_length
        or tokenizer.vocab_size > vocab_size
        or eot_token_id not in (None, tokenizer.eot_token_id)
    ):
        raise ValueError(
            f"the tokenizer (context {tokenizer.context_length}, {tokenizer.vocab_size} "
            f"entries, end of text {tokenizer.eot_token_id}) is not that of the model (context "
            f"{context_length}, {vocab_size} entries, end of text {eot_token_id})"
        )
