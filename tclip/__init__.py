"""tclip: CLIP models with ternary weights.

`import tclip` is light: what needs more than jax is imported where it is used.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclip.inference import Model


def load(path: str | os.PathLike[str]) -> "Model":
    """Loads a packed folder or a training workdir; see `tclip.inference.load`."""
    from tclip import inference

    return inference.load(path)
