"""A trained CLIP ready to embed images and texts, whatever its weights are."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from tclip.config import to_dict
from tclip.models import CLIP, RUNTIME_KEYS, CLIPConfig, with_layout
from tclip.parallel import processes
from tclip.parallel.sharding import BATCH_AXES, axes_size, replicated
from tclip.processing import (
    ImageInput,
    PreprocessConfig,
    Tokenizer,
    check_inputs,
    read_pixels,
)

# Batches are cut to at most this many rows a device, padded to a power of two: few shapes to
# compile.
MAX_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Model:
    """A CLIP with its tokenizer and preprocessing.

    Attributes:
      config: the architecture.
      params: parameter tree with float, fake-quantised or packed (`TernaryTensor`) leaves.
      tokenizer: texts to ids.
      preprocess: encoded images to pixels.
      sharding: of batches over the mesh that holds `params`, with which every process of a program
        encodes its part of the same images and texts and gets all embeddings; None, for a single
        device, is what everything but training wants.
    """

    config: CLIPConfig
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    sharding: NamedSharding | None = None

    def __post_init__(self):
        text = self.config.text
        check_inputs(
            self.preprocess,
            self.tokenizer,
            image_size=self.config.vision.image_size,
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            eot_token_id=text.eot_token_id if text.pooling == "eot" else None,
        )

    @property
    def logit_scale(self) -> float:
        """The factor that turns cosines into logits."""
        # Not bounded as in training: other models' may lie beyond.
        return float(np.exp(self.params["logit_scale"]))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of architecture and parameters, however they are computed and laid out."""
        config = {k: v for k, v in to_dict(self.config).items() if k not in RUNTIME_KEYS}
        digest = hashlib.sha256(repr(config).encode())
        params = with_layout(self.params, dataclasses.replace(self.config, scan_layers=False))
        for path, leaf in jax.tree.leaves_with_path(params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            # A buffer, though NumPy's types say so from Python 3.12 on only.
            digest.update(np.ascontiguousarray(leaf))  # pyright: ignore[reportArgumentType]
        return digest.hexdigest()

    def encode_image(self, images: np.ndarray | Sequence[ImageInput]) -> np.ndarray:
        """Unit embeddings, float32 [B, D].

        Args:
          images: preprocessed pixels, float [B, S, S, 3], or a list of paths, encoded bytes and
            PIL images.

        Raises:
          ValueError: an image cannot be decoded, or the array has another shape or dtype.
          FileNotFoundError: a path does not exist.
        """
        if isinstance(images, ImageInput):
            raise ValueError("encode_image: expected a list of images, got a single one")
        if not isinstance(images, np.ndarray | jax.Array):
            size = self.config.vision.image_size
            pixels = [read_pixels(image, self.preprocess) for image in images]
            images = np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.float32)
        size = self.config.vision.image_size
        if images.shape[1:] != (size, size, 3) or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"encode_image: expected preprocessed float pixels [B, {size}, {size}, 3], "
                f"got {images.dtype}{list(images.shape)}"
            )
        return self._in_batches(CLIP.encode_image, np.asarray(images, np.float32))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings of the texts, float32 [B, D]."""
        if isinstance(texts, str):
            raise ValueError("encode_text: expected a list of texts, got a single string")
        return self._in_batches(CLIP.encode_text, self.tokenizer.encode(list(texts)))

    def batch_size(self, count: int) -> int:
        """The size at which a batch that begins with `count` rows is encoded."""
        shards = 1 if self.sharding is None else axes_size(self.sharding.mesh, BATCH_AXES)
        rows = min(-(-count // shards), MAX_BATCH)
        return shards << (rows - 1).bit_length()

    def local_rows(self, size: int) -> Sequence[int]:
        """The rows of a batch of `size` that this process has to bring."""
        return range(size) if self.sharding is None else processes.local_rows(self.sharding, size)

    def encode_image_rows(self, pixels: np.ndarray, size: int) -> np.ndarray:
        """Unit embeddings of all images of a batch, float32 [size, D].

        Args:
          pixels: float32 [len(local_rows(size)), S, S, 3], those of this process's rows.
          size: one that `batch_size` gives.
        """
        return self._encode_rows(CLIP.encode_image, pixels, size)

    def _encode_rows(self, method: Callable, local: np.ndarray, size: int) -> np.ndarray:
        if self.sharding is not None:
            local = processes.put_rows(local, size, self.sharding)
        return np.asarray(_encode(self.config, method, self.sharding, self.params, local))

    def _in_batches(self, method: Callable, inputs: np.ndarray) -> np.ndarray:
        outputs = [np.zeros((0, self.config.embed_dim), np.float32)]
        start = 0
        while start < len(inputs):
            size = self.batch_size(len(inputs) - start)
            batch = inputs[start : start + size]
            padded = np.zeros((size, *batch.shape[1:]), batch.dtype)
            padded[: len(batch)] = batch
            local = padded[np.array(self.local_rows(size))]
            outputs.append(self._encode_rows(method, local, size)[: len(batch)])
            start += size
        return np.concatenate(outputs)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(
    config: CLIPConfig,
    method: Callable,
    sharding: NamedSharding | None,
    params: Mapping[str, Any],
    inputs_Bx: jax.Array,
) -> jax.Array:
    embedding_BxD: Any = CLIP(config).apply({"params": params}, inputs_Bx, method=method)
    embedding_BxD = embedding_BxD.astype(jnp.float32)
    norm_Bx1 = jnp.linalg.norm(embedding_BxD, axis=-1, keepdims=True)
    # A zero embedding has no direction and stays zero; NaN stays NaN.
    embedding_BxD = embedding_BxD / jnp.where(norm_Bx1 == 0, 1, norm_Bx1)
    if sharding is None:
        return embedding_BxD
    # Computed where the batch lies, then gathered.
    embedding_BxD = jax.lax.with_sharding_constraint(embedding_BxD, sharding)
    return jax.lax.with_sharding_constraint(embedding_BxD, replicated(sharding.mesh))
