"""Captions as the text members of samples hold them, and other text files of data sets."""

import codecs
import json
from pathlib import Path

# UTF-16 after UTF-32, whose mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CAPTION = "caption"


def decode(data: bytes) -> str:
    """Text in UTF-8, or in what its byte-order mark says; ValueError if it is neither."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    return data.decode(encoding)


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file without the space around them; ValueError names the file."""
    try:
        text = decode(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}; store the file as UTF-8") from None
    return tuple(line.strip() for line in text.splitlines())


def captions_of_lines(text: str, caption_lines: bool) -> tuple[str, ...]:
    """A caption a line, or one of all lines."""
    # Not splitlines, which also splits at characters that some languages use within a line.
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    return lines if caption_lines or not lines else (" ".join(lines),)


def captions_of_json(data: bytes) -> tuple[str, ...]:
    """The "caption" of an object of JSON, a string or several; () where there is none.

    Raises:
      ValueError: it is no such object.
    """
    try:
        value = json.loads(decode(data))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    captions = value.get(CAPTION) or []
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{CAPTION!r} is no text")
    return tuple(text.strip() for text in captions if text.strip())
