"""How fast training batches are made, against the webdataset package on the same shards."""

import contextlib
import dataclasses
import functools
import importlib.util
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from PIL import Image

from tclip.bench.photos import WORDS, write_photo_shards
from tclip.data import SourceConfig, View, open_source, train_batches
from tclip.data.webdataset import expand
from tclip.processing import PreprocessConfig, train_tokenizer
from tclip.processing.transforms import RESAMPLING, random_crop
from tclip.tables import markdown_table

Batches = Generator[tuple[np.ndarray, np.ndarray], None, None]
# Batches that are made before the clock starts, until workers run and no buffer is full.
WARM_UP = 6
SHARDS = 8


def run(
    photos: Annotated[int, "how many photographs the shards hold"] = 512,
    batch_size: Annotated[int, "image-caption pairs a batch"] = 64,
    batches: Annotated[int, "batches that are timed at once"] = 16,
    repeats: Annotated[int, "timings of each loader"] = 5,
    workers: Annotated[str, "numbers of worker processes that each loader tries"] = "0,1,2",
    image_size: Annotated[int, "side of the crops, pixels"] = 224,
) -> dict[str, Any]:
    """Times both loaders in turn, each with every number of workers; the best of each count.

    Both read the same tar shards from the page cache, decode, crop at random, resize, normalise to
    float32, tokenise and make batches. The peer does it as open_clip has webdataset do it: a
    shuffle buffer, Pillow, torchvision's operations, and torch's DataLoader.

    Returns:
      Images a second of each loader and number of workers, and the ratio of the best of each within
      every round; all as the median and range over the rounds.

    Raises:
      ValueError: the peer is not installed.
    """
    for package in ("torch", "webdataset"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the benchmark of the loader needs {package}: tclip[reference]")
    counts = [int(count) for count in workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_photo_shards(Path(folder), photos, SHARDS)
        view = default_view(image_size)
        starts = {
            "tclip": functools.partial(_ours, pattern, folder, view, batch_size),
            "webdataset": functools.partial(_peer, pattern, view, batch_size, WARM_UP + batches),
        }
        loaders = {
            (name, count): functools.partial(start, count)
            for count in counts
            for name, start in starts.items()
        }
        rates = {key: [] for key in loaders}
        for _ in range(repeats):
            for key, start in loaders.items():
                rates[key].append(batch_size * batches / _seconds(start(), batches))
    return _figures(rates, batch_size)


def default_view(image_size: int) -> View:
    """CLIP's preprocessing for training, and a tokenizer of its context length."""
    tokenizer = train_tokenizer([" ".join(WORDS)], context_length=77, vocab_size=600)
    return View(PreprocessConfig(image_size=image_size), tokenizer)


def _seconds(stream: Batches, batches: int) -> float:
    """Seconds for so many batches in the middle of a stream."""
    for _ in range(WARM_UP):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return seconds


def _figures(rates: dict[tuple[str, int], list[float]], batch_size: int) -> dict[str, Any]:
    rows, loaders = [], []
    for (name, workers), values in rates.items():
        line = {"loader": name, "workers": workers} | _spread(values)
        low, high = line["range"]
        loaders.append(line)
        rows.append(
            (f"{name}, {workers} workers", f"{line['median']:.0f}", f"{low:.0f} to {high:.0f}")
        )
    ours, theirs = (
        max((values for (loader, _), values in rates.items() if loader == name), key=median)
        for name in ("tclip", "webdataset")
    )
    ratio = _spread([ours / theirs for ours, theirs in zip(ours, theirs, strict=True)])
    low, high = ratio["range"]
    rows.append(("best / best", f"{ratio['median']:.2f}", f"{low:.2f} to {high:.2f}"))
    print(f"training batches of {batch_size}, images a second")
    print(markdown_table(("loader", "median", "range"), rows))
    return {"batch_size": batch_size, "loaders": loaders, "ratio": ratio}


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": median(values), "range": (min(values), max(values))}


def _ours(pattern: str, folder: str, view: View, batch_size: int, workers: int) -> Batches:
    source = open_source(SourceConfig(f"wds:{pattern}", data_dir=folder))
    batches = train_batches(source, view, batch_size, seed=0, num_workers=workers)
    with contextlib.closing(iter(batches)) as iterator:
        for batch in iterator:
            yield batch["images"], batch["tokens"]


def _peer(pattern: str, view: View, batch_size: int, batches: int, workers: int) -> Batches:
    wds: Any = importlib.import_module("webdataset")

    dataset = (
        wds.WebDataset(list(expand(pattern)), resampled=True, shardshuffle=False)
        .shuffle(1000, initial=100)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(_TorchTransform(view.preprocess), _Tokenize(view))
        .batched(batch_size, partial=False)
        .slice(batches // max(workers, 1) + 2)  # of every worker
    )
    loader = wds.WebLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    stream = iter(loader)
    try:
        for images, tokens in stream:
            yield images.numpy(), tokens.numpy()
    finally:
        for _ in stream:  # a worker that is stopped while it sends a batch aborts loudly
            pass


@dataclasses.dataclass(frozen=True)
class _Tokenize:
    view: View

    def __call__(self, caption: str) -> np.ndarray:
        return self.view.tokenizer.encode([caption])[0]


@dataclasses.dataclass(frozen=True)
class _TorchTransform:
    """torchvision's RandomResizedCrop, ToTensor and Normalize, which are these operations."""

    cfg: PreprocessConfig

    def __call__(self, image: Image.Image):
        torch: Any = importlib.import_module("torch")

        box = random_crop(image.size, self.cfg, np.random.default_rng())
        side = (self.cfg.image_size, self.cfg.image_size)
        crop = image.crop(box).resize(side, RESAMPLING[self.cfg.interpolation])
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
        channels = pixels.to(torch.float32).div(255)
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (self.cfg.mean, self.cfg.std)
        )
        return channels.sub_(mean).div_(std)
