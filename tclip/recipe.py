"""Recipes: Python files with a get_config(arg), as in configs/."""

import importlib.util
from pathlib import Path
from types import ModuleType


def load_recipe(file: Path) -> ModuleType:
    """Runs a recipe's file; raises FileNotFoundError if there is none."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such config")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
