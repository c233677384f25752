"""Texts and classes by their embeddings: prompts, and the prompt ensemble of a class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from tclip.processing import ImageInput, PreprocessConfig, Tokenizer

if TYPE_CHECKING:
    from tclip.models import CLIPConfig

# Texts between two steps of the progress bar; what is encoded at a time is up to the model.
TEXTS = 1024


class Encoder(Protocol):
    """A CLIP to classify, retrieve and be evaluated with: `tclip.inference.Model`, and
    `tclip.engine.Model`, which needs no jax."""

    @property
    def config(self) -> "CLIPConfig": ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def preprocess(self) -> PreprocessConfig: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of architecture and weights."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor that turns cosines into logits."""
        ...

    def encode_image(self, images: np.ndarray | Sequence[ImageInput]) -> np.ndarray:
        """Unit embeddings, float32 [B, D]."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings, float32 [B, D]."""
        ...

    def batch_size(self, count: int) -> int:
        """The size at which a batch that begins with `count` rows is encoded."""
        ...

    def local_rows(self, size: int) -> Sequence[int]:
        """The rows of a batch of `size` that this process has to bring."""
        ...

    def encode_image_rows(self, pixels: np.ndarray, size: int) -> np.ndarray:
        """Unit embeddings of a whole batch, float32 [size, D], from this process's rows of it."""
        ...


def fill(templates: tuple[str, ...], classname: str) -> tuple[str, ...]:
    """Puts the class name in the place of "{}" in every template."""
    return tuple(template.replace("{}", classname) for template in templates)


def class_embeddings(
    model: Encoder, classnames: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Unit embeddings of the classes, float32 [C, D].

    A class is the renormalised mean of the unit embeddings of its name in every template (the
    prompt ensemble of CLIP, arXiv 2103.00020, section 3.1.4).

    Raises:
      ValueError: no class, no template, or embeddings that are not finite.
    """
    if not classnames or not templates:
        raise ValueError("zero-shot classification needs class names and templates")
    prompts = [prompt for name in classnames for prompt in fill(tuple(templates), name)]
    prompts_PxD = embed_texts(model, "class names", prompts)
    mean_CxD = prompts_PxD.reshape(len(classnames), len(templates), -1).mean(axis=1)
    norm_Cx1 = np.linalg.norm(mean_CxD, axis=1, keepdims=True)
    return mean_CxD / np.where(norm_Cx1 == 0, 1, norm_Cx1)


def embed_texts(model: Encoder, what: str, texts: Sequence[str]) -> np.ndarray:
    """Unit embeddings of the texts, float32 [T, D]; `what` names them in messages.

    Raises:
      ValueError: the model's embeddings are not finite.
    """
    parts = []
    with tqdm(total=len(texts), desc=what, disable=None) as bar:
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            parts.append(model.encode_text(part))
            bar.update(len(part))
    embeddings_TxD = np.concatenate(parts)
    check_finite(what, embeddings_TxD)
    return embeddings_TxD


def check_finite(what: str, embeddings_NxD: np.ndarray) -> None:
    """Raises ValueError where a comparison of scores would be meaningless."""
    if not np.isfinite(embeddings_NxD).all():
        raise ValueError(f"the model's embeddings of {what} hold NaN or infinity")
