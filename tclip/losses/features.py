"""Distillation of features: every sample of the student against the same one of the teacher."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tclip.losses.config import LossConfig
from tclip.losses.outputs import Outputs, unit


class Widths(NamedTuple):
    """The widths of a model that distillation has to bridge."""

    embedding: int
    image: int
    text: int


def embedding_l2(student: Outputs, teacher: Outputs, adapters: dict[str, jax.Array]) -> jax.Array:
    """Squared distance of unit embeddings, mean over the batch and over the towers; in [0, 4].

    The "feature distillation" of CLIP-KD (arXiv 2307.12732), summed over dimensions rather than
    averaged. The student's embeddings go through `adapters` where these have an entry.
    """

    def distance(tower: str) -> jax.Array:
        embedding = _adapt(adapters, f"{tower}_embedding", getattr(student, tower))
        difference = unit(embedding) - unit(getattr(teacher, tower))
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
    return sum(terms, start=jnp.zeros(())) / len(terms)


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


def _adapt(adapters: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x @ adapters[name] if name in adapters else x
