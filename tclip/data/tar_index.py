"""Where the samples of tar shards lie: an index of every shard, and one of them all.

The index of a shard is kept until the shard changes, so that an interrupted indexing of thousands
goes on where it was, and a new shard costs only itself. The index of all shards is a file of rows
of 32 bytes that every process maps into memory: 320 MB for ten million samples, held once.
"""

import collections
import concurrent.futures
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import tarfile
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from tclip.data.captions import captions_of_json
from tclip.files import naming

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif")
# The text is captions, or where these and the class label are absent the labels of many classes, or
# else the caption in an object of JSON.
TEXT_SUFFIXES = ("txt", "npy", "json")
# A sample without a text member has text_size 0, of JSON it is negative; one without a class has
# label -1.
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
# A member beyond these sizes is not what its name says; the sample is left out.
MAX_IMAGE_BYTES = 2**28
MAX_TEXT_BYTES = 2**20
# What archivers of macOS add, besides hidden files such as ._0.jpg and .DS_Store.
MACOS_FOLDER = "__MACOSX"
# Between the members of a sample there may be others, of up to so many incomplete samples.
NEIGHBOURS = 8
# Of the rules by which members are samples: indices made by others are not used.
RULES = 2
# Fewer shards are indexed sooner than worker processes start.
PARALLEL_SHARDS = 32


def index_shards(shards: Sequence[str], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Indexes these shards where that has not been done.

    Indices are named by a hash of the paths, sizes and times of modification, so a changed shard
    gets a new one. Many new shards are indexed by as many processes as there are cores, which
    import the main module anew (a script needs `if __name__ == "__main__"`).

    Returns:
      The path of the rows of `INDEX`, for `open_index`, and the report that lies beside it as JSON:
      "samples", how many rows there are; "skipped", how many samples are not among them for lack of
      an image or a text; "cut", a sentence for every cut or damaged shard.

    Raises:
      OSError: a shard cannot be read, or an index cannot be written.
    """
    tables = [shard_index_path(shard, folder) for shard in shards]
    path = folder / f"{_digest([table.name for table in tables])}.index"
    report = _report(path)
    if report is not None:
        return path, report
    folder.mkdir(parents=True, exist_ok=True)
    _index_in_parallel([pair for pair in zip(shards, tables, strict=True) if not pair[1].exists()])
    report = {"shards": list(shards), "samples": 0, "skipped": 0, "cut": []}
    # Several processes may do this at once: each writes its own files, the last ones stay.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    with naming(partial), open(partial, "wb") as file:
        bar = tqdm(zip(shards, tables, strict=True), "indexing", len(shards), disable=None)
        for number, (shard, table) in enumerate(bar):
            rows, skipped, complaint = _shard_index(shard, table)
            rows["shard"] = number
            file.write(rows.tobytes())
            report["samples"] += len(rows)
            report["skipped"] += skipped
            if complaint:
                report["cut"].append(
                    f"{shard}: {complaint}; its first {len(rows)} samples are used"
                )
    # The report comes last: without it, or with fewer rows than it states, the work is redone.
    os.replace(partial, path)
    with naming(partial):
        partial.write_text(json.dumps(report, indent=2))
    os.replace(partial, path.with_suffix(".json"))
    return path, report


def open_index(path: Path | str) -> np.ndarray:
    """Maps the rows of `INDEX` into memory, read-only."""
    return np.memmap(path, INDEX, "r") if os.path.getsize(path) else np.empty(0, INDEX)


def shard_index_path(shard: str, folder: Path) -> Path:
    """Where the index of a shard in its present state is kept."""
    stat = os.stat(shard)
    layout = str(INDEX), IMAGE_SUFFIXES, TEXT_SUFFIXES, RULES
    return folder / f"{_digest([layout, shard, stat.st_size, stat.st_mtime_ns])}.npz"


def save_shard_index(path: Path, rows: np.ndarray, skipped: int, complaint: str) -> None:
    """Writes what `index_shard` returns to where `shard_index_path` says."""
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    with naming(partial), open(partial, "wb") as file:
        np.savez(file, rows=rows, skipped=skipped, complaint=complaint)
    os.replace(partial, path)


def index_shard(path: str) -> tuple[np.ndarray, int, str]:
    """Indexes one tar file.

    Returns:
      A table of `INDEX` (its "shard" is zero), the number of samples that lack an image or a text,
      and a complaint when the file is cut or damaged: then the table holds what comes before.
    """
    rows, skipped = [], 0
    incomplete: dict[str, dict[str, tuple[int, int]]] = {}
    with open(path, "rb") as file:
        members, complaint = _scan(file)
        for key, run in itertools.groupby(members, key=lambda member: member[0]):
            samples = _split_repeated([(suffix, place) for _, suffix, place in run])
            if (
                len(samples) == 1
                and key in incomplete
                and incomplete[key].keys().isdisjoint(samples[0])
            ):
                samples = [incomplete.pop(key) | samples[0]]
                skipped -= 1
            for places in samples:
                row = _row(file, places)
                if row is not None:
                    rows.append(row)
                    continue
                skipped += 1
                if places:
                    incomplete[key] = places
                if len(incomplete) > NEIGHBOURS:
                    del incomplete[next(iter(incomplete))]
    return np.array(rows, INDEX), skipped, complaint


def count_suffixes(path: str) -> collections.Counter[str]:
    """How many members of a tar file have each suffix."""
    with open(path, "rb") as file:
        return collections.Counter(suffix for _, suffix, _ in _scan(file)[0])


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot of its last part: "a/b.c.JPG" -> ("a/b", "c.jpg")."""
    folder, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:20]


