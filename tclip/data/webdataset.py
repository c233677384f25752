"""WebDataset tar shards as img2dataset and CLIP_benchmark write them, with random access.

A sample is a run of neighbouring tar members with one key (the name up to the first dot of its last
part): an image, and either key.txt with a caption a line or key.cls with a class number. Shards are
indexed once; reading a sample is then one read for the image and one for the text.
"""

import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from tclip.data.source import BadSample, Sample, SourceConfig, data_dir, fill
from tclip.files import naming

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# 32 bytes a sample, mapped into memory and so shared by worker processes. A sample without a text
# member has text_size 0, one without a class label -1.
INDEX = np.dtype(
    [
        ("shard", "<i4"),
        ("label", "<i4"),
        ("image_offset", "<i8"),
        ("text_offset", "<i8"),
        ("image_size", "<i4"),
        ("text_size", "<i4"),
    ]
)
HEADER = tarfile.BLOCKSIZE
# A member beyond these sizes is not what its name says; the sample is left out.
MAX_IMAGE_BYTES = 2**28
MAX_TEXT_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class WebDatasetSource:
    """Samples of tar shards; see `Source`. `index_path` is the one that `index_shards` returned."""

    name: str
    shards: tuple[str, ...]
    index_path: str
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out: int = 0

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        shard, label, image_offset, text_offset, image_size, text_size = self._index[index].tolist()
        path = self.shards[shard]
        try:
            with open(path, "rb", buffering=0) as file:
                # The member's name stands in the header block in front of its data.
                block = os.pread(file.fileno(), HEADER + image_size, image_offset - HEADER)
                text = os.pread(file.fileno(), text_size, text_offset)
        except OSError as error:
            raise BadSample(f"{path}, sample {index}: {error.strerror}") from None
        if len(block) < HEADER + image_size or len(text) < text_size:
            raise BadSample(f"{path}, sample {index}: the shard was cut after it was indexed")
        key = _key(block[:100].rstrip(b"\0").decode("utf-8", "replace"))[0]
        if label >= len(self.classnames) and self.classnames:
            raise BadSample(f"{path}, {key}: label {label} of {len(self.classnames)} classes")
        lines = text.decode("utf-8", "replace").splitlines()
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions and label >= 0 and self.classnames:
            captions = fill(self.templates, self.classnames[label])
        return Sample(f"{Path(path).name}/{key}", block[HEADER:], captions, label)

    @functools.cached_property
    def _index(self) -> np.ndarray:
        return np.load(self.index_path, mmap_mode="r", allow_pickle=False)

    def __getstate__(self) -> dict:
        # The map of the index stays behind: every process maps the file itself.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def open_webdataset(cfg: SourceConfig, where: str) -> WebDatasetSource:
    """Opens shards by pattern, or a folder in the layout of CLIP_benchmark.

    Such a folder holds SPLIT/nshards.txt, SPLIT/0.tar and so on, and for classification
    classnames.txt and zeroshot_classification_templates.txt with "{c}" for the class name.

    Raises:
      FileNotFoundError: nothing matches the pattern, or the layout lacks a file.
      ValueError: no shard holds a usable sample.
    """
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    folder = Path(where).expanduser()
    if folder.is_dir():
        shards = _benchmark_shards(folder, cfg.split)
        if (folder / "classnames.txt").exists():
            classnames = _lines(folder / "classnames.txt")
            path = folder / "zeroshot_classification_templates.txt"
            own = _lines(path) if path.exists() else ()
            templates = tuple(line.replace("{c}", "{}") for line in own) or cfg.templates
    else:
        shards = expand(where)
    index_path, report = index_shards(shards, data_dir(cfg) / "index")
    _warn(cfg.source, report)
    source = WebDatasetSource(
        cfg.source, shards, str(index_path), classnames, templates, report["skipped"]
    )
    if len(source) == 0:
        raise ValueError(
            f"no usable sample in the {len(shards)} shard(s) of {where!r}: expected pairs of "
            f"key.{'|'.join(IMAGE_SUFFIXES)} and key.txt or key.cls in uncompressed tar files"
        )
    return source


def expand(pattern: str) -> tuple[str, ...]:
    """Expands {00000..00009} and {a,b} braces, then globs; returns absolute paths.

    Raises:
      FileNotFoundError: a brace pattern names a shard that is absent, or nothing matches.
    """
    paths = []
    for name in _expand_braces(os.path.expanduser(pattern)) or [pattern]:
        found = sorted(path for path in glob.glob(name) if os.path.isfile(path))
        if not found:
            raise FileNotFoundError(f"no shard matches {name!r} (data source wds:{pattern})")
        paths += found
    return tuple(os.path.abspath(path) for path in paths)


