"""Losses of contrastive training and of distillation from a frozen teacher.

The sum is that of TernaryCLIP (arXiv 2510.21879): the student's own contrastive loss, the
distillation of the similarity distribution, the distillation of features. The terms themselves are
those of the papers named at each function. Everything is computed in float32 whatever the inputs,
and a term that has two directions (image to text and back) or two towers is the mean of the two.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which terms to add up, and their weights; a term of weight zero is not computed.

    Attributes:
      contrastive: "softmax" (CLIP) or "sigmoid" (SigLIP; the model needs `logit_bias`).
      contrastive_weight: lambda_0.
      similarity_weight: lambda_1, of `similarity_kl`.
      temperature: of `similarity_kl`, on top of the models' own logit scales.
      logits_weight: of `logits_mse`, the un-normalised form of `similarity_kl`.
      embedding_weight: lambda_2, of `embedding_l2`.
      hidden_weight: of `hidden_mse`.
      hidden_layers: pairs (student layer, teacher layer) of the image towers, 0-based.
      text_hidden_layers: the same of the text towers, which may have other depths.
    """

    contrastive: str = "softmax"
    contrastive_weight: float = 1.0
    similarity_weight: float = 0.0
    temperature: float = 1.0
    logits_weight: float = 0.0
    embedding_weight: float = 0.0
    hidden_weight: float = 0.0
    hidden_layers: tuple[tuple[int, int], ...] = ()
    text_hidden_layers: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.contrastive not in ("softmax", "sigmoid"):
            raise ValueError(
                f"unknown contrastive loss {self.contrastive!r}; choose softmax or sigmoid"
            )
        for field in dataclasses.fields(self):
            if field.name.endswith("_weight") and getattr(self, field.name) < 0:
                raise ValueError(f"{field.name} {getattr(self, field.name)} is negative")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} is not positive")
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model says about a batch of B pairs; any floating dtype.

    Attributes:
      image, text: embeddings [B, D], not normalised.
      logit_scale: scalar factor of the cosines (not its logarithm).
      logit_bias: scalar added to the logits.
      image_hidden, text_hidden: outputs [B, T, W] of the layers in `LossConfig.hidden_pairs`.
    """

    image: jax.Array
    text: jax.Array
    logit_scale: jax.Array | float
    logit_bias: jax.Array | float = 0.0
    image_hidden: tuple[jax.Array, ...] = ()
    text_hidden: tuple[jax.Array, ...] = ()


class Widths(NamedTuple):
    """The widths of a model that distillation has to bridge."""

    embedding: int
    image: int
    text: int


def caption_positives(tokens_BxL: jax.Array) -> jax.Array:
    """Which captions of a batch are equal: booleans [B, B], true on the diagonal."""
    return jnp.all(tokens_BxL[:, None] == tokens_BxL[None], axis=-1)


def contrastive_loss(outputs: Outputs, positives_BxB: jax.Array) -> jax.Array:
    """Symmetric cross-entropy of CLIP (arXiv 2103.00020, figure 3).

    The target of an image is spread evenly over its positive captions, and the other way round.

    Args:
      outputs: embeddings and logit scale.
      positives_BxB: booleans, image i and text j belong together; true on the diagonal.
    """
    logits_BxB = _logits(outputs)
    targets_BxB = positives_BxB.astype(jnp.float32)
    return 0.5 * (
        _cross_entropy(logits_BxB, targets_BxB) + _cross_entropy(logits_BxB.T, targets_BxB.T)
    )


def sigmoid_loss(outputs: Outputs, positives_BxB: jax.Array) -> jax.Array:
    """Every pair a binary question, summed over texts, mean over images (SigLIP, arXiv 2303.15343).

    Arguments as in `contrastive_loss`; uses the logit bias.
    """
    signs_BxB = jnp.where(positives_BxB, 1.0, -1.0)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs_BxB * _logits(outputs)), axis=-1))


def similarity_kl(student: Outputs, teacher: Outputs, temperature: float) -> jax.Array:
    """KL(teacher || student) of the softmax over rows and over columns of the logits.

    "Contrastive relational distillation" of CLIP-KD (arXiv 2307.12732). Logits, each with its
    model's own scale, are divided by the temperature, and the loss is multiplied by its square, so
    that the size of the gradient hardly depends on it (Hinton et al., arXiv 1503.02531, section 2).
    """
    student_BxB, teacher_BxB = _logits(student) / temperature, _logits(teacher) / temperature
    rows, columns = _kl(teacher_BxB, student_BxB), _kl(teacher_BxB.T, student_BxB.T)
    return 0.5 * temperature**2 * (rows + columns)


def logits_mse(student: Outputs, teacher: Outputs) -> jax.Array:
    """Mean squared difference of the logits (scaled and biased cosines) of all B x B pairs."""
    return jnp.mean(jnp.square(_logits(student) - _logits(teacher)))


def embedding_l2(student: Outputs, teacher: Outputs, adapters: dict[str, jax.Array]) -> jax.Array:
    """Squared distance of unit embeddings, mean over the batch and over the towers; in [0, 4].

    The "feature distillation" of CLIP-KD (arXiv 2307.12732), summed over dimensions rather than
    averaged. The student's embeddings go through `adapters` where these have an entry.
    """

    def distance(tower: str) -> jax.Array:
        embedding = _adapt(adapters, f"{tower}_embedding", getattr(student, tower))
        difference = _unit(embedding) - _unit(getattr(teacher, tower))
        return jnp.mean(jnp.sum(jnp.square(difference), axis=-1))

    return 0.5 * (distance("image") + distance("text"))


def hidden_mse(student: Outputs, teacher: Outputs, adapters: dict[str, jax.Array]) -> jax.Array:
    """Mean squared difference of paired hidden layers (FitNets, arXiv 1412.6550), over all of them.

    The student's states go through `adapters` where these have an entry. A tower may have no pairs.

    Raises:
      ValueError: student and teacher have different numbers of layers, none, or different numbers
        of tokens.
    """
    terms = []
    for tower in ("image", "text"):
        students, teachers = (
            getattr(student, f"{tower}_hidden"),
            getattr(teacher, f"{tower}_hidden"),
        )
        if len(students) != len(teachers):
            raise ValueError(
                f"{tower}: {len(students)} hidden layers of the student to compare with "
                f"{len(teachers)} of the teacher"
            )
        for i, (ours, theirs) in enumerate(zip(students, teachers, strict=True)):
            if ours.shape[1] != theirs.shape[1]:
                raise ValueError(
                    f"{tower}: hidden layers need equal token counts, the student has "
                    f"{ours.shape[1]} and the teacher {theirs.shape[1]}; choose another patch or "
                    f"image size, or hidden_weight=0"
                )
            ours = _adapt(adapters, f"{tower}_hidden_{i}", ours)
            terms.append(jnp.mean(jnp.square(ours - theirs.astype(jnp.float32))))
    if not terms:
        raise ValueError("there are no hidden layers to compare")
    return sum(terms) / len(terms)


def init_adapters(
    key: jax.Array, student: Widths, teacher: Widths, config: LossConfig
) -> dict[str, jax.Array]:
    """Learned float32 projections [student width, teacher width], where these differ.

    Returns:
      "image_embedding", "text_embedding" and, for the i-th pair of layers, "image_hidden_i" and
      "text_hidden_i"; only those that the config's terms need, so mostly none.
    """
    widths = {}
    for tower in ("image", "text"):
        if config.embedding_weight > 0:
            widths[f"{tower}_embedding"] = student.embedding, teacher.embedding
        if config.hidden_weight > 0:
            for i in range(len(config.hidden_pairs[tower])):
                widths[f"{tower}_hidden_{i}"] = getattr(student, tower), getattr(teacher, tower)
    shapes = {name: shape for name, shape in widths.items() if shape[0] != shape[1]}
    keys = jax.random.split(key, len(shapes))
    return {
        name: shape[0] ** -0.5 * jax.random.normal(key, shape, jnp.float32)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def total_loss(
    config: LossConfig,
    student: Outputs,
    teacher: Outputs | None,
    positives_BxB: jax.Array,
    adapters: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of the config's terms.

    Args:
      config: terms and weights.
      student: outputs to be differentiated.
      teacher: outputs to learn from, taken as constants; None where no term needs them.
      positives_BxB: as in `contrastive_loss`.
      adapters: from `init_adapters`.

    Returns:
      The loss, and a dict of its terms, each without its weight; all float32 scalars.

    Raises:
      ValueError: a term needs a teacher and there is none; see also `hidden_mse`.
    """
    weights = {
        "contrastive": config.contrastive_weight,
        "similarity_kl": config.similarity_weight,
        "logits_mse": config.logits_weight,
        "embedding_l2": config.embedding_weight,
        "hidden_mse": config.hidden_weight,
    }
    if teacher is None and config.needs_teacher:
        raise ValueError("the losses of this config compare with a teacher, and there is none")
    teacher = jax.lax.stop_gradient(teacher)
    contrastive = contrastive_loss if config.contrastive == "softmax" else sigmoid_loss
    terms = {
        "contrastive": lambda: contrastive(student, positives_BxB),
        "similarity_kl": lambda: similarity_kl(student, teacher, config.temperature),
        "logits_mse": lambda: logits_mse(student, teacher),
        "embedding_l2": lambda: embedding_l2(student, teacher, adapters),
        "hidden_mse": lambda: hidden_mse(student, teacher, adapters),
    }
    metrics = {name: terms[name]() for name, weight in weights.items() if weight > 0}
    loss = sum((weights[name] * term for name, term in metrics.items()), start=jnp.zeros(()))
    return loss, metrics


