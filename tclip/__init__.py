"""tclip: CLIP models with ternary weights.

`import tclip` is light: what needs more than jax is imported where it is used.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tclip.inference import Model


def load(path: str | os.PathLike[str], activations: str | None = None) -> "Model":
    """Loads a packed folder, a training workdir or anyone's CLIP; see `tclip.inference.load`."""
    from tclip import inference

    return inference.load(path, activations)
