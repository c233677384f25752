"""From a source to batches: Grain pipelines that are deterministic in (seed, position)."""

import dataclasses
import logging
import signal
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import grain
import numpy as np
from absl import flags

from tclip.data.mixture import Mixture, mixture_of
from tclip.data.order import SampleOrder
from tclip.data.source import Sample, Source
from tclip.processing.bad_sample import BadSample
from tclip.processing.tokenizer import Tokenizer
from tclip.processing.transforms import PreprocessConfig, augment, decode_image, preprocess

log = logging.getLogger(__name__)

# So many unusable samples in a row mean that something else is wrong.
MAX_CONSECUTIVE_BAD = 100
# Far beyond any run, and small enough for the signed 64-bit arithmetic below it.
ENDLESS = 2**60
# Threads without workers: image decoding and resizing release the interpreter lock.
THREADS = 2

WORKER_DIED = "Worker process was terminated unexpectedly"

Example = dict[str, np.ndarray | np.generic]


class Examples(Protocol):
    """What `batches` reads: examples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True)
class View:
    """How a model sees a sample: its pixels and its tokens."""

    preprocess: PreprocessConfig
    tokenizer: Tokenizer

    def same_pixels(self, other: "View") -> bool:
        """Whether both turn a crop into the same array."""
        names = "image_size", "mean", "std", "interpolation"
        return all(getattr(self.preprocess, n) == getattr(other.preprocess, n) for n in names)

    def same_tokens(self, other: "View") -> bool:
        """Whether both turn a caption into the same ids."""
        return self.tokenizer.fingerprint == other.tokenizer.fingerprint


class Embeddings(Protocol):
    """A teacher's stored embeddings of augmented samples (see tclip/train/teacher_cache.py).

    Attributes:
      augmentations: how many augmentations of every sample there are.
    """

    @property
    def augmentations(self) -> int: ...

    def at(self, augmentation: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the unit embeddings, float32 [D], of the image and of the caption."""
        ...


