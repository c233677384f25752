"""Shapes of what a training step is given, where neither data nor a teacher are at hand."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tclip.experiment import Experiment, check_heads
from tclip.models import CLIPConfig, init_params
from tclip.sharding import TENSOR, batch_sharding, param_shardings, placed, replicated
from tclip.state import Params
from tclip.step import Batch


def abstract_batch(
    experiment: Experiment, teacher: CLIPConfig | None, cached: bool, mesh: Mesh
) -> Batch:
    """The global batch of `tclip.data.train_batches`, as shapes.

    The teacher is taken to see the student's pixels and tokens where sizes and vocabularies agree.
    """
    size, sharding = experiment.train.batch_size, batch_sharding(mesh)

    def rows(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    def pixels(model: CLIPConfig) -> jax.ShapeDtypeStruct:
        return rows(model.vision.image_size, model.vision.image_size, 3)

    def tokens(model: CLIPConfig) -> jax.ShapeDtypeStruct:
        return rows(model.text.context_length, dtype=jnp.int32)

    model = experiment.model
    batch = {"images": pixels(model), "tokens": tokens(model), "skipped": rows(dtype=jnp.int32)}
    if teacher is None:
        return batch
    if cached:
        embeddings = rows(teacher.embed_dim)
        return batch | {
            "teacher_image_embeddings": embeddings,
            "teacher_text_embeddings": embeddings,
        }
    if teacher.vision.image_size != model.vision.image_size:
        batch["teacher_images"] = pixels(teacher)
    vocabularies = {(m.text.context_length, m.text.vocab_size) for m in (model, teacher)}
    if len(vocabularies) > 1:
        batch["teacher_tokens"] = tokens(teacher)
    return batch


def abstract_teacher(teacher: CLIPConfig | None, cached: bool, mesh: Mesh) -> Params | None:
    """What `tclip.teacher.put_teacher` returns, as shapes; raises the same."""
    if teacher is None:
        return None
    shapes = jax.eval_shape(functools.partial(init_params, teacher), jax.random.key(0))
    if cached:
        shapes = {name: shapes[name] for name in ("logit_scale", "logit_bias") if name in shapes}
        shardings = jax.tree.map(lambda _: replicated(mesh), shapes)
    else:
        check_heads(mesh.shape[TENSOR], "teacher", teacher)
        shardings = param_shardings(shapes, mesh)
    return placed(shapes, shardings)
