"""Reading the JSON configs of other people's models: typed values, errors that name the key."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tclip.files import read_json_object

T = TypeVar("T", bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class JsonConfig:
    """A JSON object and where it comes from, for messages."""

    values: Mapping[str, Any]
    where: str

    def get(self, key: str, default: T) -> T:
        """Returns a value of the type of `default`, which is that of an absent key or a null.

        Raises:
          ValueError: the value is of another type.
        """
        value, kind = self.values.get(key), type(default)
        if value is None:
            return default
        if kind is float and type(value) is int:
            return kind(value)
        if type(value) is not kind:
            raise ValueError(f"{self.where}: {key} is {value!r}, expected {kind.__name__}")
        return value

    def group(self, key: str) -> "JsonConfig":
        """Returns the object under `key`, empty if it is absent; ValueError for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{self.where}: {key} is {value!r}, expected a group of keys")
        return JsonConfig(value or {}, f"{self.where}: {key}")


def read_json_config(file: Path) -> JsonConfig:
    """Reads a JSON file; raises FileNotFoundError, or ValueError if it holds no JSON object."""
    return JsonConfig(read_json_object(file), str(file))
