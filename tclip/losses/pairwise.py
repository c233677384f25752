"""The losses that compare every image with every text of the whole batch, on all its devices."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tclip.losses.blockwise import blockwise
from tclip.losses.config import LossConfig
from tclip.losses.logits import make_block
from tclip.losses.outputs import Outputs, unit
from tclip.losses.terms import Term, needs_teacher, pairwise_terms
from tclip.parallel.sharding import BATCH_AXES, axes_size, batch_sharding


def pairwise_losses(
    config: LossConfig,
    student: Outputs,
    teacher: Outputs | None,
    captions_BxL: jax.Array,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """Returns the config's pairwise terms as float32 scalars, by name and without their weights.

    Args:
      config: terms, and how to compute them (`LossConfig.negatives`).
      student: outputs to be differentiated.
      teacher: outputs to learn from; None where no term compares with them.
      captions_BxL: int32 tokens; pairs with the same ones are positives.
      mesh: devices that share the batch.

    Raises:
      ValueError: see `check_negatives`.
    """
    check_negatives(config, len(captions_BxL), mesh)
    if not pairwise_terms(config, len(captions_BxL)):
        return {}
    student = _normalised(student)
    if teacher is not None:
        teacher = _normalised(teacher) if needs_teacher(config) else None
    losses = _gathered if config.negatives == "gathered" else blockwise
    return losses(config, mesh, student, teacher, captions_BxL)


def check_negatives(config: LossConfig, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the batch is made of chunks of the config's size."""
    n, size = axes_size(mesh, BATCH_AXES), config.chunk_size
    if config.negatives == "chunked" and (batch_size % size or size % n):
        raise ValueError(
            f"loss.chunk_size={size} has to divide the batch of {batch_size}, and to be a multiple "
            f"of the {n} devices that share it"
        )


def _normalised(outputs: Outputs) -> Outputs:
    return Outputs(
        image=unit(outputs.image),
        text=unit(outputs.text),
        logit_scale=jnp.asarray(outputs.logit_scale, jnp.float32),
        logit_bias=jnp.asarray(outputs.logit_bias, jnp.float32),
    )


def _gathered(
    config: LossConfig, mesh: Mesh, student: Outputs, teacher: Outputs | None, captions: jax.Array
) -> dict[str, jax.Array]:
    """All logits at once. The partitioner gathers the texts; jax differentiates."""
    block = jax.lax.with_sharding_constraint(
        make_block(student, teacher, captions, captions), batch_sharding(mesh)
    )

    def mean(term: Term) -> jax.Array:
        images, texts = (jnp.mean(term.losses(term.sums(side))) for side in (block, block.T))
        return 0.5 * (images + texts)

    terms = pairwise_terms(config, len(captions))
    return {name: mean(term) for name, term in terms.items()}
