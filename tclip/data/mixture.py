"""Several data sets as one, drawn by weight."""

import bisect
import dataclasses
import hashlib
import itertools
import math

from tclip.data.opening import open_source
from tclip.data.order import PATTERN
from tclip.data.source import SEPARATOR, Sample, Source, SourceConfig


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data sets put end to end, as a `Source` to train on; classes do not survive the mixing.

    Attributes:
      sources: at least one, none of them empty.
      weights: how often each is drawn, relative to the others.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    classnames = ()
    templates = ()

    def __post_init__(self):
        if len(self.weights) != len(self.sources):
            raise ValueError(
                f"train_data.weights: {len(self.weights)} weights for {len(self.sources)} sources"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(f"train_data.weights: {self.weights} are not all positive numbers")
        if len(self.sources) > PATTERN:
            raise ValueError(
                f"{len(self.sources)} sources are more than the {PATTERN} that can mix"
            )
        for source in self.sources:
            if len(source) == 0:
                raise ValueError(f"the data source {source.name!r} is empty")

    @property
    def name(self) -> str:
        return SEPARATOR.join(source.name for source in self.sources)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(source) for source in self.sources)

    @property
    def left_out(self) -> int:
        return sum(source.left_out for source in self.sources)

    @property
    def fingerprint(self) -> str:
        parts = "\n".join(source.fingerprint for source in self.sources)
        return hashlib.sha256(parts.encode()).hexdigest()[:20]

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        ends = list(itertools.accumulate(self.lengths))
        place = bisect.bisect_right(ends, index)
        return self.sources[place][index - ends[place] + self.lengths[place]]


def open_mixture(cfg: SourceConfig) -> Mixture:
    """Opens the data sets of cfg.source, one or several joined by "::".

    Without weights every sample is drawn equally often, up to the rounding of `SampleOrder`.

    Raises:
      ValueError, FileNotFoundError: as `open_source`; weights that do not fit the sources.
    """
    names = cfg.source.split(SEPARATOR)
    sources = tuple(
        open_source(dataclasses.replace(cfg, source=name, weights=())) for name in names
    )
    return mixture_of(*sources) if not cfg.weights else Mixture(sources, cfg.weights)


def mixture_of(*sources: Source) -> Mixture:
    """The data sets put together so that every sample is drawn equally often (see `SampleOrder` for
    the rounding)."""
    return Mixture(sources, tuple(float(max(len(source), 1)) for source in sources))
