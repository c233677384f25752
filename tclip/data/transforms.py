"""Encoded bytes to the float arrays that CLIP sees; hostile input ends in BadSample."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
      train_scale: range of the cropped fraction of the area in training.
      train_ratio: range of the crop's aspect ratio, drawn log-uniformly.
      flip: mirror half of the training images; wrong where captions say left or right.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    train_scale: tuple[float, float] = (0.6, 1.0)
    train_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.interpolation not in RESAMPLING:
            known = ", ".join(RESAMPLING)
            raise ValueError(f"unknown interpolation {self.interpolation!r}; known: {known}")
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
    file = io.BytesIO(data)
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return _to_rgb(ImageOps.exif_transpose(image))
    # Decoders raise nearly anything on hostile input: OSError, ValueError, SyntaxError...
    except Exception as error:
        reason = str(error).replace(f" {file!r}", "")  # Pillow names the buffer, which says nothing
        raise BadSample(f"undecodable image ({type(error).__name__}: {reason})") from None
    raise BadSample(f"image of {width}x{height} pixels is over the limit of {MAX_PIXELS} pixels")


def preprocess(image: Image.Image, cfg: PreprocessConfig) -> np.ndarray:
    """Resizes the shorter side, crops the centre and normalises; the evaluation transform.

    The same pixels as torchvision's Resize and CenterCrop on a PIL image, but only the crop is ever
    resized, so that an extreme aspect ratio costs nothing.

    Returns:
      float32 [image_size, image_size, 3].
    """
    size = cfg.image_size
    short = min(image.size)
    resized = [int(size * side / short) for side in image.size]  # width, height
    corner = [round((side - size) / 2) for side in resized]
    # Back to pixels of the original: each axis has its own exact ratio after the truncation.
    low = [c * side / new for c, side, new in zip(corner, image.size, resized, strict=True)]
    high = [
        min((c + size) * side / new, side)
        for c, side, new in zip(corner, image.size, resized, strict=True)
    ]
    return _resize_and_normalize(image, (*low, *high), cfg)


def augment(image: Image.Image, cfg: PreprocessConfig, rng: np.random.Generator) -> np.ndarray:
    """Random-resized crop (Szegedy et al., arXiv 1409.4842) and flip; the training transform.

    The crop has the distribution of torchvision's RandomResizedCrop: area uniform in train_scale,
    aspect ratio log-uniform in train_ratio, ten tries, then the largest central crop in range.

    Returns:
      float32 [image_size, image_size, 3].
    """
    array = _resize_and_normalize(image, _random_crop(image.size, cfg, rng), cfg)
    if cfg.flip and rng.random() < 0.5:
        array = np.ascontiguousarray(array[:, ::-1])
    return array


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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale
        grey = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns where it is asked for RGB at once
    return image.convert("RGB")


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


def _resize_and_normalize(image: Image.Image, box, cfg: PreprocessConfig) -> np.ndarray:
    side = (cfg.image_size, cfg.image_size)
    pixels = np.asarray(image.resize(side, RESAMPLING[cfg.interpolation], box=box), np.float32)
    mean, std = np.asarray(cfg.mean, np.float32), np.asarray(cfg.std, np.float32)
    return (pixels / 255 - mean) / std
