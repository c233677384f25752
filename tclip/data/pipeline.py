"""From a source to batches: Grain pipelines that are deterministic in (seed, position)."""

import dataclasses
import functools
import logging

import grain
import numpy as np
from absl import flags

from tclip.data.source import BadSample, Source
from tclip.data.tokenizer import Tokenizer
from tclip.data.transforms import PreprocessConfig, augment, decode_image, preprocess

log = logging.getLogger(__name__)

# So many unusable samples in a row mean that something else is wrong.
MAX_CONSECUTIVE_BAD = 100
# Far beyond any run, and small enough for the signed 64-bit arithmetic below it.
ENDLESS = 2**60
# Threads without workers: image decoding and resizing release the interpreter lock.
THREADS = 2


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """The endless stream of training examples, as one process sees it, with random access.

    Row r of global batch b is position b * batch_size + r of a stream that shuffles the source anew
    in every epoch; an example depends on (seed, position) and on nothing else. Process i of n owns
    the rows i * batch_size / n up to (i + 1) * batch_size / n of every global batch.
    """

    source: Source
    tokenizer: Tokenizer
    preprocess_cfg: PreprocessConfig
    batch_size: int
    seed: int
    shard_index: int
    shard_count: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, local: int) -> dict[str, np.ndarray]:
        rows = self.batch_size // self.shard_count
        batch, row = divmod(local, rows)
        position = batch * self.batch_size + self.shard_index * rows + row
        epoch, offset = divmod(position, len(self.source))
        index = grain.experimental.index_shuffle(
            offset, max_index=len(self.source) - 1, seed=_epoch_seed(self.seed, epoch), rounds=4
        )
        rng = np.random.default_rng((self.seed, position))
        for skipped in range(MAX_CONSECUTIVE_BAD):
            try:
                image, tokens = self._example((index + skipped) % len(self.source), rng)
            except BadSample as error:
                last = error
                log.info("skipped: %s", error)
                continue
            return {"images": image, "tokens": tokens, "skipped": np.int32(skipped)}
        raise ValueError(
            f"{MAX_CONSECUTIVE_BAD} unusable samples in a row in {self.source.name!r} from number "
            f"{index}; the last: {last}"
        )

    def _example(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sample = self.source[index]
        captions = [caption for caption in sample.captions if caption.strip()]
        if not captions:
            raise BadSample(f"{sample.key}: no caption")
        caption = captions[int(rng.integers(len(captions)))]
        try:
            (image,) = augment(sample.image, [self.preprocess_cfg], rng)
        except BadSample as error:
            raise BadSample(f"{sample.key}: {error}") from None
        return image, self.tokenizer.encode([caption])[0]


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The samples in order, followed by padding up to a multiple of the batch size."""

    source: Source
    preprocess_cfg: PreprocessConfig
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size) * self.batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
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
    tokenizer: Tokenizer,
    preprocess_cfg: PreprocessConfig,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.IterDataset:
    """Endless shuffled training batches.

    The data is the same for every `num_workers` and, put together, for every `shard_count`. The
    iterator's get_state and set_state continue exactly where it was, with the same num_workers.

    Args:
      source: samples; an unusable one gives way to the next usable one of the source.
      tokenizer: encodes one caption of each sample, chosen anew in every epoch.
      preprocess_cfg: crop, flip, normalisation.
      batch_size: global batch size, over all processes.
      seed: non-negative; of the order, the crops and the choice of captions.
      num_workers: worker processes; 0 uses threads of this process.
      shard_index, shard_count: this process and the number of processes that read the data.

    Returns:
      Batches of B = batch_size / shard_count rows: "images" float32 [B, S, S, 3], "tokens" int32
      [B, L], and "skipped" int32 [B], the unusable samples met on the way to each row.

    Raises:
      ValueError: an empty source, a negative seed, or a batch that does not divide by shard_count.
        When iterated: MAX_CONSECUTIVE_BAD unusable samples in a row.
    """
    if len(source) == 0:
        raise ValueError(f"the data source {source.name!r} is empty")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if batch_size < 1 or batch_size % shard_count:
        raise ValueError(f"batch_size {batch_size} does not divide by {shard_count} processes")
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index must be in [0, {shard_count}), got {shard_index}")
    examples = TrainExamples(
        source, tokenizer, preprocess_cfg, batch_size, seed, shard_index, shard_count
    )
    return _batches(examples, batch_size // shard_count, num_workers)


def eval_batches(
    source: Source, preprocess_cfg: PreprocessConfig, batch_size: int, num_workers: int = 0
) -> grain.IterDataset:
    """Every sample once, in order.

    Returns:
      Batches of "images" float32 [B, S, S, 3], "labels" int32 [B], "index" int32 [B] (into the
      source), "valid" bool [B]: False for unusable samples and for the padding of the last batch.
    """
    return _batches(EvalExamples(source, preprocess_cfg, batch_size), batch_size, num_workers)


def _batches(examples, batch_size: int, num_workers: int) -> grain.IterDataset:
    batches = grain.MapDataset.source(examples).batch(batch_size)
    if num_workers == 0:
        return batches.to_iter_dataset(grain.ReadOptions(THREADS, 2 * THREADS))
    # Grain reads its absl flags when it starts workers; outside of absl.app nobody has parsed them.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # Workers take whole batches in turn, so the order does not depend on their number.
    return batches.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(
        grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
    )


def _decode(sample):
    try:
        return decode_image(sample.image)
    except BadSample as error:
        raise BadSample(f"{sample.key}: {error}") from None


@functools.lru_cache(maxsize=4)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
