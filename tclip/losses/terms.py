"""The losses of pairs, each as a loss of a row of logits that depends on a few sums over it.

Such a loss can be computed from parts of the row, one after the other or on several devices. A term
is the mean over all rows, and over both directions, image to text and back.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tclip.losses.config import LossConfig
from tclip.losses.logits import Block
from tclip.losses.partial_sums import Scaled, exp_sum


class Term(Protocol):
    """A loss of the rows of the logits."""

    def sums(self, block: Block) -> Any:
        """What of R rows has to be summed over all columns: a tree of `sums` with leaves [R]."""
        ...

    def losses(self, sums: Any) -> jax.Array:
        """The losses [R] of the rows, from their sums over all columns."""
        ...

    def gradient(self, block: Block, sums: Any) -> jax.Array:
        """Derivatives [R, C] of the rows' losses with respect to the student's logits.

        Args:
          block: any of the columns.
          sums: over all columns.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SoftmaxContrastive:
    """Cross-entropy of CLIP (arXiv 2103.00020, figure 3).

    The target of an image is spread evenly over the texts that equal its caption, and the other way
    round.
    """

    def sums(self, block: Block) -> Any:
        positive = jnp.sum(jnp.where(block.positive, block.student, 0.0), axis=-1)
        count = jnp.sum(block.positive, axis=-1, dtype=jnp.float32)
        return exp_sum(block.student), positive, count

    def losses(self, sums: Any) -> jax.Array:
        total, positive, count = sums
        # In this order, for the first difference is of numbers of like size.
        return (total.exponent - positive / count) + jnp.log(total.value)

    def gradient(self, block: Block, sums: Any) -> jax.Array:
        total, _, count = sums
        return _softmax(block.student, total) - block.positive / count[:, None]


@dataclasses.dataclass(frozen=True)
class SigmoidContrastive:
    """Every pair a binary question, summed over texts (SigLIP, arXiv 2303.15343).

    Pairs with equal captions are positive.
    """

    def sums(self, block: Block) -> Any:
        return jnp.sum(jax.nn.softplus(-self._signs(block) * block.student), axis=-1)

    def losses(self, sums: Any) -> jax.Array:
        return sums

    def gradient(self, block: Block, sums: Any) -> jax.Array:
        signs_RxC = self._signs(block)
        return -signs_RxC * jax.nn.sigmoid(-signs_RxC * block.student)

    def _signs(self, block: Block) -> jax.Array:
        return jnp.where(block.positive, 1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class SimilarityKL:
    """KL(teacher || student) of the softmax over a row of the logits.

    "Contrastive relational distillation" of CLIP-KD (arXiv 2307.12732). Logits, each with its
    model's own scale, are divided by the temperature, and the loss is multiplied by its square, so
    that the size of the gradient hardly depends on it (Hinton et al., arXiv 1503.02531, section 2).
    """

    temperature: float

    def sums(self, block: Block) -> Any:
        student, teacher = self._cooled(block)
        return exp_sum(student), exp_sum(teacher), exp_sum(teacher, teacher - student)

    def losses(self, sums: Any) -> jax.Array:
        student, teacher, difference = sums
        log_ratio = (student.exponent - teacher.exponent) + jnp.log(student.value / teacher.value)
        return self.temperature**2 * (difference.value / teacher.value + log_ratio)

    def gradient(self, block: Block, sums: Any) -> jax.Array:
        student, teacher = self._cooled(block)
        return self.temperature * (_softmax(student, sums[0]) - _softmax(teacher, sums[1]))

    def _cooled(self, block: Block) -> tuple[jax.Array, jax.Array]:
        return block.student / self.temperature, _teacher(block) / self.temperature


@dataclasses.dataclass(frozen=True)
class LogitsMSE:
    """Mean squared difference of the logits (scaled and biased cosines) over all pairs."""

    batch_size: int

    def sums(self, block: Block) -> Any:
        return jnp.sum(jnp.square(block.student - _teacher(block)), axis=-1)

    def losses(self, sums: Any) -> jax.Array:
        return sums / self.batch_size

    def gradient(self, block: Block, sums: Any) -> jax.Array:
        return 2 / self.batch_size * (block.student - _teacher(block))


def pairwise_terms(config: LossConfig, batch_size: int) -> dict[str, Term]:
    """The terms of the config that compare every image with every text, by name."""
    softmax = config.contrastive == "softmax"
    terms = {
        "contrastive": (
            config.contrastive_weight,
            SoftmaxContrastive() if softmax else SigmoidContrastive(),
        ),
        "similarity_kl": (config.similarity_weight, SimilarityKL(config.temperature)),
        "logits_mse": (config.logits_weight, LogitsMSE(batch_size)),
    }
    return {name: term for name, (weight, term) in terms.items() if weight > 0}


def needs_teacher(config: LossConfig) -> bool:
    """Whether any of the pairwise terms compares with the teacher's logits."""
    return config.similarity_weight > 0 or config.logits_weight > 0


def _teacher(block: Block) -> jax.Array:
    if block.teacher is None:
        raise ValueError("this loss compares with a teacher's logits, and there are none")
    return block.teacher


def _softmax(x_RxC: jax.Array, total: Scaled) -> jax.Array:
    """Part of a softmax, of whose denominator it is given the whole."""
    return jnp.exp(x_RxC - total.exponent[:, None]) / total.value[:, None]
