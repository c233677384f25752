"""Which kind of model a path is, by the files in it; reads at most one JSON file."""

import os
from pathlib import Path
from typing import Literal

from tclip.files import read_json_object

Kind = Literal["packed", "workdir", "huggingface", "open_clip"]

# The model_type in the config.json of a packed folder.
PACKED = "tclip"
CONFIG = "config.json"
HUGGINGFACE_WEIGHTS = "model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def model_kind(path: str | os.PathLike[str]) -> Kind | None:
    """Returns the kind of the folder `path`; None where there is none of these.

    "packed" is what `tclip.packed` writes, "workdir" a training run. A folder with the files of
    both Hugging Face and open_clip counts as the former if it has its weights. A path that is no
    folder may still be the id of a model on the Hugging Face hub, see `tclip.interop.resolve`.
    """
    folder = Path(os.path.expanduser(path))
    has_config = (folder / CONFIG).is_file()
    if has_config:
        try:
            description = read_json_object(folder / CONFIG)
        except (OSError, ValueError):
            description = {}
        if description.get("model_type") == PACKED:
            return "packed"
        if "train_data" in description:
            return "workdir"
    names = HUGGINGFACE_WEIGHTS, f"{HUGGINGFACE_WEIGHTS}.index.json"
    has_weights = any((folder / name).is_file() for name in names)
    if (folder / OPEN_CLIP_CONFIG).is_file() and not (has_weights and has_config):
        return "open_clip"
    return "huggingface" if has_config else None
