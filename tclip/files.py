"""Files and folders that are written whole, and errors that name the file they are about."""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


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
    # Processes of one run may write the same file at once.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with naming(path):
            partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` if the block ends without an error.

    Whoever looks at `path` sees it whole or as it was before; what was there is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        yield folder
        if path.exists():
            path.rename(Path(temporary) / "old")
        folder.rename(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object of unknown origin.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds something else; the message names it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a JSON object")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file of an object a line, up to a torn line; empty if there is no such file."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of an object a line as `write_whole` does."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a line; an OSError names the file."""
    # Opened for every row: a handle keeps what it failed to write and fails again at close.
    with naming(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")
