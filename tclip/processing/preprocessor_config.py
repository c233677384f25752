"""preprocessor_config.json, in which Hugging Face models say how images are preprocessed."""

import json
import math
import re
from pathlib import Path
from typing import Any

from tclip.files import read_json_object
from tclip.processing.transforms import RESAMPLING, PreprocessConfig


def save_preprocess(cfg: PreprocessConfig, path: Path | str) -> None:
    """Writes preprocessor_config.json with the keys of Hugging Face's image processors."""
    side = cfg.image_size
    if cfg.resize == "squash":
        values = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side},
        }
    else:
        values = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
        }
    values |= {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": int(RESAMPLING[cfg.interpolation]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.mean),
        "image_std": list(cfg.std),
    }
    Path(path).write_text(json.dumps(values, indent=2) + "\n")


def load_preprocess(path: Path | str) -> PreprocessConfig:
    """Reads preprocessor_config.json or processor_config.json; what only training uses is default.

    Raises:
      FileNotFoundError: the file is absent.
      ValueError: it is damaged, or describes a preprocessing that PreprocessConfig cannot.
    """
    try:
        values = read_json_object(Path(path))
        # Within processor_config.json, which transformers 5 writes instead, it is a part.
        values = values.get("image_processor", values)
        resize, side = _resize_and_side(values)
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not values.get(step, True):
                raise ValueError(f"{step} is off")
        factor = values.get("rescale_factor", 1 / 255)
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(f"rescale_factor is {factor}, not 1/255")
        names = {int(number): name for name, number in RESAMPLING.items()}
        resample = values.get("resample", 3)
        if resample not in names:
            raise ValueError(f"resample {resample} is none of {names}")
        return PreprocessConfig(
            image_size=side,
            mean=_channels(values["image_mean"]),
            std=_channels(values["image_std"]),
            interpolation=names[resample],
            resize=resize,
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe a preprocessing of CLIP or SigLIP ({error})"
        ) from None


def _resize_and_side(values: dict[str, Any]) -> tuple[str, int]:
    """`resize` and `image_size` of PreprocessConfig from the keys of an image processor."""
    # Older files name it feature_extractor_type, the oldest give sizes as plain numbers.
    kind = values.get("image_processor_type", values.get("feature_extractor_type", "CLIP"))
    if re.fullmatch("Siglip2(ImageProcessor)?(Fast|Pil)?", kind):
        # Images of any shape in at most so many patches: here the square of as many.
        side = math.isqrt(values.get("max_num_patches", 256)) * values.get("patch_size", 16)
        return "squash", side
    if not re.fullmatch("(CLIP|Siglip)(ImageProcessor|FeatureExtractor)?(Fast|Pil)?", kind):
        raise ValueError(f"it is a {kind}")
    size, crop = values["size"], None
    if values.get("do_center_crop", kind.startswith("CLIP")):
        crop = values["crop_size"]
        crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
    if isinstance(size, dict) and "height" in size:
        resize, sides = "squash", (size["height"], size["width"])
    else:
        resize, side = "shortest", size["shortest_edge"] if isinstance(size, dict) else size
        sides = (side, side)
    if sides[0] != sides[1] or crop not in (sides, None) or (resize, crop) == ("shortest", None):
        raise ValueError(f"size {size} with crop {crop} does not resize to a square and keep it")
    return resize, int(sides[0])


def _channels(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
