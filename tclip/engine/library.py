"""The shared library of the engine, found and declared to ctypes."""

import ctypes
import functools
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

NAME = "libtclip_engine.dylib" if sys.platform == "darwin" else "libtclip_engine.so"
# Where another build lies, for those who change the library.
VARIABLE = "TCLIP_ENGINE_LIBRARY"
# TCLIP_ABI of include/tclip.h.
ABI = 1
IMAGES, TEXTS = 1, 2
ACTIVATIONS = {"native": 0, "int8": 1}

_SIZE, _POINTER, _TEXT, _INT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
# The last two arguments of functions that can fail take the line that says why.
_ERROR = (_TEXT, _SIZE)
_FUNCTIONS = {
    "tclip_abi": (_INT, ()),
    "tclip_kernel_name": (_TEXT, ()),
    "tclip_num_threads": (_SIZE, ()),
    "tclip_open": (_INT, (_TEXT, _INT, ctypes.POINTER(_POINTER), *_ERROR)),
    "tclip_close": (None, (_POINTER,)),
    "tclip_get_info": (None, (_POINTER, _POINTER)),
    "tclip_encode_images": (_INT, (_POINTER, _POINTER, _SIZE, _INT, _POINTER, *_ERROR)),
    "tclip_encode_texts": (_INT, (_POINTER, _POINTER, _SIZE, _SIZE, _INT, _POINTER, *_ERROR)),
    "tclip_matmul": (
        _INT,
        (
            _POINTER,
            _SIZE,
            _SIZE,
            _POINTER,
            _SIZE,
            _POINTER,
            _SIZE,
            _SIZE,
            _POINTER,
            _INT,
            _POINTER,
            *_ERROR,
        ),
    ),
    "tclip_integer_matmul": (
        _INT,
        (_TEXT, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE, _POINTER, *_ERROR),
    ),
    "tclip_quantize_rows": (_INT, (_POINTER, _SIZE, _SIZE, _POINTER, _POINTER)),
}


class Info(ctypes.Structure):
    """tclip_info of include/tclip.h."""

    _fields_ = (
        ("embed_dim", ctypes.c_int32),
        ("image_size", ctypes.c_int32),
        ("context_length", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("eot_token_id", ctypes.c_int32),
        ("towers", ctypes.c_int32),
        ("logit_scale", ctypes.c_float),
        ("logit_bias", ctypes.c_float),
    )


def unavailable() -> str:
    """Why the engine cannot run here; "" if it can."""
    try:
        library()
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def library() -> ctypes.CDLL:
    """The library, with the types of its functions.

    Raises:
      OSError: it was not built, or is of another version.
    """
    file = next((file for file in _places() if file.is_file()), None)
    if file is None:
        raise OSError(
            "the engine was not built when tclip was installed: install a C compiler, then tclip "
            "again"
        )
    loaded = ctypes.CDLL(str(file))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if loaded.tclip_abi() != ABI:
        raise OSError(f"{file} is of another version of tclip: install tclip again")
    return loaded


def call(name: str, *arguments: object) -> None:
    """Calls a function that can fail; ValueError with its line if it does."""
    error = ctypes.create_string_buffer(1024)
    if getattr(library(), name)(*arguments, error, len(error)):
        raise ValueError(error.value.decode(errors="replace"))


def _places() -> Iterator[Path]:
    if os.environ.get(VARIABLE):
        yield Path(os.environ[VARIABLE])
        return
    yield Path(__file__).parent / NAME
    # An editable install keeps what was built apart from the sources.
    yield Path(sysconfig.get_path("platlib")) / "tclip" / "engine" / NAME