def draw(
    sample: Sample,
    pixels: Mapping[str, PreprocessConfig],
    tokenizers: Mapping[str, Tokenizer],
    identity: tuple[int, int, int],
) -> Example:
    """Augments a sample: one crop of the image and one of its captions, each for several models.

    Args:
      pixels: image sizes and normalisations by name; the first one's ranges are drawn from.
      tokenizers: tokenizers by name.
      identity: seed, number of the augmentation, number of the sample; they alone decide.

    Returns:
      An image float32 [S, S, 3] for each name in `pixels`, tokens int32 [L] for each tokenizer.

    Raises:
      BadSample: no caption, or an image that cannot be used.
    """
    rng = np.random.default_rng(identity)
    captions = [caption for caption in sample.captions if caption.strip()]
    if not captions:
        raise BadSample(f"{sample.key}: no caption")
    caption = captions[int(rng.integers(len(captions)))]
    try:
        images = augment(sample.image, list(pixels.values()), rng)
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None
    tokens = [tokenizer.encode([caption])[0] for tokenizer in tokenizers.values()]
    return dict(zip((*pixels, *tokenizers), (*images, *tokens), strict=True))


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """The endless stream of training examples, as one process sees it, with random access.

    Row r of global batch b is position b * batch_size + r of a `SampleOrder`. An example depends on
    the sample and on how often it was seen before, and on nothing else. A process sees its `rows`
    of the batches `first_batch` and on.
    """

    data: Mixture
    order: SampleOrder
    pixels: Mapping[str, PreprocessConfig]
    tokenizers: Mapping[str, Tokenizer]
    embeddings: Embeddings | None
    batch_size: int
    rows: Sequence[int]
    first_batch: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, local: int) -> Example:
        batch, place = divmod(local, len(self.rows))
        position = (self.first_batch + batch) * self.batch_size + self.rows[place]
        epoch, first = self.order.at(position)
        for skipped in range(MAX_CONSECUTIVE_BAD):
            number = (first + skipped) % len(self.data)
            try:
                return self._example(epoch, number) | {"skipped": np.int32(skipped)}
            except BadSample as error:
                last = error
                log.info("skipped: %s", error)
        raise ValueError(
            f"{MAX_CONSECUTIVE_BAD} unusable samples in a row in {self.data.name!r} from number "
            f"{first}; the last: {last}"
        )

    def _example(self, epoch: int, number: int) -> Example:
        augmentation = epoch % self.embeddings.augmentations if self.embeddings else epoch
        identity = self.order.seed, augmentation, number
        example = draw(self.data[number], self.pixels, self.tokenizers, identity)
        if self.embeddings:
            image_D, text_D = self.embeddings.at(augmentation, number)
            example |= {"teacher_image_embeddings": image_D, "teacher_text_embeddings": text_D}
        return example


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The samples in order, as one process sees them: its `rows` of every global batch.

    They are followed by padding up to a whole batch.
    """

    source: Source
    preprocess_cfg: PreprocessConfig
    batch_size: int
    rows: Sequence[int]

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size) * len(self.rows)

    def __getitem__(self, local: int) -> Example:
        batch, place = divmod(local, len(self.rows))
        index = batch * self.batch_size + self.rows[place]
        image, label, valid = None, -1, False
        if index < len(self.source):
            try:
                sample = self.source[index]
                image, label = preprocess(_decode(sample), self.preprocess_cfg), sample.label
                valid = True
            except BadSample as error:
                log.info("skipped: %s", error)
        if image is None:
            side = self.preprocess_cfg.image_size
            image = np.zeros((side, side, 3), np.float32)
        return {
            "images": image,
            "labels": np.int32(label),
            "valid": np.bool_(valid),
            "index": np.int32(index),
        }


def train_batches(
    source: Source,
    student: View,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    rows: Sequence[int] | None = None,
    first_batch: int = 0,
    teacher: View | None = None,
    embeddings: Embeddings | None = None,
) -> grain.IterDataset:
    """Endless shuffled training batches.

    A batch depends on its number alone: not on `num_workers`, not on which process reads which of
    its rows, and not on where reading began.

    Args:
      source: samples; an unusable one gives way to the next usable one. Of a `Mixture` they are
        drawn by its weights.
      student: what makes the pixels and tokens; the crop and one caption of each sample are drawn
        anew in every epoch.
      batch_size: global batch size, over all processes.
      seed: non-negative; of the order, the crops and the choice of captions.
      num_workers: worker processes; 0 uses threads of this process.
      rows: those of every global batch that this process reads; all by default.
      first_batch: number of the global batch to begin with.
      teacher: how another model sees the same crop and caption.
      embeddings: of a teacher; the augmentations are then those that it has seen, in turn.

    Returns:
      Batches of B = len(rows) rows, as `tclip.data.batch_layout` says.

    Raises:
      ValueError: an empty source, a negative seed, or rows that the batch does not have. When
        iterated: MAX_CONSECUTIVE_BAD unusable samples in a row.
    """
    data = source if isinstance(source, Mixture) else mixture_of(source)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: must be at least 1")
    rows = range(batch_size) if rows is None else rows
    if not len(rows) or not 0 <= min(rows) <= max(rows) < batch_size:
        raise ValueError(f"rows {rows} are not some of a batch of {batch_size}")
    pixels, tokenizers = {"images": student.preprocess}, {"tokens": student.tokenizer}
    if teacher and not student.same_pixels(teacher):
        pixels["teacher_images"] = teacher.preprocess
    if teacher and not student.same_tokens(teacher):
        tokenizers["teacher_tokens"] = teacher.tokenizer
    examples = TrainExamples(
        data,
        SampleOrder(data.lengths, data.weights, seed),
        pixels,
        tokenizers,
        embeddings,
        batch_size,
        rows,
        first_batch,
    )
    return batches(examples, len(rows), num_workers)


def batch_keys(source: Source, batch_size: int, seed: int, batch: int, most: int) -> list[str]:
    """Keys of the first `most` samples of a global batch of `train_batches`, in order of its rows.

    Each is read for it, one after the other. Images are not decoded: of one that cannot be, the key
    is here, and not that of its substitute.
    """
    data = source if isinstance(source, Mixture) else mixture_of(source)
    order = SampleOrder(data.lengths, data.weights, seed)
    keys = []
    for row in range(min(most, batch_size)):
        _, number = order.at(batch * batch_size + row)
        try:
            keys.append(data[number].key)
        except BadSample as error:
            keys.append(str(error))
    return keys


def eval_batches(
    source: Source,
    preprocess_cfg: PreprocessConfig,
    batch_size: int,
    num_workers: int = 0,
    rows: Sequence[int] | None = None,
) -> grain.IterDataset:
    """Every sample once, in order.

    Args:
      rows: those of every global batch of `batch_size` that this process reads; all by default.

    Returns:
      Batches of B = len(rows): "images" float32 [B, S, S, 3], "labels" int32 [B], "index" int32
      [B] (into the source), "valid" bool [B]: False for unusable samples and for the padding of
      the last batch.
    """
    rows = range(batch_size) if rows is None else rows
    examples = EvalExamples(source, preprocess_cfg, batch_size, rows)
    return batches(examples, len(rows), num_workers)


def batches(examples: Examples, batch_size: int, num_workers: int) -> grain.IterDataset:
    """Reads examples in order, `batch_size` at a time, by threads or by `num_workers` processes."""
    dataset = grain.MapDataset.source(cast(Sequence[Example], examples)).batch(batch_size)
    if num_workers == 0:
        return dataset.to_iter_dataset(grain.ReadOptions(THREADS, 2 * THREADS))
    # Grain reads its absl flags when it starts workers; outside of absl.app nobody has parsed them.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Workers take whole batches in turn, so the order does not depend on their number.
    read = dataset.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2),
        worker_init_fn=_ignore_sigterm,
    )
    return _FromWorkers(read)


class _FromWorkers(grain.IterDataset):
    """What worker processes read; the end of one of them is an error that says what to do."""

    def __iter__(self) -> "_IteratorFromWorkers":
        return _IteratorFromWorkers(iter(self._parent))


class _IteratorFromWorkers(grain.DatasetIterator):
    def __next__(self) -> Example:
        try:
            return next(self._parent)
        except RuntimeError as error:
            # Grain has no class of its own for it.
            if WORKER_DIED not in str(error):
                raise
            raise ChildProcessError(
                "a process that reads data was killed, often for want of memory: start again, with "
                f"fewer workers (train.num_workers, eval.num_workers or --num_workers): {error}"
            ) from error

    def get_state(self) -> dict:
        return self._parent.get_state()

    def set_state(self, state: dict) -> None:
        self._parent.set_state(state)


def _ignore_sigterm(worker: int, workers: int) -> None:
    # They may be sent to all processes of a job; the main one goes on until it has saved.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _decode(sample):
    try:
        return decode_image(sample.image)
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None
