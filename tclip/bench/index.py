"""What opening many samples costs: the index of tar shards, without the images."""

import concurrent.futures
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from tclip.data import SourceConfig
from tclip.data.tar_index import INDEX, save_shard_index, shard_index_path
from tclip.data.webdataset import open_webdataset
from tclip.tables import markdown_table


def run(
    samples: Annotated[int, "samples in all"] = 10_000_000,
    shards: Annotated[int, "shards they are in"] = 2_500,
) -> dict[str, Any]:
    """Opens made-up shards, of which only the indices hold anything, each time in a new process.

    Returns:
      Seconds and peak resident bytes (of the whole process, with Python and all libraries) of the
      first opening, which joins the indices of the shards, of a later one, and of a later one after
      every row was visited.
    """
    with tempfile.TemporaryDirectory() as folder:
        _write_indices(Path(folder), samples, shards)
        figures = {
            name: _in_new_process(_open, folder, samples, visit)
            for name, visit in (("first", False), ("later", False), ("visited", True))
        }
    labels = ("first opening", "later opening", "later opening, every row visited")
    rows = [
        (label, f"{times['seconds']:.2f} s", f"{times['peak_bytes'] / 2**20:.0f} MiB")
        for label, times in zip(labels, figures.values(), strict=True)
    ]
    print(f"{samples} samples in {shards} shards")
    print(markdown_table(("", "time", "peak memory"), rows))
    return {"samples": samples, "shards": shards} | figures


def _write_indices(folder: Path, samples: int, shards: int) -> None:
    index_folder = folder / "index"  # where open_source looks
    index_folder.mkdir()
    rng = np.random.default_rng(0)
    for number, share in enumerate(np.array_split(np.arange(samples), shards)):
        rows = np.zeros(len(share), INDEX)
        rows["label"] = -1
        rows["image_size"] = rng.integers(10_000, 200_000, len(share))
        rows["text_size"] = rng.integers(10, 200, len(share))
        shard = folder / f"{number:05}.tar"
        shard.touch()
        save_shard_index(shard_index_path(str(shard), index_folder), rows, 0, "")


def _in_new_process(function, *args) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def _open(folder: str, samples: int, visit: bool) -> dict[str, float]:
    start = time.perf_counter()
    pattern = f"{folder}/*.tar"
    source = open_webdataset(SourceConfig(f"wds:{pattern}", data_dir=folder), pattern)
    seconds = time.perf_counter() - start
    if len(source) != samples or (visit and source.labels.max() != -1):
        raise ValueError(f"{len(source)} samples of {samples} were found")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"seconds": seconds, "peak_bytes": peak}