def _unit(x: jax.Array) -> jax.Array:
    """Rows of unit norm, in float32; a zero row stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _logits(outputs: Outputs) -> jax.Array:
    # At a scale of 100 the rounding of a reduced-precision product would reach the first decimal.
    cosines_BxB = jnp.matmul(
        _unit(outputs.image), _unit(outputs.text).T, precision=jax.lax.Precision.HIGHEST
    )
    scale, bias = (jnp.asarray(x, jnp.float32) for x in (outputs.logit_scale, outputs.logit_bias))
    return scale * cosines_BxB + bias


def _cross_entropy(logits_BxB: jax.Array, positives_BxB: jax.Array) -> jax.Array:
    targets_BxB = positives_BxB / jnp.sum(positives_BxB, axis=-1, keepdims=True)
    return -jnp.mean(jnp.sum(targets_BxB * jax.nn.log_softmax(logits_BxB, axis=-1), axis=-1))


def _kl(teacher_BxB: jax.Array, student_BxB: jax.Array) -> jax.Array:
    teacher_BxB = jax.nn.log_softmax(teacher_BxB, axis=-1)
    student_BxB = jax.nn.log_softmax(student_BxB, axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(teacher_BxB) * (teacher_BxB - student_BxB), axis=-1))


def _adapt(adapters: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x @ adapters[name] if name in adapters else x
