"""The order of training samples: permutations, proportions, independence of who asks."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.data import Sample, SourceConfig
from tclip.data.mixture import Mixture, mixture_of, open_mixture
from tclip.data.order import PATTERN, SMALL, SampleOrder

GOLDEN = Path(__file__).parents[1] / "golden/sample_order.txt"


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    length: int
    left_out: int = 1
    classnames: tuple[str, ...] = ("a",)
    templates: tuple[str, ...] = ("{}",)

    @property
    def fingerprint(self):
        return f"{self.name} {self.length}"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        assert 0 <= index < self.length
        return Sample(f"{self.name}{index}", b"", ("caption",))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_every_epoch_of_every_source_is_a_permutation(lengths, seed, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(lengths), max_size=len(lengths)))
    order = SampleOrder(tuple(lengths), tuple(weights), seed)
    starts = np.cumsum([0, *lengths])
    seen = collections.defaultdict(list)
    for position in range(3 * PATTERN):
        epoch, number = order.at(position)
        source = int(np.searchsorted(starts, number, side="right")) - 1
        seen[source, epoch].append(number)
    last = {source: max(e for s, e in seen if s == source) for source, _ in seen}
    assert set(last) == set(range(len(lengths)))
    for (source, epoch), numbers in seen.items():
        expected = set(range(starts[source], starts[source + 1]))
        assert len(set(numbers)) == len(numbers)
        if epoch < last[source]:
            assert set(numbers) == expected


def test_sources_take_turns_in_proportion_at_every_moment():
    order = SampleOrder((10_000, 500, 50), (0.7, 0.2, 0.1), seed=0)
    counts = np.zeros(3)
    for position in range(2000):
        _, number = order.at(position)
        counts[int(number >= 10_000) + int(number >= 10_500)] += 1
        # One sample of rounding for each source, and the rounding of weights to 1/PATTERN.
        expected = (position + 1) * np.array([0.7, 0.2, 0.1])
        assert np.abs(counts - expected).max() <= 1.5 + (position + 1) / PATTERN


def test_a_tiny_weight_still_gets_its_turn():
    order = SampleOrder((5, 5), (1e6, 1e-6), seed=0)
    numbers = [order.at(position)[1] for position in range(PATTERN)]
    assert sum(number >= 5 for number in numbers) == 1


def test_the_order_is_the_recorded_one():
    """A run that goes on after an update of grain or NumPy sees the samples that it would have.

    One source is shuffled in memory (by NumPy), one beyond it (by grain), and the positions lie in
    several epochs of both. After a change that is meant:
    UPDATE_GOLDEN=1 launch/test.sh tests/data/test_order.py
    """
    order = SampleOrder((40, SMALL + 904), (0.7, 0.3), seed=17)
    far = 40 * PATTERN
    lines = [
        f"{position} {epoch} {number}\n"
        for position in (*range(64), *range(far, far + 64))
        for epoch, number in [order.at(position)]
    ]
    text = "position epoch number\n" + "".join(lines)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_large_source_is_permuted_too():
    order = SampleOrder((SMALL + 1,), (1.0,), seed=5)
    epochs = [[order.at(e * (SMALL + 1) + i) for i in range(SMALL + 1)] for e in range(2)]
    for epoch, stream in enumerate(epochs):
        assert {seen for seen, _ in stream} == {epoch}
        assert sorted(number for _, number in stream) == list(range(SMALL + 1))
    assert epochs[0] != [(0, number) for _, number in epochs[1]]


def test_positions_far_out_are_as_cheap_and_exact():
    order = SampleOrder((7, 3), (1.0, 1.0), seed=3)
    far = 10**15
    numbers = [order.at(far * PATTERN + i) for i in range(PATTERN)]
    assert {number for _, number in numbers} == set(range(10))
    assert min(epoch for epoch, _ in numbers) >= far * PATTERN // 2 // 7 - 1


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((10_968_539, 1000, 1000), [PATTERN - 2, 1, 1]),
        ((1.0,) * 3, [342, 341, 341]),
        ((1e-9, 1.0, 1e-9, 1.0), [1, 511, 1, 511]),
        ((2.0,) * PATTERN, [1] * PATTERN),
    ],
)
def test_every_source_gets_a_turn_and_the_rest_by_weight(weights, counts):
    order = SampleOrder((10_000,) * len(weights), weights, seed=0)
    sources = [order.at(position)[1] // 10_000 for position in range(PATTERN)]
    np.testing.assert_array_equal(np.bincount(sources), counts)


def test_mixture_puts_sources_end_to_end():
    mixture = mixture_of(Named("a", 3), Named("b", 2), Named("c", 4))
    assert " ".join(mixture[i].key for i in range(9)) == "a0 a1 a2 b0 b1 c0 c1 c2 c3"
    assert (len(mixture), mixture.left_out, mixture.name) == (9, 3, "a::b::c")
    assert mixture.weights == (3, 2, 4)
    assert (
        mixture.fingerprint == mixture_of(Named("a", 3), Named("b", 2), Named("c", 4)).fingerprint
    )
    assert (
        mixture.fingerprint != mixture_of(Named("a", 3), Named("c", 4), Named("b", 2)).fingerprint
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), "1 weights for 2 sources"),
        ((1.0, 0.0), "not all positive"),
        ((1.0, float("nan")), "not all positive"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture((Named("a", 3), Named("b", 2)), weights)


def test_an_empty_source_is_named():
    with pytest.raises(ValueError, match="'b' is empty"):
        mixture_of(Named("a", 3), Named("b", 0))


def test_several_sources_by_config(shapes_dir):
    cfg = SourceConfig("shapes:tiny::shapes:tiny", data_dir=str(shapes_dir), weights=(3.0, 1.0))
    mixture = open_mixture(cfg)
    assert mixture.weights == (3.0, 1.0)
    half = len(mixture) // 2
    assert mixture[half + 2].key == mixture[2].key
    assert open_mixture(dataclasses.replace(cfg, weights=())).weights == (half, half)
