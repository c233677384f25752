"""Encoded bytes to the float arrays that CLIP sees; hostile input ends in BadSample."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tclip.config import COUNT, POSITIVE, Range
from tclip.processing.bad_sample import BadSample
from tclip.processing.metadata import TURNS, orientation, without_metadata

# Checked against the header, before any pixel is decoded (256 MiB of RGBX in memory).
MAX_PIXELS = 2**26
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """Image preprocessing; mean and std are CLIP's, of channels in [0, 1].

    Attributes:
      image_size: side of the square output, pixels.
      interpolation: "bicubic" or "bilinear", both with Pillow's antialiasing.
      resize: how evaluation comes to a square: "shortest" resizes the shorter side and crops the
        centre (CLIP), "squash" resizes both sides (SigLIP).
      train_scale: range of the cropped fraction of the area in training.
      train_ratio: range of the crop's aspect ratio, drawn log-uniformly.
      flip: mirror half of the training images; wrong where captions say left or right.
    """

    image_size: Annotated[int, COUNT] = 224
    mean: Annotated[tuple[float, float, float], Range()] = (0.48145466, 0.4578275, 0.40821073)
    std: Annotated[tuple[float, float, float], POSITIVE] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize: str = "shortest"
    train_scale: Annotated[tuple[float, float], Range(0, 1, open_low=True)] = (0.6, 1.0)
    train_ratio: Annotated[tuple[float, float], POSITIVE] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.interpolation not in RESAMPLING:
            known = ", ".join(RESAMPLING)
            raise ValueError(f"unknown interpolation {self.interpolation!r}; known: {known}")
        if self.resize not in ("shortest", "squash"):
            raise ValueError(f"unknown resize {self.resize!r}; known: shortest, squash")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if not 0 < self.train_scale[0] <= self.train_scale[1] <= 1:
            raise ValueError(f"train_scale must be a range within (0, 1], got {self.train_scale}")
        if not 0 < self.train_ratio[0] <= self.train_ratio[1]:
            raise ValueError(f"train_ratio must be a positive range, got {self.train_ratio}")


def decode_image(image: bytes | Image.Image) -> Image.Image:
    """Decodes the first frame of an image, upright by its EXIF orientation, to RGB.

    Transparent pixels are laid over white, as Hugging Face does (open_clip drops the transparency).
    Other than Hugging Face, EXIF orientation is undone, and 16-bit greyscale keeps its upper 8 bits
    (Pillow's conversion would turn nearly all of it white).

    Args:
      image: an image file, or an image that Pillow has opened or made, which is not changed.

    Raises:
      BadSample: undecodable, truncated, of another format than `FORMATS`, over MAX_PIXELS, or of
        float pixels, whose range is not known.
    """
    with _decoding():
        return _upright_rgb(_open(image) if isinstance(image, bytes) else _checked(image))


def preprocess(image: Image.Image, cfg: PreprocessConfig) -> np.ndarray:
    """Brings an image to a square as `cfg.resize` says and normalises; the evaluation transform.

    The pixels of Hugging Face's CLIPImageProcessor and SiglipImageProcessor. The whole image is
    resized before it is cropped: Pillow rounds between its two passes and, given only the crop, may
    take them in the other order, which differs by many grey levels.

    Returns:
      float32 [image_size, image_size, 3].

    Raises:
      BadSample: so long and narrow an image that it would have over MAX_PIXELS when resized.
    """
    size, resample = cfg.image_size, RESAMPLING[cfg.interpolation]
    if cfg.resize == "squash":
        return _normalize(image.resize((size, size), resample), cfg)
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    if width * height > MAX_PIXELS:
        raise BadSample(
            f"image of {image.width}x{image.height} pixels is over the limit of {MAX_PIXELS} "
            f"pixels when resized to {width}x{height}"
        )
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), resample)
    return _normalize(resized.crop((left, top, left + size, top + size)), cfg)


def augment(
    data: bytes, views: Sequence[PreprocessConfig], rng: np.random.Generator
) -> list[np.ndarray]:
    """Random-resized crop (Szegedy et al., arXiv 1409.4842) and flip; the training transform.

    One crop and one flip are drawn, by the ranges of views[0], and every view shows them in its own
    size and normalisation: neither the draws nor the pixels of a view depend on the other views.
    The crop has the distribution of torchvision's RandomResizedCrop: area uniform in train_scale,
    aspect ratio log-uniform in train_ratio, ten tries, then the largest central crop in range.

    A JPEG whose crop is at least s = 2, 4 or 8 times a view's size is decoded for it at 1/s of its
    size, which libjpeg does within the cosine transform. That is much faster than resizing all
    pixels and differs from it, on photographs, by less than a grey level on average.

    Returns:
      float32 [image_size, image_size, 3] for each view.

    Raises:
      BadSample: as `decode_image`.
    """
    with _decoding():
        opened = _open(data)
        turn = orientation(opened)
    width, height = opened.size
    size = (height, width) if turn in (5, 6, 7, 8) else (width, height)
    # Of a turned image the last, partial pixels of a smaller decoding would come first.
    reducible = opened.format in ("JPEG", "MPO") and turn == 1
    box = random_crop(size, views[0], rng)
    mirrored = views[0].flip and rng.random() < 0.5
    decoded, arrays = {}, []
    for cfg in views:
        scale = _reduction(box, cfg.image_size) if reducible else 1
        if scale not in decoded:
            with _decoding():
                image = _open(data) if decoded else opened
                image.draft(None, (image.width // scale, image.height // scale))
                decoded[scale] = _upright_rgb(image)
        side = (cfg.image_size, cfg.image_size)
        edges = [edge / scale for edge in box]
        view = decoded[scale].resize(side, RESAMPLING[cfg.interpolation], box=edges)
        arrays.append(_normalize(ImageOps.mirror(view) if mirrored else view, cfg))
    return arrays


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turns into BadSample whatever a decoder raises on hostile input."""
    try:
        yield
    except BadSample:
        raise
    except Exception as error:  # OSError, ValueError, SyntaxError, struct.error...
        raise BadSample(f"undecodable image ({type(error).__name__}: {error})") from None


def _open(data: bytes) -> Image.Image:
    """Reads the header of an image file and checks the size it states."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # of many kinds; damaged metadata are among the reasons
        try:
            image = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
        except UnidentifiedImageError:  # its message names the buffer, which says nothing
            raise BadSample(f"not an image file of {', '.join(FORMATS)}") from None
    return _checked(image)


def _checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadSample(
            f"image of {width}x{height} pixels is over the limit of {MAX_PIXELS} pixels"
        )
    if not width * height:
        raise BadSample(f"image of {width}x{height} pixels")
    return image


def _reduction(box: Sequence[int], side: int) -> int:
    """By how much an image may be decoded smaller so that `box` still covers side x side pixels."""
    cover = min(box[2] - box[0], box[3] - box[1]) // side
    return next((scale for scale in (8, 4, 2) if scale <= cover), 1)


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadSample("an image of float pixels (mode F): convert it to 8 bits")
    turn = orientation(image)
    image.load()
    if image.mode.startswith("I"):  # 16-bit greyscale
        grey = np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image if image.mode == "RGB" else image.convert("RGB")  # a copy costs
    return image if turn == 1 else image.transpose(TURNS[turn])


def random_crop(
    size: tuple[int, int], cfg: PreprocessConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws left, top, right, bottom within a (width, height) image, as torchvision does."""
    width, height = size
    low, high = cfg.train_ratio
    for _ in range(10):
        area = width * height * rng.uniform(*cfg.train_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, low), high)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _normalize(image: Image.Image, cfg: PreprocessConfig) -> np.ndarray:
    """Returns (pixels / 255 - mean) / std; along whole rows and in place, which is much faster."""
    rows = np.array(image, np.float32).reshape(image.height, -1)
    rows *= np.tile(1 / (255 * np.asarray(cfg.std)), image.width).astype(np.float32)
    rows -= np.tile(np.divide(cfg.mean, cfg.std), image.width).astype(np.float32)
    return rows.reshape(image.height, image.width, 3)
