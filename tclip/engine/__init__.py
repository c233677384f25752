"""A packed model on the CPU, by a C library, without JAX: `load` and `unavailable`.

Importing it takes numpy only. The library is built from a checkout:

    cmake -S tclip/engine -B build/engine && cmake --build build/engine
    export TCLIP_ENGINE_LIBRARY=$PWD/build/engine/libtclip_engine.so

The C interface is `include/tclip.h`.
"""

from tclip.engine.library import unavailable
from tclip.engine.model import Model, load

__all__ = ["Model", "load", "unavailable"]
