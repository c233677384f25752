"""The arrays of a training batch: what the pipeline makes, the step takes and a plan assumes."""

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from tclip.models import CLIPConfig


def batch_layout(
    batch_size: int,
    student: CLIPConfig,
    teacher: CLIPConfig | None = None,
    stored_embeddings: bool = False,
    own_pixels: bool = False,
    own_tokens: bool = False,
    sharding: Sharding | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the names, shapes and dtypes of a training batch of B pairs.

    Args:
      teacher: architecture of the teacher, or None.
      stored_embeddings: whether the batch brings the teacher's embeddings, which then does not run.
      own_pixels, own_tokens: whether a teacher that runs sees other pixels or tokens than the
        student.
      sharding: of every array, along its rows.

    Returns:
      "images" float32 [B, S, S, 3]; "tokens" int32 [B, L]; "skipped" int32 [B], the unusable
      samples met on the way to each row; with own pixels "teacher_images", with own tokens
      "teacher_tokens"; with stored embeddings "teacher_image_embeddings" and
      "teacher_text_embeddings" float32 [B, D].
    """

    def rows(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    def pixels(model: CLIPConfig) -> jax.ShapeDtypeStruct:
        return rows(model.vision.image_size, model.vision.image_size, 3)

    def tokens(model: CLIPConfig) -> jax.ShapeDtypeStruct:
        return rows(model.text.context_length, dtype=jnp.int32)

    layout = {
        "images": pixels(student),
        "tokens": tokens(student),
        "skipped": rows(dtype=jnp.int32),
    }
    if teacher is None:
        return layout
    if stored_embeddings:
        names = "teacher_image_embeddings", "teacher_text_embeddings"
        return layout | dict.fromkeys(names, rows(teacher.embed_dim))
    if own_pixels:
        layout["teacher_images"] = pixels(teacher)
    if own_tokens:
        layout["teacher_tokens"] = tokens(teacher)
    return layout
