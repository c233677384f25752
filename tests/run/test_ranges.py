"""Every field of a config at its edges: what makes no sense is refused by its dotted key."""

import dataclasses
import math
import typing

import pytest

from tclip.config import Range, build, check_ranges, to_dict
from tclip.run.experiment import Experiment, TrainConfig
from tclip.run.optim import OptimConfig

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
# Texts that name a file, a data set, a feature or a metric, or are patterns; those that are wrong
# are found out where they are used.
FREE_TEXT = {
    "init",
    *(
        f"{data}.{key}"
        for data in ("train_data", "eval.data")
        for key in ("source", "split", "data_dir", "image_key", "label_key", "caption_key")
    ),
    "tokenizer.path",
    "quant.policy",
    "teacher.path",
    "teacher.cache",
    "optim.no_decay",
    "train.best_metric",
}


def fields_of(cls: type, prefix: str = ""):
    """Dotted name, type and range (None without one) of every field of a config."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        limit = None
        if typing.get_origin(hint) is typing.Annotated:
            hint, limit = typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint, limit


def holds(hint: type, *kinds: type) -> bool:
    """Whether a value of this type is one of `kinds`, or a tuple of them, however deep."""
    return hint in kinds or any(holds(arg, *kinds) for arg in typing.get_args(hint))


EVERY_FIELD = list(fields_of(Experiment))
FIELDS = [field for field in EVERY_FIELD if holds(field[1], int, float)]
TEXTS = {name: hint for name, hint, _ in EVERY_FIELD if holds(hint, str)}


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
        one += [math.nan, math.inf, -math.inf, 10**400]
    if typing.get_origin(hint) is not tuple:
        return one
    length = len(typing.get_args(hint)) if ... not in typing.get_args(hint) else 1
    return [(value,) * length for value in one]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={str(value)[:20]}")
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


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        pytest.param(name, bound, id=f"{name}={bound}")
        for name, hint, limit in FIELDS
        if limit is not None and hint in (int, float)
        for bound in (
            None if limit.open_low else limit.low,
            None if limit.open_high else limit.high,
        )
        if bound is not None
    ],
)
def test_a_bound_that_belongs_to_the_range_is_none_of_the_errors(name, bound):
    # Other checks may refuse it together with the defaults of other keys, such as one step of
    # training with a hundred of warm-up.
    try:
        build(Experiment, with_value(name, bound))
    except ValueError as error:
        assert f"config.{name}={bound}" not in str(error)


@pytest.mark.parametrize("name", [name for name, *_ in EVERY_FIELD])
def test_a_value_of_another_type_is_refused_by_its_key(name):
    for wrong in (object(), None):
        with pytest.raises(ValueError, match=f"config.{name}".replace(".", r"\.")):
            build(Experiment, with_value(name, wrong))


def test_every_text_is_one_of_some_or_known_to_be_free():
    accepted = set()
    for name, hint in TEXTS.items():
        group, _, key = name.rpartition(".")
        try:
            build(Experiment, with_value(name, "nonsense" if hint is str else ("nonsense",)))
        except ValueError as error:
            if "nonsense" in str(error):
                assert f"config.{group}" in str(error)
                assert key.removesuffix("s") in str(error)
                continue
        accepted.add(name)
    assert accepted == FREE_TEXT


def test_ranges_hold_without_a_config_too():
    for config, options, key in (
        (OptimConfig, {"b1": 7.0}, "optim.b1=7.0"),
        (OptimConfig, {"eps": math.nan}, "optim.eps=nan"),
        (TrainConfig, {"keep_last": 0}, "train.keep_last=0"),
    ):
        with pytest.raises(ValueError, match=key):
            config(**options)
    with pytest.raises(ValueError, match=r"x\.clip=0"):
        check_ranges(
            dataclasses.make_dataclass("C", [("clip", typing.Annotated[float, Range(1)])])(0.0), "x"
        )
