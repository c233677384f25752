"""What a data set is to the rest of tclip: numbered samples of encoded bytes and captions."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from tclip.config import POSITIVE

# Between the sources of a mixture, as in open_clip's --train-data.
SEPARATOR = "::"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One encoded image with its captions.

    Attributes:
      key: identifies the sample within its source.
      image: the bytes of an image file (JPEG, PNG, WebP, GIF or BMP).
      captions: every caption of the image.
      label: index into the source's `classnames`; -1 where the sample has no class.
      labels: of an image that may show several classes, 0 or 1 for each; else empty.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    label: int = -1
    labels: tuple[int, ...] = ()


@runtime_checkable
class Source(Protocol):
    """A picklable data set with random access; handles to files are opened where it is used.

    Attributes:
      name: for messages.
      classnames: the classes that labels index, empty when there are none.
      templates: zero-shot prompts with "{}" for the class name, empty when there are none.
      left_out: samples that could not even be numbered, such as images without a caption; what a
        damaged file hides is not known, and not counted.
      fingerprint: changes whenever number i may have become another sample.
    """

    @property
    def name(self) -> str: ...

    @property
    def classnames(self) -> tuple[str, ...]: ...

    @property
    def templates(self) -> tuple[str, ...]: ...

    @property
    def left_out(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Returns a sample; raises BadSample when it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which data set to read.

    Attributes:
      source: "shapes" or "shapes:tiny" (rendered scenes), "tfds:NAME" or "tfds:NAME/CONFIG",
        "wds:PATTERN" (tar shards by glob or {00000..00009}) or "wds:DIR" (CLIP_benchmark layout);
        to train on, also several of these joined by "::".
      split: name of the split; WebDataset patterns have none and ignore it.
      data_dir: where data is prepared and indices are kept; by default $TCLIP_DATA_DIR, else
        ~/.cache/tclip.
      image_key, label_key, caption_key: features of a TFDS data set, nested ones as "a/b". Captions
        come from `templates` when caption_key is empty; an empty label_key means no classes.
      templates: prompts with "{}" for the class name; `shapes` and CLIP_benchmark bring their own.
      caption_lines: whether every line of a caption file in tar shards is a caption, as in Flickr8k
        and CLIP_benchmark, or all are one, as in what img2dataset writes.
      weights: of several sources, how often each is drawn relative to the others, rounded to
        thousandths of the sum; () draws every sample equally often.
    """

    source: str
    split: str = "train"
    data_dir: str = ""
    image_key: str = "image"
    label_key: str = "label"
    caption_key: str = ""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    caption_lines: bool = True
    weights: Annotated[tuple[float, ...], POSITIVE] = ()

    def __post_init__(self):
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the class name")


def data_dir(cfg: SourceConfig) -> Path:
    """The folder for prepared data and indices (see SourceConfig.data_dir); made if missing.

    Raises:
      OSError: it cannot be made.
    """
    chosen = cfg.data_dir or os.environ.get("TCLIP_DATA_DIR") or "~/.cache/tclip"
    folder = os.path.expanduser(chosen)
    remedy = "set data_dir or $TCLIP_DATA_DIR to a folder for prepared data and indices"
    if folder.startswith("~"):
        raise FileNotFoundError(f"there is no home folder for {chosen}: {remedy}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}): {remedy}") from None
    return Path(folder).absolute()
