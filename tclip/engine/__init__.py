"""A packed model on the CPU, by a C library, without JAX: `load` and `unavailable`.

Importing it takes numpy only. `pip install` builds the library, with a compiler from PyPI where
the machine has none; TCLIP_ENGINE_LIBRARY names another build of it.

The C interface is `include/tclip.h`.
"""

from tclip.engine.library import unavailable
from tclip.engine.model import Model, load

__all__ = ["Model", "load", "unavailable"]
