"""The sum of all losses.

That of TernaryCLIP (arXiv 2510.21879): the student's own contrastive loss, the distillation of the
similarity distribution, the distillation of features. The terms themselves are those of the papers
named at each. Everything is computed in float32 whatever the inputs, and a term that has two
directions (image to text and back) or two towers is the mean of the two.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tclip.losses.config import LossConfig
from tclip.losses.features import embedding_l2, hidden_mse
from tclip.losses.outputs import Outputs
from tclip.losses.pairwise import pairwise_losses

Terms = dict[str, jax.Array]


def total_loss(
    config: LossConfig,
    student: Outputs,
    teacher: Outputs | None,
    captions_BxL: jax.Array,
    adapters: dict[str, jax.Array],
    mesh: Mesh,
) -> tuple[jax.Array, Terms]:
    """The weighted sum of the config's terms: of `embedding_loss` and of `hidden_loss`.

    Args:
      config: terms and weights.
      student: outputs to be differentiated.
      teacher: outputs to learn from, taken as constants; None where no term needs them.
      captions_BxL: int32 tokens; pairs with the same ones are positives.
      adapters: from `init_adapters`.
      mesh: devices that share the batch.

    Returns:
      The loss, and a dict of its terms, each without its weight; all float32 scalars.

    Raises:
      ValueError: a term needs a teacher and there is none; see also `hidden_mse` and
        `check_negatives`.
    """
    loss, terms = embedding_loss(config, student, teacher, captions_BxL, adapters, mesh)
    hidden, hidden_terms = hidden_loss(config, student, teacher, adapters)
    return loss + hidden, terms | hidden_terms


def embedding_loss(
    config: LossConfig,
    student: Outputs,
    teacher: Outputs | None,
    captions_BxL: jax.Array,
    adapters: dict[str, jax.Array],
    mesh: Mesh,
) -> tuple[jax.Array, Terms]:
    """The terms of the embeddings, for which the whole batch is needed; as `total_loss`."""
    if config.needs_teacher:
        teacher = _given(teacher)
    teacher = jax.lax.stop_gradient(teacher)
    terms = pairwise_losses(config, student, teacher, captions_BxL, mesh)
    if config.embedding_weight > 0:
        terms["embedding_l2"] = embedding_l2(student, _given(teacher), adapters)
    return _weighted_sum(config, terms), terms


def hidden_loss(
    config: LossConfig,
    student: Outputs,
    teacher: Outputs | None,
    adapters: dict[str, jax.Array],
) -> tuple[jax.Array, Terms]:
    """The terms of hidden layers: the mean over samples, whatever their batch; as `total_loss`."""
    if config.hidden_weight == 0:
        return jnp.zeros(()), {}
    constant = jax.lax.stop_gradient(_given(teacher))
    terms = {"hidden_mse": hidden_mse(student, constant, adapters)}
    return _weighted_sum(config, terms), terms


def _given(teacher: Outputs | None) -> Outputs:
    if teacher is None:
        raise ValueError("the losses of this config compare with a teacher, and there is none")
    return teacher


def _weighted_sum(config: LossConfig, terms: Terms) -> jax.Array:
    weights = {
        "contrastive": config.contrastive_weight,
        "similarity_kl": config.similarity_weight,
        "logits_mse": config.logits_weight,
        "embedding_l2": config.embedding_weight,
        "hidden_mse": config.hidden_weight,
    }
    return sum((weights[name] * term for name, term in terms.items()), start=jnp.zeros(()))
