"""A packed CLIP that embeds images and texts by the C library; needs numpy, and nothing of jax."""

import ctypes
import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tclip.engine.library import ACTIVATIONS, IMAGES, TEXTS, Info, call, library
from tclip.files import read_json_object

if TYPE_CHECKING:
    from tclip.models import CLIPConfig
    from tclip.processing import ImageInput, PreprocessConfig, Tokenizer

# Files of a packed folder, see tclip.packed.
CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, PREPROCESSOR = "tokenizer.json", "preprocessor_config.json"
# Images that are decoded, and texts that are tokenised, before they are encoded together.
MAX_BATCH = 128


class Model:
    """A CLIP with its tokenizer and preprocessing, as `tclip.inference.Model` without parameters.

    Attributes:
      path: the packed folder; its weights are mapped and must not change while the model lives.
      activations: "native" or "int8", what ternary kernels multiply.
      tokenizer: texts to ids.
      preprocess: encoded images to pixels.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        activations: str,
        tokenizer: "Tokenizer",
        preprocess: "PreprocessConfig",
    ):
        """Opens the folder; ValueError if a file is damaged or does not fit the others."""
        from tclip.processing import check_inputs

        handle = ctypes.c_void_p()
        call("tclip_open", os.fsencode(path), IMAGES | TEXTS, ctypes.byref(handle))
        self.path = Path(path)
        self.activations, self.tokenizer, self.preprocess = activations, tokenizer, preprocess
        self._handle = handle
        self._finalizer = weakref.finalize(self, library().tclip_close, handle)
        self._info = info = Info()
        library().tclip_get_info(handle, ctypes.byref(info))
        check_inputs(
            preprocess,
            tokenizer,
            image_size=info.image_size,
            context_length=info.context_length,
            vocab_size=info.vocab_size,
            eot_token_id=None if info.eot_token_id < 0 else info.eot_token_id,
        )

    @property
    def config(self) -> "CLIPConfig":
        """The architecture. To ask for it imports jax, which nothing else of this model needs."""
        from tclip.config import build
        from tclip.models import CLIPConfig

        file = self.path / CONFIG
        return build(CLIPConfig, read_json_object(file)["model"], f"{file}: model")

    @property
    def logit_scale(self) -> float:
        """The factor that turns cosines into logits."""
        return self._info.logit_scale

    @property
    def fingerprint(self) -> str:
        """SHA-256 of architecture, weights and activations."""
        description = read_json_object(self.path / CONFIG)
        parts = description["model"], description["sha256"][WEIGHTS], self.activations
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_image(self, images: "np.ndarray | Sequence[ImageInput]") -> np.ndarray:
        """Unit embeddings, float32 [B, D].

        Args:
          images: preprocessed pixels, float [B, S, S, 3], or a list of paths, encoded bytes and
            PIL images.

        Raises:
          ValueError: an image cannot be decoded, or the array has another shape or dtype.
          FileNotFoundError: a path does not exist.
        """
        from tclip.processing import ImageInput, read_pixels

        if isinstance(images, ImageInput):
            raise ValueError("encode_image: expected a list of images, got a single one")
        if hasattr(images, "shape"):
            return self._encode_pixels(np.asarray(images))
        outputs = [np.zeros((0, self._info.embed_dim), np.float32)]
        for start in range(0, len(images), MAX_BATCH):
            part = images[start : start + MAX_BATCH]
            pixels = np.stack([read_pixels(image, self.preprocess) for image in part])
            outputs.append(self._encode_pixels(pixels))
        return np.concatenate(outputs)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings of the texts, float32 [B, D]."""
        if isinstance(texts, str):
            raise ValueError("encode_text: expected a list of texts, got a single string")
        return self.encode_tokens(self.tokenizer.encode(list(texts)))

    def encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Unit embeddings, float32 [B, D], of the tokenizer's ids, integers [B, L]."""
        tokens = np.ascontiguousarray(tokens, np.int32)
        return self._encode("tclip_encode_texts", tokens, *tokens.shape)

    def batch_size(self, count: int) -> int:
        """The size at which a batch that begins with `count` rows is encoded."""
        return min(count, MAX_BATCH)

    def local_rows(self, size: int) -> Sequence[int]:
        """The rows of a batch of `size` that this process has to bring: all."""
        return range(size)

    def encode_image_rows(self, pixels: np.ndarray, size: int) -> np.ndarray:
        """Unit embeddings, float32 [size, D], of float32 pixels [size, S, S, 3]."""
        del size
        return self._encode_pixels(pixels)

    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        size = self._info.image_size
        if pixels.shape[1:] != (size, size, 3) or not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(
                f"encode_image: expected preprocessed float pixels [B, {size}, {size}, 3], "
                f"got {pixels.dtype}{list(pixels.shape)}"
            )
        pixels = np.ascontiguousarray(pixels, np.float32)
        return self._encode("tclip_encode_images", pixels, len(pixels))

    def _encode(self, function: str, inputs: np.ndarray, *sizes: int) -> np.ndarray:
        embeddings = np.zeros((len(inputs), self._info.embed_dim), np.float32)
        call(
            function,
            self._handle,
            inputs.ctypes.data,
            *sizes,
            ACTIVATIONS[self.activations],
            embeddings.ctypes.data,
        )
        return embeddings


def load(path: str | os.PathLike[str], activations: str | None = None) -> Model:
    """Loads a packed folder.

    Args:
      activations: "native" (the default), or "int8", which is much faster: what ternary kernels
        multiply is rounded to 8 bits, token by token.

    Raises:
      OSError: the engine was not built.
      FileNotFoundError: a file of the folder is missing.
      ValueError: a file was changed after export, or does not fit the architecture.
    """
    from tclip.processing import load_preprocess, load_tokenizer

    if activations not in (None, *ACTIVATIONS):
        raise ValueError(f"unknown activations {activations!r}; use 'native' or 'int8'")
    library()
    path = Path(path)
    context = _check_files(path)
    tokenizer = load_tokenizer(path / TOKENIZER, context)
    preprocess = load_preprocess(path / PREPROCESSOR)
    return Model(path, activations or "native", tokenizer, preprocess)


def _check_files(path: Path) -> int:
    """Compares the files with the SHA-256 of config.json; returns the context length it names."""
    description = read_json_object(path / CONFIG)
    digests, model = description.get("sha256"), description.get("model")
    text = model.get("text", {}) if isinstance(model, dict) else None
    if not isinstance(digests, dict) or not isinstance(text, dict):
        raise ValueError(f"{path / CONFIG}: model or sha256 is missing or of the wrong type")
    for name in (WEIGHTS, TOKENIZER, PREPROCESSOR):
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; export the model again")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digests.get(name):
                raise ValueError(f"{file}: content differs from the SHA-256 in {CONFIG}")
    context = text.get("context_length", 77)
    if type(context) is not int or context < 1:
        raise ValueError(f"{path / CONFIG}: model.text.context_length is no positive integer")
    return context
