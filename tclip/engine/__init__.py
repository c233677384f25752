"""A packed model on the CPU, by a C library, without JAX: `load` and `unavailable`.

Importing it takes numpy only. The library is built when the package is installed; the C interface
is `include/tclip.h`.
"""

from tclip.engine.library import unavailable
from tclip.engine.model import Model, load

__all__ = ["Model", "load", "unavailable"]
