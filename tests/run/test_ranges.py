"""Every number of a config has a range, and what lies outside is refused by its dotted key."""

import dataclasses
import math
import typing

import pytest

from tclip.config import Range, build, to_dict
from tclip.run.experiment import Experiment

# Numbers whose values another check restricts: -1 stands for "the rest", and pairs of layers have
# to be those of the models.
CHECKED_ELSEWHERE = {
    "mesh.slice",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "loss.hidden_layers",
    "loss.text_hidden_layers",
}


def numeric_fields(cls: type, prefix: str = ""):
    """Dotted name, type and range (None without one) of every number of a config."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        limit = None
        if typing.get_origin(hint) is typing.Annotated:
            hint, limit = typing.get_args(hint)
        kinds = [hint, *typing.get_args(hint)]
        if dataclasses.is_dataclass(hint):
            yield from numeric_fields(hint, f"{prefix}{name}.")
        elif int in kinds or float in kinds or "tuple[int" in str(hint):
            yield f"{prefix}{name}", hint, limit


FIELDS = list(numeric_fields(Experiment))


def with_value(name: str, value: object) -> dict:
    values = to_dict(Experiment())
    *groups, last = name.split(".")
    group = values
    for key in groups:
        group = group[key]
    group[last] = value
    return values


def test_every_number_has_a_range():
    without = {name for name, _, limit in FIELDS if limit is None}
    assert without == CHECKED_ELSEWHERE
    assert len(FIELDS) > 50


def outside(hint: type, limit: Range):
    """Values just outside the range, and what is no number."""
    step = 1 if hint is int else 1e-6
    one = []
    if limit.low is not None:
        one.append(limit.low if limit.open_low else limit.low - step)
    if limit.high is not None:
        one.append(limit.high if limit.open_high else limit.high + step)
    if hint is not int:
        one += [math.nan, math.inf, -math.inf]
    if typing.get_origin(hint) is not tuple:
        return one
    length = len(typing.get_args(hint)) if ... not in typing.get_args(hint) else 1
    return [(value,) * length for value in one]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value}")
        for name, hint, limit in FIELDS
        if limit is not None
        for value in outside(hint, limit)
    ],
)
def test_what_lies_outside_is_refused_by_its_key(name, value):
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        build(Experiment, with_value(name, value))


@pytest.mark.parametrize("name", sorted(CHECKED_ELSEWHERE))
def test_what_has_no_range_is_refused_by_its_key_too(name):
    value = ((0, -1),) if "layers" in name else 0
    with pytest.raises(ValueError, match=name.rpartition(".")[2]):
        build(Experiment, with_value(name, value))
