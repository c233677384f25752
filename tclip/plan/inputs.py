"""Shapes of what a training step is given, where neither data nor a teacher are at hand."""

import functools

import jax
from jax.sharding import Mesh

from tclip.data.batch_layout import batch_layout
from tclip.models import CLIPConfig, init_params
from tclip.parallel.sharding import TENSOR, batch_sharding, param_shardings, placed, replicated
from tclip.run.experiment import Experiment, check_heads
from tclip.run.state import Params


def abstract_batch(
    experiment: Experiment, teacher: CLIPConfig | None, cached: bool, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of `tclip.data.train_batches`, as shapes.

    The teacher is taken to see the student's pixels and tokens where sizes and vocabularies agree.
    """
    model, own_pixels, own_tokens = experiment.model, False, False
    if teacher is not None:
        own_pixels = teacher.vision.image_size != model.vision.image_size
        own_tokens = len({(m.text.context_length, m.text.vocab_size) for m in (model, teacher)}) > 1
    return batch_layout(
        experiment.train.batch_size,
        model,
        teacher,
        cached,
        own_pixels,
        own_tokens,
        batch_sharding(mesh),
    )


def abstract_teacher(teacher: CLIPConfig | None, cached: bool, mesh: Mesh) -> Params | None:
    """What `tclip.train.teacher.put_teacher` returns, as shapes; raises the same."""
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
