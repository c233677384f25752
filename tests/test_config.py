"""The door for configs: what comes through, and what is told about the rest."""

import dataclasses

import pytest

from tclip.config import build, to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("rate is negative")


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int
    flag: bool = False
    limit: int | None = None
    inner: Inner = Inner()


def test_round_trip():
    value = Outer(3, True, 4, Inner(0.5, ("a", "b"), (2, 0.5)))
    assert build(Outer, to_dict(value)) == value


def test_lists_and_integers_from_json_become_tuples_and_floats():
    built = build(Outer, {"steps": 1, "inner": {"rate": 1, "names": ["a"], "pair": [1, 2]}})
    assert built.inner == Inner(1.0, ("a",), (1, 2.0))
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1, "flagg": True}, r"config\.flagg: unknown key; did you mean 'flag'\?"),
        ({"steps": 1, "zzz": 1}, r"config\.zzz: unknown key; known keys: steps, flag"),
        ({"steps": 1, "inner": {"rates": 1}}, r"config\.inner\.rates: .*'rate'"),
        ({"steps": "1"}, r"config\.steps: expected int, got '1'"),
        ({"steps": 1.5}, r"config\.steps: expected int, got 1\.5"),
        ({"steps": True}, r"config\.steps: expected int, got True"),
        ({"steps": 1, "flag": 1}, r"config\.flag: expected bool, got 1"),
        ({"steps": 1, "inner": 3}, r"config\.inner: expected a group of keys"),
        ({"steps": 1, "inner": {"names": "ab"}}, r"config\.inner\.names: expected a tuple"),
        ({"steps": 1, "inner": {"names": [1]}}, r"config\.inner\.names\[0\]: expected str"),
        ({"steps": 1, "inner": {"pair": [1]}}, r"config\.inner\.pair: expected 2 values, got 1"),
        ({"steps": 1, "inner": {"rate": -1}}, "rate is negative"),
        ({}, r"config: .*missing .* 'steps'"),
    ],
)
def test_errors_name_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        build(Outer, values)
