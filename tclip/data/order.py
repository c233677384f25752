"""In which order training sees the samples: a pure function of the position in the stream."""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

# Mixing repeats a pattern of so many positions; weights are rounded to its multiples.
PATTERN = 1024
# Data sets up to this size are shuffled in memory: grain's shuffle without memory searches a range
# of 65,536 for the next number that there is, which takes milliseconds for a few samples.
SMALL = 4096


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """An endless stream over several data sets, with random access.

    The data sets take turns in proportion to their weights, as evenly as possible, and each is
    shuffled anew in every epoch of its own.

    Attributes:
      lengths: samples of each data set, positive.
      weights: positive; rounded to multiples of 1/PATTERN of their sum, but to no less than one, so
        that a source of less than a thousandth is drawn more often than its weight says.
      seed: non-negative.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def at(self, position: int) -> tuple[int, int]:
        """Returns (epoch, number): how often its data set was seen in full before, and the sample's
        number in the data sets put end to end."""
        source_P, turn_P, counts_S = self._pattern
        block, slot = divmod(position, PATTERN)
        source = int(source_P[slot])
        epoch, offset = divmod(
            block * int(counts_S[source]) + int(turn_P[slot]), self.lengths[source]
        )
        length = self.lengths[source]
        if length <= SMALL:
            number = int(_permutation(self.seed, source, epoch, length)[offset])
        else:
            number = grain.experimental.index_shuffle(
                offset, max_index=length - 1, seed=_epoch_seed(self.seed, source, epoch), rounds=4
            )
        return epoch, sum(self.lengths[:source]) + number

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every slot the data set and how many of its slots come before; slots of each."""
        counts_S = _apportion(self.weights, PATTERN)
        source_P = np.repeat(np.arange(len(counts_S)), counts_S)
        turn_P = np.concatenate([np.arange(count) for count in counts_S])
        # The k-th of n turns belongs at (k + 1/2) / n of the way.
        order = np.argsort((turn_P + 0.5) / counts_S[source_P], kind="stable")
        return source_P[order], turn_P[order], counts_S


def _apportion(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers, at least one each, that add up to `total`: one for each source, and the rest
    in proportion to what its weight has beyond that (largest remainders)."""
    shares = np.asarray(weights) / np.sum(weights) * total
    beyond = np.maximum(shares - 1, 0)
    rest = total - len(shares)
    exact = (
        beyond / beyond.sum() * rest if beyond.any() else np.full(len(shares), rest / len(shares))
    )
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: rest - counts.sum()]] += 1
    return counts + 1


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, source: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, source, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, source: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, source, epoch)).permutation(length)