def _report(path: Path) -> dict[str, Any] | None:
    """The report on the index at `path`, None where either is absent or damaged."""
    try:
        report = json.loads(path.with_suffix(".json").read_text())
        whole = path.stat().st_size == report["samples"] * INDEX.itemsize
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if whole else None


def _index_in_parallel(missing: list[tuple[str, Path]]) -> None:
    workers = min(os.cpu_count() or 1, len(missing))
    if workers < 2 or len(missing) < PARALLEL_SHARDS:
        return
    # Spawned: threads would wait for the interpreter lock, and a fork copies those of JAX. SIGTERM
    # may be sent to all processes of a job; what it ends is the main one's business.
    try:
        with concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGTERM, signal.SIG_IGN),
        ) as pool:
            done = pool.map(_index_missing, *zip(*missing, strict=True))
            for _ in tqdm(done, "indexing new shards", len(missing), disable=None):
                pass
    except concurrent.futures.process.BrokenProcessPool:
        log.warning("a process that indexes shards was killed; what it left is indexed here")


def _index_missing(shard: str, path: Path) -> None:
    save_shard_index(path, *index_shard(shard))


def _shard_index(shard: str, path: Path) -> tuple[np.ndarray, int, str]:
    """What `index_shard` returns, from the file at `path`, which is written where it is absent."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return saved["rows"].astype(INDEX), int(saved["skipped"]), str(saved["complaint"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        log.warning("%s is damaged, %s is indexed again", path, shard)
    save_shard_index(path, *index_shard(shard))
    return _shard_index(shard, path)


def _split_repeated(
    members: list[tuple[str, tuple[int, int]]],
) -> list[dict[str, tuple[int, int]]]:
    """The samples in neighbouring members of one key: several, where its suffixes come again.

    Which image belongs to which text is known only where each has all of the suffixes; otherwise
    the samples are empty.
    """
    samples: list[dict[str, tuple[int, int]]] = [{}]
    for suffix, place in members:
        if suffix in samples[-1]:
            samples.append({})
        samples[-1][suffix] = place
    if any(sample.keys() != samples[0].keys() for sample in samples):
        return [{} for _ in samples]
    return samples


def _scan(file: BinaryIO) -> tuple[list[tuple[str, str, tuple[int, int]]], str]:
    """Lists (key, suffix, (offset, size)) of the whole files in a tar, and a complaint or ""."""
    end = os.fstat(file.fileno()).st_size
    members, start = [], 0
    try:
        # Tars that were put one after the other are read as one.
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in iter(tar.next, None):
                    # It would keep them all.
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                    if member.size < 0 or member.offset_data + member.size > end:
                        return members, f"cut within {member.name}"
                    if member.isreg() and member.sparse is None and not _is_hidden(member.name):
                        place = member.offset_data, member.size
                        members.append((*split_name(member.name), place))
                # tarfile takes a header that is cut or damaged for the end of the archive.
                mark = os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset)
                if mark != bytes(tarfile.BLOCKSIZE):
                    return members, "no end-of-archive mark"
                start = _next_block(file, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        return members, f"not a whole, uncompressed tar file ({error})"
    return members, ""


def _is_hidden(name: str) -> bool:
    *folders, last = name.split("/")
    return last.startswith(".") or MACOS_FOLDER in folders


def _next_block(file: BinaryIO, start: int) -> int | None:
    """Where after `start` the first block is that is not zeros, None if there is none."""
    size = 2**10 * tarfile.BLOCKSIZE
    while chunk := os.pread(file.fileno(), size, start):
        if zeros := len(chunk) - len(chunk.lstrip(b"\0")):
            if zeros == len(chunk):
                start += zeros
                continue
            start += zeros - zeros % tarfile.BLOCKSIZE
        return start
    return None


def _row(file: BinaryIO, places: dict[str, tuple[int, int]]) -> tuple | None:
    """A row of INDEX from {suffix: (offset, size)}, None where image, or text and label, lack."""
    image = next((places[suffix] for suffix in IMAGE_SUFFIXES if suffix in places), None)
    captions, labels, description = TEXT_SUFFIXES
    text_offset, text_size = places.get(captions, (0, 0))
    label, is_json = -1, False
    if "cls" in places:
        offset, size = places["cls"]
        digits = os.pread(file.fileno(), min(size, 16), offset).strip()
        label = int(digits) if digits.isdigit() and len(digits) < 10 else -1
    elif captions not in places:
        is_json = labels not in places
        text_offset, text_size = places.get(description if is_json else labels, (0, 0))
    if image is None or (text_size == 0 and label < 0):
        return None
    if image[1] > MAX_IMAGE_BYTES or text_size > MAX_TEXT_BYTES:
        return None
    if is_json and not _has_caption(os.pread(file.fileno(), text_size, text_offset)):
        return None
    return 0, label, image[0], text_offset, image[1], -text_size if is_json else text_size


def _has_caption(data: bytes) -> bool:
    try:
        return bool(captions_of_json(data))
    except ValueError:
        return False
