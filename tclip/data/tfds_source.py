"""Sources from TensorFlow Datasets, read from array_record files without TensorFlow."""

import contextlib
import dataclasses
import fcntl
import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging as absl_logging

from tclip.data.source import Sample, SourceConfig, data_dir
from tclip.processing.bad_sample import BadSample
from tclip.prompts import fill

# For the name of a host to be found, on a slow network too.
NETWORK_SECONDS = 5
# Variables that name a proxy, which then finds the host.
PROXIES = {"http_proxy", "https_proxy", "all_proxy"}

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split of a prepared TFDS data set; see `Source`.

    Attributes:
      full_name: that of TFDS, name/config/version.
      folder: the prepared version folder.
      split: a split of it, slices such as "train[:1000]" included.
      classes: the labels on disk that this split uses; `classnames` are their names in this order.
    """

    name: str
    full_name: str
    folder: str
    split: str
    image_key: str
    label_key: str
    caption_key: str
    classes: tuple[int, ...] = ()
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def fingerprint(self) -> str:
        keys = self.image_key, self.label_key, self.caption_key
        return repr((self.full_name, self.split, len(self), *keys, self.classes, self.templates))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        key = f"{self.name}:{self.split}:{index}"
        image = _lookup(record, self.image_key)
        if not isinstance(image, bytes):
            raise BadSample(f"{key}: feature {self.image_key!r} does not hold one encoded image")
        label = self._labels.get(int(_lookup(record, self.label_key)), -1) if self.label_key else -1
        if self.caption_key:
            texts = np.ravel(np.asarray(_lookup(record, self.caption_key), dtype=object))
            captions = tuple(
                text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
                for text in texts
            )
        else:
            captions = fill(self.templates, self.classnames[label]) if label >= 0 else ()
        return Sample(key, image, captions, label)

    @functools.cached_property
    def _labels(self) -> dict[int, int]:
        return {on_disk: label for label, on_disk in enumerate(self.classes)}

    @functools.cached_property
    def _records(self):
        import tensorflow_datasets as tfds

        decoders = tfds.decode.SkipDecoding()
        for part in reversed(self.image_key.split("/")):
            decoders = {part: decoders}
        return tfds.builder_from_directory(self.folder).as_data_source(
            self.split, decoders=decoders
        )

    def __getstate__(self) -> dict:
        # The open records stay behind: every process opens its own.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def open_shapes(cfg: SourceConfig, config_name: str) -> TfdsSource:
    """Opens a split of `shapes`, rendering the data set first if this version is not there.

    The classes are the seen pairs; in the split "test_unseen" they are all pairs, so that an unseen
    one has to be told from those that training showed.

    Raises:
      ValueError: an unknown size or split.
    """
    from tclip.data import shapes

    if config_name not in ("full", "tiny"):
        raise ValueError(f"unknown data source {cfg.source!r}: expected shapes or shapes:tiny")
    if cfg.split not in shapes.SPLITS:
        raise ValueError(f"shapes has no split {cfg.split!r}; it has {', '.join(shapes.SPLITS)}")
    root = data_dir(cfg)
    builder = shapes.Shapes(config=config_name, data_dir=root, file_format="array_record")
    _prepare(builder, root)
    kinds = shapes.KINDS if cfg.split == "test_unseen" else shapes.SEEN
    return TfdsSource(
        name=cfg.source,
        full_name=builder.info.full_name,
        folder=str(builder.data_dir),
        split=cfg.split,
        image_key="image",
        label_key="label",
        caption_key="captions",
        classes=tuple(shapes.KINDS.index(kind) for kind in kinds),
        classnames=tuple(" ".join(kind) for kind in kinds),
        templates=shapes.TEMPLATES,
    )


def open_tfds(cfg: SourceConfig, name: str) -> TfdsSource:
    """Opens a split of any TFDS data set by name, downloading and preparing it if need be.

    Raises:
      FileNotFoundError: it is absent and cannot be prepared here.
      ValueError: unknown name, split or feature, or a file format without random access.
    """
    import tensorflow_datasets as tfds

    root = data_dir(cfg)
    remedy = (
        f"prepare it where TensorFlow and the internet are (tfds build {name} "
        f"--file_format=array_record --data_dir={root}) and copy that folder here"
    )
    try:
        with _only_errors():
            builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(
            f"TFDS data set {name!r} is neither known to TFDS nor prepared in {root}; check the "
            f"name, or {remedy}"
        ) from None
    if not builder.is_prepared():
        with _only_errors():
            builder = tfds.builder(name, data_dir=root, file_format="array_record")
        # Data sets that download nothing have no such records.
        if builder.url_infos and not has_network():
            raise FileNotFoundError(
                f"TFDS data set {name!r} is not in {root}, and there is no network to download it; "
                f"{remedy}"
            )
        try:
            _prepare(builder, root)
        # Whatever a data set's own download and generation code may raise.
        except Exception as error:
            raise FileNotFoundError(
                f"TFDS data set {name!r} is not in {root} and could not be prepared "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
                f"{remedy}"
            ) from error
        # This builder's own info is that of before, if another process did the work.
        builder = tfds.builder_from_directory(builder.data_dir)
    info = builder.info
    if info.file_format.value != "array_record":
        raise ValueError(
            f"TFDS data set {name!r} in {builder.data_dir} is stored as {info.file_format.value}, "
            f"which has no random access; {remedy}"
        )
    if cfg.split.partition("[")[0] not in info.splits:
        raise ValueError(f"{name!r} has no split {cfg.split!r}; it has {', '.join(info.splits)}")
    for key in filter(None, (cfg.image_key, cfg.caption_key, cfg.label_key)):
        _feature(info.features, key, name)
    classnames = ()
    if cfg.label_key:
        feature = _feature(info.features, cfg.label_key, name)
        if not isinstance(feature, tfds.features.ClassLabel):
            raise ValueError(f"feature {cfg.label_key!r} of {name!r} is not a ClassLabel")
        classnames = tuple(n.replace("_", " ") for n in feature.names)
    elif not cfg.caption_key:
        raise ValueError(f"{name!r}: give a caption_key or a label_key, there is no text otherwise")
    return TfdsSource(
        name=cfg.source,
        full_name=builder.info.full_name,
        folder=str(builder.data_dir),
        split=cfg.split,
        image_key=cfg.image_key,
        label_key=cfg.label_key,
        caption_key=cfg.caption_key,
        classes=tuple(range(len(classnames))),
        classnames=classnames,
        templates=cfg.templates if classnames else (),
    )


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Silences warnings of TFDS about a folder that is not there; what follows says so itself."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def has_network() -> bool:
    """Whether a host of the internet can be found; TFDS itself would try for minutes."""
    if not PROXIES.isdisjoint(map(str.lower, os.environ)):
        return True
    asked = threading.Thread(target=_find_host, args=(found := [],), daemon=True)
    asked.start()
    asked.join(NETWORK_SECONDS)
    return bool(found)


def _find_host(found: list[bool]) -> None:
    with contextlib.suppress(OSError):
        socket.getaddrinfo("storage.googleapis.com", 443)
        found.append(True)


def _prepare(builder, root: Path) -> None:
    """Prepares a data set once, however many processes ask for it at the same time."""
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f".{builder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A process that waited for the lock finds the work done.
        if not Path(builder.data_dir, "dataset_info.json").exists():
            log.info("preparing %s in %s", builder.info.full_name, builder.data_dir)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            builder.download_and_prepare()


def _lookup(record, key: str):
    for part in key.split("/"):
        record = record[part]
    return record


def _feature(features, key: str, name: str):
    for part in key.split("/"):
        inner = getattr(features, "feature", features)  # a Sequence of a dict
        if not hasattr(inner, "keys") or part not in inner:
            raise ValueError(f"{name!r} has no feature {key!r}; it has {', '.join(inner)}")
        features = inner[part]
    return features
