"""Recipes: Python files with a get_config(arg), those of tclip by name and others by path."""

import importlib.util
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
