"""From nested mappings (ml_collections, JSON) to frozen dataclasses and back.

Every room owns a frozen dataclass with its options; `build` is the door through which a config
enters, and the only place where a misspelt key or a value of the wrong type has to be caught.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may be, as in `lr: Annotated[float, Range(0, open_low=True)]`.

    Attributes:
      low, high: bounds, of every number of a tuple; None is no bound.
      open_low, open_high: whether the bound itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def check(self, value: Any, where: str) -> None:
        """Raises ValueError, naming the dotted key `where`, unless the value is in the range."""
        low, high = self.low, self.high
        for x in value if isinstance(value, tuple) else (value,):
            # NaN is in no range that has a bound.
            over = low is None or x > low or (x == low and not self.open_low)
            under = high is None or x < high or (x == high and not self.open_high)
            if not (over and under):
                raise ValueError(f"{where}={value}: must be {self}")

    def __str__(self) -> str:
        bounds = []
        if self.low is not None:
            bounds.append(f"{'more than' if self.open_low else 'at least'} {self.low}")
        if self.high is not None:
            bounds.append(f"{'less than' if self.open_high else 'at most'} {self.high}")
        return " and ".join(bounds)


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
FRACTION = Range(0, 1)
COUNT = Range(1)


def check_ranges(config: Any, where: str) -> None:
    """Raises ValueError, naming its dotted key, for a number of a dataclass beyond its `Range`."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        if typing.get_origin(hint) is typing.Annotated:
            for limit in hint.__metadata__:
                limit.check(getattr(config, name), f"{where}.{name}")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Returns `cls(**values)` with nested dataclasses built and every value checked.

    Args:
      cls: a dataclass whose fields are annotated with bool, int, float, str, tuples of them, other
        dataclasses, or unions of those with None; numbers may be annotated with a `Range`.
      values: nested mapping, as of JSON or `ConfigDict.to_dict()`; absent keys take the field's
        default.
      where: dotted prefix of the keys, for messages.

    Raises:
      ValueError: an unknown key (the nearest known one is suggested), a value of the wrong type, or
        a value that the dataclass itself refuses; the message names the dotted key.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise ValueError(f"{where}.{key}: unknown key; {hint}")
    kwargs = {key: _convert(fields[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def to_dict(value: Any) -> Any:
    """The inverse of `build`: nested plain dicts, with tuples kept as tuples."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        value = _convert(args[0], value, where)
        for limit in hint.__metadata__:
            limit.check(value, where)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _convert(inner, value, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a group of keys, got {value!r}")
        return build(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a tuple, got {value!r}")
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) != len(value):
            raise ValueError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(
            _convert(arg, item, f"{where}[{i}]")
            for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where}: too large for a float") from None
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}={value}: must be finite")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
