"""Data: sources of images and captions, their mixtures, and the Grain pipeline."""

from tclip.data.mixture import Mixture, open_mixture
from tclip.data.opening import open_source
from tclip.data.pipeline import View, batch_keys, eval_batches, train_batches
from tclip.data.source import Sample, Source, SourceConfig

__all__ = [
    "Mixture",
    "Sample",
    "Source",
    "SourceConfig",
    "View",
    "batch_keys",
    "eval_batches",
    "open_mixture",
    "open_source",
    "train_batches",
]
