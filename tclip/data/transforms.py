"""Encoded bytes to the float arrays that CLIP sees; hostile input ends in BadSample."""

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tclip.data.source import BadSample

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

    image_size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize: str = "shortest"
    train_scale: tuple[float, float] = (0.6, 1.0)
    train_ratio: tuple[float, float] = (3 / 4, 4 / 3)
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


def decode_image(data: bytes) -> Image.Image:
    """Decodes the first frame of an image file, upright by its EXIF orientation, to RGB.

    16-bit greyscale keeps its upper 8 bits; transparency is dropped, as CLIP's own preprocessing
    does.

    Raises:
      BadSample: undecodable, truncated, of another format than `FORMATS`, or over MAX_PIXELS.
    """
    with _decoding():
        return _upright_rgb(_open(data))


def preprocess(image: Image.Image, cfg: PreprocessConfig) -> np.ndarray:
    """Brings an image to a square as `cfg.resize` says and normalises; the evaluation transform.

    The pixels of Hugging Face's CLIPImageProcessor and SiglipImageProcessor, but only the crop is
    ever resized, so that an extreme aspect ratio costs nothing.

    Returns:
      float32 [image_size, image_size, 3].
    """
    if cfg.resize == "squash":
        return _normalize(_resize(image, (0, 0, *image.size), cfg), cfg)
    size = cfg.image_size
    short = min(image.size)
    resized = [int(size * side / short) for side in image.size]  # width, height
    corner = [(side - size) // 2 for side in resized]
    # Back to pixels of the original: each axis has its own exact ratio after the truncation.
    low = [c * side / new for c, side, new in zip(corner, image.size, resized, strict=True)]
    high = [
        min((c + size) * side / new, side)
        for c, side, new in zip(corner, image.size, resized, strict=True)
    ]
    return _normalize(_resize(image, (*low, *high), cfg), cfg)


def augment(
    data: bytes, views: Sequence[PreprocessConfig], rng: np.random.Generator
) -> list[np.ndarray]:
    """Random-resized crop (Szegedy et al., arXiv 1409.4842) and flip; the training transform.

    One crop and one flip are drawn, by the ranges of views[0], and every view shows them in its own
    size and normalisation; the draws do not depend on the other views. The crop has the
    distribution of torchvision's RandomResizedCrop: area uniform in train_scale, aspect ratio
    log-uniform in train_ratio, ten tries, then the largest central crop in range.

    Returns:
      float32 [image_size, image_size, 3] for each view.

    Raises:
      BadSample: as `decode_image`.
    """
    image = decode_image(data)
    box = _random_crop(image.size, views[0], rng)
    mirrored = views[0].flip and rng.random() < 0.5
    arrays = []
    for cfg in views:
        pixels = _resize(image, box, cfg)
        arrays.append(_normalize(pixels[:, ::-1] if mirrored else pixels, cfg))
    return arrays


def save_preprocess(cfg: PreprocessConfig, path: Path | str) -> None:
    """Writes preprocessor_config.json with the keys of Hugging Face's CLIPImageProcessor."""
    side = cfg.image_size
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": int(RESAMPLING[cfg.interpolation]),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.mean),
        "image_std": list(cfg.std),
    }
    Path(path).write_text(json.dumps(values, indent=2) + "\n")


def load_preprocess(path: Path | str) -> PreprocessConfig:
    """Reads preprocessor_config.json; what only training uses keeps its default.

    Raises:
      FileNotFoundError, ValueError: the file is absent, or describes another preprocessing.
    """
    try:
        values = json.loads(Path(path).read_text())
        crop, resample = values["crop_size"], values.get("resample", 3)
        names = {int(number): name for name, number in RESAMPLING.items()}
        return PreprocessConfig(
            image_size=int(crop["height"] if isinstance(crop, dict) else crop),
            mean=tuple(map(float, values["image_mean"])),
            std=tuple(map(float, values["image_std"])),
            interpolation=names[resample],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a CLIP preprocessor_config.json ({type(error).__name__}: {error})"
        ) from None


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
    file = io.BytesIO(data)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:  # its message names the buffer, which says nothing
        raise BadSample(f"not an image file of {', '.join(FORMATS)}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadSample(
            f"image of {width}x{height} pixels is over the limit of {MAX_PIXELS} pixels"
        )
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit greyscale
        grey = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns where it is asked for RGB at once
    return image if image.mode == "RGB" else image.convert("RGB")  # a copy costs


def _random_crop(size: tuple[int, int], cfg: PreprocessConfig, rng) -> tuple[int, int, int, int]:
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


def _resize(image: Image.Image, box, cfg: PreprocessConfig) -> np.ndarray:
    """Resizes what lies in `box` (left, top, right, bottom) to uint8 [S, S, 3]."""
    side = (cfg.image_size, cfg.image_size)
    return np.asarray(image.resize(side, RESAMPLING[cfg.interpolation], box=box))


def _normalize(pixels: np.ndarray, cfg: PreprocessConfig) -> np.ndarray:
    mean, std = np.asarray(cfg.mean, np.float32), np.asarray(cfg.std, np.float32)
    return (pixels.astype(np.float32) / 255 - mean) / std
