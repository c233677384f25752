"""WebDataset tar shards as img2dataset and CLIP_benchmark write them, with random access.

A sample is a run of neighbouring tar members with one key (the name up to the first dot of its last
part): an image, and key.txt with captions, key.cls with a class number, key.npy with a 1 for each
class that it shows (0 or -1 for others), or key.json with a "caption". Texts are UTF-8, or what
their byte-order mark says. Shards are indexed once (tclip/data/tar_index.py); reading a sample is
then one read for the image and one for the text.
"""

import collections
import dataclasses
import functools
import glob
import hashlib
import io
import logging
import os
import re
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np

from tclip.data.captions import captions_of_json, captions_of_lines, decode, read_lines
from tclip.data.source import Sample, SourceConfig, data_dir
from tclip.data.tar_index import (
    IMAGE_SUFFIXES,
    count_suffixes,
    index_shards,
    open_index,
    split_name,
)
from tclip.processing.bad_sample import BadSample
from tclip.prompts import fill

log = logging.getLogger(__name__)

# No UTF-8 text starts like this, nor one with a byte-order mark.
NPY_MAGIC = b"\x93NUMPY"
# Shards that are looked at again to say why they hold no sample.
EXAMINED = 8


@dataclasses.dataclass(frozen=True)
class WebDatasetSource:
    """Samples of tar shards; see `Source`. `index_path` is the one that `index_shards` returned."""

    name: str
    shards: tuple[str, ...]
    index_path: str
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out: int = 0
    caption_lines: bool = True

    @property
    def fingerprint(self) -> str:
        # Names and places: shards may be copied elsewhere, and then have other times. What is
        # replaced by as many bytes goes unnoticed.
        names = [Path(path).name for path in self.shards]
        # A buffer, though NumPy's types say so from Python 3.12 on only.
        index = hashlib.sha256(self._index).hexdigest()  # pyright: ignore[reportArgumentType]
        captions = () if self.caption_lines else ("one caption",)
        return repr((names, index, self.classnames, self.templates, *captions))

    def __len__(self) -> int:
        return len(self._index)

    @property
    def labels(self) -> np.ndarray:
        """The class of every sample, int32 [N]; -1 where it has none."""
        return self._index["label"]

    def __getitem__(self, index: int) -> Sample:
        shard, label, image_offset, text_offset, image_size, text_size = self._index[index].tolist()
        path, is_json, text_size = self.shards[shard], text_size < 0, abs(text_size)
        try:
            with open(path, "rb", buffering=0) as file:
                # The member's name stands in the header block in front of its data.
                block = os.pread(file.fileno(), BLOCKSIZE + image_size, image_offset - BLOCKSIZE)
                text = os.pread(file.fileno(), text_size, text_offset)
        except OSError as error:
            raise BadSample(f"{path}, sample {index}: {error.strerror}") from None
        if len(block) < BLOCKSIZE + image_size or len(text) < text_size:
            raise BadSample(f"{path}, sample {index}: the shard was cut after it was indexed")
        key = split_name(block[:100].rstrip(b"\0").decode("utf-8", "replace"))[0]
        if label >= len(self.classnames) and self.classnames:
            raise BadSample(f"{path}, {key}: label {label} of {len(self.classnames)} classes")
        if text.startswith(NPY_MAGIC):
            labels = _labels(text, f"{path}, {key}.npy")
            return Sample(f"{Path(path).name}/{key}", block[BLOCKSIZE:], (), labels=labels)
        try:
            if is_json:
                captions = captions_of_json(text)
            else:
                captions = captions_of_lines(decode(text), self.caption_lines)
        except ValueError as error:
            raise BadSample(f"{path}, the text of {key}: {error}") from None
        if not captions and label >= 0 and self.classnames:
            captions = fill(self.templates, self.classnames[label])
        return Sample(f"{Path(path).name}/{key}", block[BLOCKSIZE:], captions, label)

    @functools.cached_property
    def _index(self) -> np.ndarray:
        return open_index(self.index_path)

    def __getstate__(self) -> dict:
        # The map of the index stays behind: every process maps the file itself.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def open_webdataset(cfg: SourceConfig, where: str) -> WebDatasetSource:
    """Opens shards by pattern, or a folder in the layout of CLIP_benchmark.

    Such a folder holds SPLIT/nshards.txt, SPLIT/0.tar and so on, and for classification
    classnames.txt and zeroshot_classification_templates.txt with "{c}" for the class name. A line
    is a class even where it is empty, as in the published vtab/clevr_closest_object_distance.

    Raises:
      FileNotFoundError: nothing matches the pattern, or the layout lacks a file.
      ValueError: no shard holds a usable sample.
    """
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    folder = Path(os.path.expanduser(where))
    if folder.is_dir():
        shards = _benchmark_shards(folder, cfg.split)
        if (folder / "classnames.txt").exists():
            classnames = read_lines(folder / "classnames.txt")
            path = folder / "zeroshot_classification_templates.txt"
            templates = (_templates(path) if path.exists() else ()) or cfg.templates
    else:
        shards = expand(where)
    index_path, report = index_shards(shards, data_dir(cfg) / "index")
    _warn(cfg.source, report)
    source = WebDatasetSource(
        cfg.source,
        shards,
        str(index_path),
        classnames,
        templates,
        report["skipped"],
        cfg.caption_lines,
    )
    if len(source) == 0:
        raise ValueError(
            f"no usable sample in the {len(shards)} shard(s) of {where!r}: expected key."
            f"{'|'.join(IMAGE_SUFFIXES)} and, next to it, key.txt, key.cls, key.npy or key.json "
            f"with a caption in uncompressed tar files; found {_found(shards)}"
        )
    return source


