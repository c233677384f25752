"""Small data sets in the layout that CLIP_benchmark publishes."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.helpers import tiny

CLASSES = ("red", "green", "blue", "dog", "", "cat")
TEMPLATES = ("a {c} square.", "{c}, a photo of {c}.")


def npy(values: Sequence[float]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, np.float32))
    return file.getvalue()


def write_dataset(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    kind: str = "",
    classnames: Sequence[str] = CLASSES,
    templates: Sequence[str] = TEMPLATES,
    shards: int = 2,
) -> Path:
    """Writes samples, each given as {suffix: bytes}, as the project's exporter does."""
    (folder / "test").mkdir(parents=True)
    (folder / "test/nshards.txt").write_text(f"{shards}\n")
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classnames))
        file = folder / "zeroshot_classification_templates.txt"
        file.write_text("".join(f"{template}\n" for template in templates))
    numbered = list(enumerate(samples))
    for shard, part in enumerate(np.array_split(np.arange(len(numbered)), shards)):
        with tarfile.open(folder / f"test/{shard}.tar", "w") as tar:
            for i in part:
                for suffix, data in numbered[i][1].items():
                    info = tarfile.TarInfo(f"s{i:07}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def image(number: int) -> bytes:
    return tiny.png(tiny.square(("red", "green", "blue")[number % 3], seed=number))


def labelled(count: int = 20) -> list[dict[str, bytes]]:
    """Squares of six classes; sample 4 is broken."""
    samples = [{"png": image(i), "cls": b"%d" % (i * i % 6)} for i in range(count)]
    samples[4]["png"] = b"broken"
    return samples


def multilabelled(count: int = 15) -> list[dict[str, bytes]]:
    """Squares with any of six classes; no square is a cat."""
    targets = np.random.default_rng(5).integers(0, 2, (count, 6)) * [1, 1, 1, 1, 1, 0]
    return [{"webp": image(i), "npy": npy(targets[i])} for i in range(count)]


def captioned(count: int = 12) -> list[dict[str, bytes]]:
    """Squares with one to three captions a line; images 0 and 1 share one."""
    colours = ("red", "green", "blue")
    captions = [
        ["number 0" if i < 2 else f"number {i}", f"a {colours[i % 3]} square {i}", f"photo {i}"]
        for i in range(count)
    ]
    return [
        {"jpg": image(i), "txt": "\n".join(captions[i][: 1 + i % 3]).encode()} for i in range(count)
    ]
