"""tclip: CLIP models with ternary weights.

`import tclip` is light: what needs more than jax is imported where it is used.
"""

import importlib.metadata
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclip.inference import Model

__version__ = importlib.metadata.version("tclip")


def load(path: str | os.PathLike[str], activations: str | None = None) -> "Model":
    """Loads a packed folder, a training workdir or anyone's CLIP; see `tclip.loading.load`."""
    from tclip import loading

    return loading.load(path, activations)
