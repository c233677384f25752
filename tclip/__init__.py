"""tclip: CLIP models with ternary weights.

`import tclip` is light: what needs more than jax is imported where it is used.
"""

import importlib.metadata
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclip import engine, inference

__version__ = importlib.metadata.version("tclip")


def load(
    path: str | os.PathLike[str],
    activations: str | None = None,
    backend: str | None = None,
    step: str | int | None = None,
) -> "inference.Model | engine.Model":
    """Loads a packed folder, a training workdir or anyone's CLIP; see `tclip.loading.load`.

    Args:
      step: of a workdir, which checkpoint: "last" (the default), "best", or the number of a step.
      backend: "engine" runs a packed folder by a C library, without JAX, on the CPU; "jax" runs
        anything on what JAX has. By default packed folders take the engine where it was built.

    Raises:
      ValueError: also an unknown backend, or the engine for what is no packed folder.
      OSError: also the engine where it was not built.
    """
    if backend not in (None, "engine", "jax"):
        raise ValueError(f"unknown backend {backend!r}; use 'engine' or 'jax'")
    if backend != "jax":
        from tclip import engine
        from tclip.model_kind import model_kind

        is_packed = model_kind(path) == "packed"
        if backend == "engine" and not is_packed:
            raise ValueError(f"{path} is no packed folder, which the engine is for")
        if is_packed and step is None and (backend == "engine" or not engine.unavailable()):
            return engine.load(path, activations)
    from tclip import loading

    return loading.load(path, activations, step)
