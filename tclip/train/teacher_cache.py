"""A teacher's embeddings of augmented training data, on disk, with random access.

    cache.json           what the embeddings are of: `CacheHeader`
    AUGMENTATION-SHARD.npy   uint16 [n, 2, D]: the bits of bfloat16 unit embeddings of the image and
                         of the caption, for samples SHARD * shard_size and on; NaN where the sample
                         could not be used

A shard appears under its name when it is whole, so what is there can be trusted and what is missing
is still to be done, whoever does it.
"""

import dataclasses
import functools
import io
import json
import os
import uuid
from pathlib import Path

import ml_dtypes
import numpy as np

from tclip.config import build, to_dict
from tclip.files import naming, read_json_object, write_whole
from tclip.processing.bad_sample import BadSample

HEADER = "cache.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CacheHeader:
    """What the embeddings of a cache are of. Two caches with equal headers are equal.

    Attributes:
      teacher: SHA-256 of the teacher's parameters and architecture.
      data: fingerprint of the data.
      samples: how many there are.
      seed: of the augmentations.
      train_scale, train_ratio, flip: ranges of the crops.
      image_size, mean, std, interpolation: of the teacher's pixels.
      tokenizer: SHA-256 of the teacher's tokenizer.
      dtype: what the teacher was computed in.
      embed_dim: D.
      augmentations: how many of every sample.
      shard_size: samples a file.
    """

    teacher: str
    data: str
    samples: int
    seed: int
    train_scale: tuple[float, float]
    train_ratio: tuple[float, float]
    flip: bool
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    tokenizer: str
    dtype: str
    embed_dim: int
    augmentations: int
    shard_size: int
    format_version: int = FORMAT_VERSION

    def __post_init__(self):
        for name in ("samples", "embed_dim", "augmentations", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} of a teacher cache is not positive")

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard_size)


@dataclasses.dataclass(frozen=True)
class TeacherCache:
    """Random access to a whole cache; picklable, files are mapped where it is used."""

    path: Path
    header: CacheHeader

    @property
    def augmentations(self) -> int:
        return self.header.augmentations

    def at(self, augmentation: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the embeddings of the image and of the caption, float32 [D].

        Raises:
          BadSample: the sample could not be used when the cache was made.
        """
        shard, row = divmod(number, self.header.shard_size)
        bits_2xD = _map_shard(shard_path(self.path, augmentation, shard))[row]
        image_D, text_D = bits_2xD.view(ml_dtypes.bfloat16).astype(np.float32)
        if np.isnan(image_D[0]):
            raise BadSample(f"number {number}: unusable when the teacher's embeddings were stored")
        return image_D, text_D


def shard_path(path: Path, augmentation: int, shard: int) -> Path:
    return path / f"{augmentation:03d}-{shard:05d}.npy"


def shard_shape(header: CacheHeader, shard: int) -> tuple[int, int, int]:
    """The shape of a shard; the last one may be shorter."""
    start = shard * header.shard_size
    return min(header.shard_size, header.samples - start), 2, header.embed_dim


def save_shard(path: Path, embeddings_Nx2xD: np.ndarray) -> None:
    """Writes bfloat16 embeddings; the file has its name only when it is whole."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    content = io.BytesIO()  # np.save to a file itself can miss the error of a full disk
    np.save(content, embeddings_Nx2xD.view(np.uint16), allow_pickle=False)
    with naming(path):
        partial.write_bytes(content.getbuffer())
    os.replace(partial, path)


def has_shard(path: Path, header: CacheHeader, shard: int) -> bool:
    """Whether a shard is there; raises ValueError if it is not what the header says."""
    if not path.is_file():
        return False
    shape = shard_shape(header, shard)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and cache again") from None
    if (found.shape, found.dtype) != (shape, np.uint16):
        raise ValueError(
            f"{path} holds {found.dtype}{list(found.shape)} instead of uint16{list(shape)}; remove "
            "it and cache again"
        )
    return True


def write_header(path: Path, header: CacheHeader) -> None:
    write_whole(path / HEADER, json.dumps(to_dict(header), indent=2) + "\n")


def read_header(path: Path) -> CacheHeader:
    """Raises FileNotFoundError or ValueError when there is no header or it is not one."""
    file = Path(path) / HEADER
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no teacher cache: it has no {HEADER}")
    return build(CacheHeader, read_json_object(file), where=str(file))


def open_cache(path: str | Path, expected: CacheHeader) -> TeacherCache:
    """Opens a whole cache that is of what is expected, for any number of augmentations.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is of something else, not finished, or damaged; the message says what and why.
    """
    path = Path(path).absolute()
    header = read_header(path)
    check_same(path, header, expected, but=("augmentations", "shard_size"))
    missing = 0
    for augmentation in range(header.augmentations):
        for shard in range(header.shards):
            missing += not has_shard(shard_path(path, augmentation, shard), header, shard)
    if missing:
        raise ValueError(
            f"{path}: {missing} of {header.augmentations * header.shards} files are missing; run "
            "launch.cache_teacher again, it goes on where it stopped"
        )
    return TeacherCache(path, header)


def check_same(
    path: Path, found: CacheHeader, expected: CacheHeader, but: tuple[str, ...] = ()
) -> None:
    """Raises ValueError naming what a cache was made of that is not what it is wanted for."""
    reasons = []
    for field in dataclasses.fields(CacheHeader):
        before, now = getattr(found, field.name), getattr(expected, field.name)
        if before != now and field.name not in but:
            reasons.append(f"{field.name} was {before!r} and is now {now!r}")
    if reasons:
        raise ValueError(
            f"{path} was made for something else: {'; '.join(reasons)}; restore it, or cache anew "
            "in another folder"
        )


@functools.lru_cache(maxsize=4096)
def _map_shard(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
