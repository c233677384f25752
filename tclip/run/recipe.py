"""Recipes: Python files with a get_config(arg), those of tclip by name and others by path."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

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
    """Runs a recipe's file; raises FileNotFoundError, or ValueError if it is no Python."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such config; tclip has the recipes {', '.join(recipe_names())}"
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no recipe: a recipe is a Python file, NAME.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked_recipe(config: str) -> str:
    """Returns `recipe_path(config)`, of a recipe that gives a config for its ARG.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has no get_config, or refuses ARG.
    """
    path = recipe_path(config)
    file, *arg = path.split(":", 1)
    recipe = load_recipe(file)
    if not hasattr(recipe, "get_config"):
        raise ValueError(f"{file} is no recipe: it has no get_config(arg)")
    recipe.get_config(*arg)
    return path


def check_role(recipe: str, role: str, roles: Sequence[str]) -> None:
    """Raises ValueError unless a recipe has the role that it is asked for."""
    if role not in roles:
        raise ValueError(f"configs/{recipe}.py:{role}: choose one of {', '.join(roles)}")
