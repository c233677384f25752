"""Which losses a run adds up, and how they are computed."""

import dataclasses
from typing import Annotated

from tclip.config import COUNT, NOT_NEGATIVE, POSITIVE

CONTRASTIVE = ("softmax", "sigmoid")
NEGATIVES = ("gathered", "chunked", "ring")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which terms to add up, and their weights; a term of weight zero is not computed.

    Attributes:
      contrastive: "softmax" (CLIP) or "sigmoid" (SigLIP; the model needs `logit_bias`).
      contrastive_weight: lambda_0.
      similarity_weight: lambda_1, of `SimilarityKL`.
      temperature: of `SimilarityKL`, on top of the models' own logit scales.
      logits_weight: of `LogitsMSE`, the un-normalised form of `SimilarityKL`.
      embedding_weight: lambda_2, of `embedding_l2`.
      hidden_weight: of `hidden_mse`.
      hidden_layers: pairs (student layer, teacher layer) of the image towers, 0-based.
      text_hidden_layers: the same of the text towers, which may have other depths.
      negatives: how a sample meets those of the other devices. B samples on n devices make logits
        [B/n, B] on each; all three give the same loss of the whole batch.
        "gathered": all of them at once, kept for the gradient; the fewest operations.
        "chunked": [B/n, chunk_size] at a time, computed again for the gradient.
        "ring": [B/n, B/n] at a time, likewise, with texts that travel from device to device.
      chunk_size: texts at a time of "chunked".
    """

    contrastive: str = "softmax"
    contrastive_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    similarity_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    temperature: Annotated[float, POSITIVE] = 1.0
    logits_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    embedding_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    hidden_weight: Annotated[float, NOT_NEGATIVE] = 0.0
    hidden_layers: tuple[tuple[int, int], ...] = ()
    text_hidden_layers: tuple[tuple[int, int], ...] = ()
    negatives: str = "gathered"
    chunk_size: Annotated[int, COUNT] = 1024

    def __post_init__(self):
        for name, known in (("contrastive", CONTRASTIVE), ("negatives", NEGATIVES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"loss.{name}={getattr(self, name)!r}: choose from {', '.join(known)}"
                )
        for field in dataclasses.fields(self):
            if field.name.endswith("_weight") and getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} {getattr(self, field.name)} is negative")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not positive")
        if self.chunk_size < 1:
            raise ValueError(f"loss.chunk_size={self.chunk_size}: must be at least 1")
        if (self.hidden_weight > 0) != any(self.hidden_pairs.values()):
            raise ValueError(
                "hidden_weight and hidden_layers or text_hidden_layers have to be given together"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        weights = self.similarity_weight, self.logits_weight, self.embedding_weight
        return any(weight > 0 for weight in (*weights, self.hidden_weight))

    @property
    def hidden_pairs(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Pairs (student layer, teacher layer) of the towers "image" and "text"."""
        return {"image": self.hidden_layers, "text": self.text_hidden_layers}
