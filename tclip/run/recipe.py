"""Recipes: Python files with a get_config(arg), those of tclip by name and others by path."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from tclip.config import to_dict
from tclip.models import architecture
from tclip.run.experiment import default_config

_PACKAGE = Path(__file__).parents[1]
# In a wheel they are inside the package, in a checkout beside it.
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "configs")


def recipe_path(config: str) -> str:
    """Returns PATH or PATH:ARG for NAME or NAME:ARG of a recipe that comes with tclip.

    What is no such name, because it has a folder or an extension, is returned as it is.
    """
    name, *arg = config.split(":", 1)
    if Path(name).name != name or Path(name).suffix or Path(name).exists():
        return config
    for folder in _FOLDERS:
        if (folder / f"{name}.py").is_file():
            return ":".join([str(folder / f"{name}.py"), *arg])
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that come with tclip."""
    return sorted({file.stem for folder in _FOLDERS for file in folder.glob("[!_]*.py")})


def load_recipe(file: str | Path) -> ModuleType:
    """Runs a recipe's file; raises FileNotFoundError if there is none."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such config; tclip has the recipes {', '.join(recipe_names())}"
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_role(recipe: str, role: str, roles: Sequence[str]) -> None:
    """Raises ValueError unless a recipe has the role that it is asked for."""
    if role not in roles:
        raise ValueError(f"configs/{recipe}.py:{role}: choose one of {', '.join(roles)}")


def web_scale_config(arch: str) -> ConfigDict:
    """Returns what recipes for millions of image-caption pairs of the web have in common.

    A float CLIP becomes a wholly ternary student in bfloat16, distilled by similarities and
    embeddings, on crops that leave captions true.

    Args:
      arch: name of the student's architecture.
    """
    config = default_config()
    model = architecture(arch)
    config.model = to_dict(model)
    config.preprocess.image_size = model.vision.image_size
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.preprocess.train_scale = (0.9, 1.0)
    config.quant.policy = "all"
    config.loss.similarity_weight = 1.0
    config.loss.embedding_weight = 1.0
    config.optim.warmup_steps = 1000
    config.train.checkpoint_every = 1000
    config.train.eval_every = 1000
    config.train.num_workers = 16
    return config
