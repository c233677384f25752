"""Files that are written whole, and errors that name the file they are about."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts `path` into an OSError that names no file, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes a file that others see whole or as it was before; an OSError names it."""
    partial = path.with_name(path.name + ".partial")
    with naming(partial):
        partial.write_text(text)
    os.replace(partial, path)