def index_shards(shards: tuple[str, ...], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Indexes these shards where that has not been done.

    Indices are named by a hash of the shards' paths, sizes and times of modification, so a changed
    shard gets a new one. Beside each lies its report as JSON.

    Returns:
      The path of an array of `INDEX`, and the report on what is not in it: "skipped", how many
      samples lack an image or a text, and "cut", a sentence for every cut or damaged shard.
    """
    stats = [(path, os.stat(path)) for path in shards]
    state = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    digest = hashlib.sha256(json.dumps([str(INDEX), state]).encode()).hexdigest()
    path = folder / f"{digest[:20]}.npy"
    report = _read_report(path.with_suffix(".json"))
    if report is not None and _is_index(path):
        return path, report
    folder.mkdir(parents=True, exist_ok=True)
    tables, report = [], {"shards": list(shards), "skipped": 0, "cut": []}
    for number, shard in enumerate(shards):
        table, skipped, complaint = index_shard(shard)
        table["shard"] = number
        tables.append(table)
        report["skipped"] += skipped
        if complaint:
            report["cut"].append(f"{shard}: {complaint}; its first {len(table)} samples are used")
    # Several processes may do this at once: each writes its own files, the last ones stay. The
    # report comes first, so that there is none missing beside an index.
    partial = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    with naming(partial):
        partial.with_suffix(".json").write_text(json.dumps(report, indent=2))
        np.save(partial, np.concatenate(tables), allow_pickle=False)
    os.replace(partial.with_suffix(".json"), path.with_suffix(".json"))
    os.replace(partial, path)
    return path, report


def _warn(name: str, report: dict[str, Any]) -> None:
    """Says in one line what the data lacks, at every opening."""
    notes = []
    if report["skipped"]:
        notes.append(f"{report['skipped']} samples without an image or a text are left out")
    if report["cut"]:
        notes.append(f"{len(report['cut'])} damaged shard(s), the first {report['cut'][0]}")
    if notes:
        log.warning("%s: %s", name, "; ".join(notes))


def index_shard(path: str) -> tuple[np.ndarray, int, str]:
    """Indexes one tar file.

    Returns:
      A table of `INDEX` (its "shard" is zero), the number of samples that lack an image or a text,
      and a complaint when the file is cut or damaged: then the table holds what comes before.
    """
    rows, skipped = [], 0
    with open(path, "rb") as file:
        members, complaint = _scan(file)
        for _, group in itertools.groupby(members, key=lambda member: member[0]):
            row = _row(file, {suffix: place for _, suffix, place in group})
            if row is None:
                skipped += 1
            else:
                rows.append(row)
    return np.array(rows, INDEX), skipped, complaint


def _scan(file) -> tuple[list[tuple[str, str, tuple[int, int]]], str]:
    """Lists (key, suffix, (offset, size)) of the whole files in a tar, and a complaint or ""."""
    end = os.fstat(file.fileno()).st_size
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in iter(tar.next, None):
                tar.members = []  # it would keep them all
                if member.size < 0 or member.offset_data + member.size > end:
                    return members, f"cut within {member.name}"
                if member.isreg() and member.sparse is None:
                    members.append((*_key(member.name), (member.offset_data, member.size)))
            # tarfile takes a header that is cut or damaged for the end of the archive.
            if os.pread(file.fileno(), HEADER, tar.offset) != bytes(HEADER):
                return members, "no end-of-archive mark"
    except (tarfile.TarError, OSError, ValueError) as error:
        return members, f"not a whole, uncompressed tar file ({error})"
    return members, ""


def _row(file, places: dict[str, tuple[int, int]]) -> tuple | None:
    """A row of INDEX from {suffix: (offset, size)}, None where image, or text and label, lack."""
    image = next((places[suffix] for suffix in IMAGE_SUFFIXES if suffix in places), None)
    text_offset, text_size = places.get("txt", (0, 0))
    label = -1
    if "cls" in places:
        offset, size = places["cls"]
        digits = os.pread(file.fileno(), min(size, 16), offset).strip()
        label = int(digits) if digits.isdigit() and len(digits) < 10 else -1
    if image is None or (text_size == 0 and label < 0):
        return None
    if image[1] > MAX_IMAGE_BYTES or text_size > MAX_TEXT_BYTES:
        return None
    return 0, label, image[0], text_offset, image[1], text_size


def _key(name: str) -> tuple[str, str]:
    """ "a/b.c.jpg" -> ("a/b", "c.jpg"), suffix in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _expand_braces(pattern: str) -> list[str]:
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
    text = count_path.read_text().strip()
    if not text.isdigit():
        raise ValueError(f"{count_path} does not hold a number: {text[:40]!r}")
    paths = [folder / split / f"{i}.tar" for i in range(int(text))]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing, {count_path} counts {text} shards")
    return tuple(str(path.absolute()) for path in paths)


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())


def _read_report(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _is_index(path: Path) -> bool:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).dtype == INDEX
    except (OSError, ValueError):
        return False