def _found(shards: tuple[str, ...]) -> str:
    """What the first shards hold, for who wonders why there is no sample in it."""
    counts = sum(map(count_suffixes, shards[:EXAMINED]), collections.Counter())
    names = [f"{count} x .{suffix}" for suffix, count in counts.most_common(8)]
    return f"{', '.join(names) or 'no file'} in the first {min(EXAMINED, len(shards))} of them"


def _templates(path: Path) -> tuple[str, ...]:
    """The prompts of CLIP_benchmark, whose "{c}" is the class, with "{}" instead."""
    templates = []
    for number, line in enumerate(read_lines(path), start=1):
        template = line.replace("{c}", "{}")
        if line and "{}" not in template:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} has no {{c}} for the class")
        if line:
            templates.append(template)
    return tuple(templates)


def expand(pattern: str) -> tuple[str, ...]:
    """Expands {00000..00009} and {a,b} braces, then globs; returns absolute paths.

    Raises:
      FileNotFoundError: a brace pattern names a shard that is absent, or nothing matches.
    """
    paths = []
    for name in _expand_braces(os.path.expanduser(pattern)) or [pattern]:
        # A file that has such characters in its name is no pattern.
        found = [name] if os.path.isfile(name) else sorted(filter(os.path.isfile, glob.glob(name)))
        if not found:
            raise FileNotFoundError(f"no shard matches {name!r} (data source wds:{pattern})")
        paths += found
    return tuple(os.path.abspath(path) for path in paths)


def _warn(name: str, report: dict[str, Any]) -> None:
    """Says in one line what the data lacks, at every opening."""
    notes = []
    if report["skipped"]:
        notes.append(f"{report['skipped']} samples without an image or a text are left out")
    if report["cut"]:
        notes.append(f"{len(report['cut'])} damaged shard(s), the first {report['cut'][0]}")
    if notes:
        log.warning("%s: %s", name, "; ".join(notes))


def _expand_braces(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    body = match[1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = numbers.groups()
        options = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    else:
        options = body.split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for option in options for name in _expand_braces(f"{head}{option}{tail}")]


def _benchmark_shards(folder: Path, split: str) -> tuple[str, ...]:
    count_path = folder / split / "nshards.txt"
    if not count_path.exists():
        splits = ", ".join(sorted(p.parent.name for p in folder.glob("*/nshards.txt"))) or "none"
        raise FileNotFoundError(
            f"{count_path} is missing (splits found: {splits}); a folder has to have the layout "
            "of CLIP_benchmark, other shards are given by a pattern such as DIR/{00000..00009}.tar"
        )
    text = "".join(read_lines(count_path))
    if not text.isdigit():
        raise ValueError(f"{count_path} does not hold a number: {text[:40]!r}")
    paths = [folder / split / f"{i}.tar" for i in range(int(text))]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing, {count_path} counts {text} shards")
    return tuple(str(path.absolute()) for path in paths)


def _labels(npy: bytes, name: str) -> tuple[int, ...]:
    try:
        array = np.lib.format.read_array(io.BytesIO(npy), allow_pickle=False)
    except Exception as error:  # of many kinds, from the parser of the header
        raise BadSample(f"{name}: {error}") from None
    if array.ndim != 1 or array.dtype.kind not in "biuf" or not np.isin(array, (-1, 0, 1)).all():
        raise BadSample(f"{name} is not a 0 or 1 for each class")
    # As in PASCAL VOC -1 is a class that is not shown, 0 one that may be.
    return tuple((array == 1).astype(int).tolist())
