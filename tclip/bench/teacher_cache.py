"""What stored embeddings save: a distillation step with the live teacher against one without."""

import statistics
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from tclip.bench.steps import TimedStep, cut_architecture, experiment_of, random_batch
from tclip.bench.timing import in_turn
from tclip.losses import LossConfig
from tclip.models import ClipPolicy, init_params
from tclip.run.experiment import TeacherConfig
from tclip.run.flops import forward_flops
from tclip.tables import markdown_table


def run(
    student: Annotated[str, "architecture of the student"] = "ViT-B/16",
    teacher: Annotated[str, "architecture of the teacher"] = "ViT-L/14",
    layers: Annotated[int, "most layers of a tower, to fit small machines"] = 24,
    batch_size: Annotated[int, "image-caption pairs a step"] = 8,
    repeats: Annotated[int, "timed steps of each kind, after one with its compilation"] = 3,
    dtype: Annotated[str, "what is computed in: float32 or bfloat16"] = "float32",
) -> dict[str, Any]:
    """Times both steps in turn on one device, the same random batch.

    Both train a student with ternary weights (policy "all") with the contrastive, similarity and
    embedding losses. Reading stored embeddings, a kilobyte or two a sample, is not part of it.

    Returns:
      The median seconds of each step, the median of the pairwise ratios live / stored, their range,
      and the ratio by floating-point operations.
    """
    model = cut_architecture(student, layers, dtype)
    teacher_model = cut_architecture(teacher, layers, dtype)
    teacher_params = jax.jit(lambda: init_params(teacher_model, jax.random.key(1)))()
    scalars = {"logit_scale": teacher_params["logit_scale"]}
    experiment = experiment_of(
        model,
        quant=ClipPolicy(policy="all"),
        teacher=TeacherConfig(path=teacher),
        loss=LossConfig(similarity_weight=1.0, embedding_weight=1.0),
    )
    batch = random_batch(model, batch_size)
    stored = jnp.ones((batch_size, teacher_model.embed_dim)) * teacher_model.embed_dim**-0.5
    embeddings = {"teacher_image_embeddings": stored, "teacher_text_embeddings": stored}
    steps = {
        "live teacher": TimedStep(experiment, batch, teacher_model, teacher_params),
        "stored embeddings": TimedStep(experiment, batch | embeddings, teacher_model, scalars),
    }
    seconds = in_turn({name: step.seconds for name, step in steps.items()}, repeats)
    ratios = [live / cached for live, cached in zip(*seconds.values(), strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    by_flops = 1 + forward_flops(teacher_model) / (3 * forward_flops(model))
    rows = [(name, f"{median:.2f} s") for name, median in medians.items()]
    rows.append(("live / stored", f"{statistics.median(ratios):.2f}"))
    rows.append(("by floating-point operations", f"{by_flops:.2f}"))
    print(f"{student} taught by {teacher}, at most {layers} layers, batch {batch_size}, {dtype}")
    print(markdown_table(("training step", "median"), rows))
    return {
        "student": student,
        "teacher": teacher,
        "layers": layers,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "seconds": medians,
        "ratio": statistics.median(ratios),
        "ratio_range": (min(ratios), max(ratios)),
        "ratio_by_flops": by_flops,
    }
