"""Running a teacher once over augmented training data, to train from its embeddings afterwards."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tclip.data import Mixture, View, open_mixture
from tclip.data.pipeline import Example, batches, draw
from tclip.inference import Model
from tclip.parallel.processes import folder_of_all, main_first, wait_for_all
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh, replicated
from tclip.processing import BadSample
from tclip.run.experiment import Experiment
from tclip.run.state import Params
from tclip.train.step import NO_LAYERS, Batch, forward
from tclip.train.teacher import cache_header, load_teacher, teacher_crops
from tclip.train.teacher_cache import (
    HEADER,
    CacheHeader,
    check_same,
    has_shard,
    read_header,
    save_shard,
    shard_path,
    shard_shape,
    write_header,
)

# Work that a killed run repeats, and memory: 100 MB a file at 768 dimensions.
SHARD_SIZE = 2**15

logger = logging.getLogger(__name__)


def cache_teacher(
    experiment: Experiment,
    out: str | Path,
    augmentations: int,
    shard_size: int = SHARD_SIZE,
) -> dict[str, int]:
    """Stores the teacher's embeddings of every training sample, `augmentations` times augmented.

    Every process makes its share of the files, and those that are whole are not made again.

    Args:
      experiment: a distillation run: its data, seed, crops and teacher are those of the cache.
      out: folder, made if missing.
      augmentations: at least one; training takes them in turn.
      shard_size: samples a file.

    Returns:
      "embeddings" stored and samples "skipped" as unusable, by this process in this run.

    Raises:
      FolderInUseError: another program fills `out`.
      ValueError: no teacher, or `out` holds a cache of something else.
      FileNotFoundError: the data or the teacher is missing.
    """
    if augmentations < 1:
        raise ValueError(f"augmentations={augmentations}: must be at least 1")
    out = Path(out).absolute()
    with folder_of_all(out):
        return _fill(experiment, out, augmentations, shard_size)


def _fill(experiment: Experiment, out: Path, augmentations: int, shard_size: int) -> dict[str, int]:
    teacher = load_teacher(experiment)
    if teacher is None:
        raise ValueError("nothing to cache: set teacher.path")
    with main_first("training data"):
        data = open_mixture(experiment.train_data)
    header = cache_header(experiment, teacher, data, augmentations, shard_size)
    with main_first("cache"):
        out.mkdir(parents=True, exist_ok=True)
        if (out / HEADER).exists():
            check_same(out, read_header(out), header)
        else:
            write_header(out, header)
    size = 4 * header.embed_dim * header.samples * augmentations
    logger.info("%s: %.1f GB when it is whole", out, size / 1e9)
    files = [(a, shard) for a in range(augmentations) for shard in range(header.shards)]
    todo = [
        (a, shard)
        for a, shard in files[jax.process_index() :: jax.process_count()]
        if not has_shard(shard_path(out, a, shard), header, shard)
    ]
    total = sum(shard_shape(header, shard)[0] for _, shard in todo)
    view = View(teacher_crops(experiment, teacher), teacher.tokenizer)
    embed = make_embed(teacher)
    skipped = 0
    with tqdm(total=total, desc="teacher's embeddings", disable=None) as bar:
        for done, (augmentation, shard) in enumerate(todo, start=1):
            examples = ShardExamples(data, view, header, augmentation, shard)
            embeddings_Nx2xD = embed_shard(examples, embed, experiment, bar)
            save_shard(shard_path(out, augmentation, shard), embeddings_Nx2xD)
            skipped += int(np.isnan(embeddings_Nx2xD[:, 0, 0]).sum())
            logger.info("file %d of %d, %d samples skipped so far", done, len(todo), skipped)
    wait_for_all("whole cache")
    return {"embeddings": total, "skipped": skipped}


@dataclass(frozen=True)
class ShardExamples:
    """The samples of one file of a cache, augmented, as the teacher sees them."""

    data: Mixture
    view: View
    header: CacheHeader
    augmentation: int
    shard: int

    def __len__(self) -> int:
        return shard_shape(self.header, self.shard)[0]

    def __getitem__(self, row: int) -> Example:
        number = self.shard * self.header.shard_size + row
        identity = self.header.seed, self.augmentation, number
        pixels, tokenizers = {"images": self.view.preprocess}, {"tokens": self.view.tokenizer}
        try:
            example = draw(self.data[number], pixels, tokenizers, identity)
            return example | {"valid": np.bool_(True)}
        except BadSample as error:
            logger.info("skipped: %s", error)
        side, length = self.view.preprocess.image_size, self.view.tokenizer.context_length
        return {
            "images": np.zeros((side, side, 3), np.float32),
            "tokens": np.zeros(length, np.int32),
            "valid": np.bool_(False),
        }


def make_embed(teacher: Model) -> Callable[[Example], jax.Array]:
    """Returns a function from a batch of images and tokens, split over this process's devices, to
    unit embeddings, bfloat16 [B, 2, D]."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    sharding = batch_sharding(mesh)
    params = jax.device_put(teacher.params, replicated(mesh))

    @jax.jit
    def embed(params: Params, batch: Batch) -> jax.Array:
        outputs = forward(teacher.config, params, batch, NO_LAYERS, sharding)
        embeddings_Bx2xD = jnp.stack([outputs.image, outputs.text], axis=1).astype(jnp.float32)
        norm_Bx2x1 = jnp.linalg.norm(embeddings_Bx2xD, axis=-1, keepdims=True)
        return (embeddings_Bx2xD / norm_Bx2x1).astype(jnp.bfloat16)

    return lambda batch: embed(params, jax.device_put(batch, sharding))


def embed_shard(
    examples: ShardExamples,
    embed: Callable[[Example], jax.Array],
    experiment: Experiment,
    bar: tqdm,
) -> np.ndarray:
    """Returns bfloat16 [N, 2, D], NaN for samples that cannot be used.

    Raises:
      ValueError: the teacher's embeddings of a usable sample are not finite.
    """
    devices = jax.local_device_count()
    size = -(-experiment.eval.batch_size // devices) * devices
    parts = []
    for batch in batches(examples, size, experiment.train.num_workers):
        valid_B = batch.pop("valid")
        rows = len(valid_B)
        # Every batch is of the size that is compiled.
        padded: Example = {
            k: np.pad(x, [(0, size - rows)] + [(0, 0)] * (x.ndim - 1)) for k, x in batch.items()
        }
        embeddings_Bx2xD = np.array(embed(padded))[:rows]
        if not np.isfinite(embeddings_Bx2xD[valid_B].astype(np.float32)).all():
            raise ValueError("the teacher's embeddings hold NaN or infinity")
        embeddings_Bx2xD[~valid_B] = np.nan
        parts.append(embeddings_Bx2xD)
        bar.update(rows)
    return np.concatenate(parts)
