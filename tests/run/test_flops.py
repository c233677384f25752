"""The formulas against XLA's own count of the program, and against published figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from tclip.bench.steps import experiment_of
from tclip.losses import LossConfig
from tclip.models import CLIP, CLIPConfig, ClipPolicy, architecture, init_params
from tclip.parallel.sharding import MeshConfig, make_mesh
from tclip.run.experiment import TeacherConfig
from tclip.run.flops import forward_flops, logits_flops, step_flops, text_flops, vision_flops
from tclip.run.optim import learning_rate, make_optimizer
from tclip.run.state import create_state
from tclip.train.step import make_train_step

BATCH = 2
# XLA counts norms, activation functions and softmax too: a few operations for each activation,
# where a product takes some thousands.
TOLERANCE = 0.01
DISTILLATION = LossConfig(similarity_weight=1.0, embedding_weight=1.0)


def counted(function, *shapes) -> float:
    """XLA's count of a program that is not compiled: nothing fused, merged or recomputed."""
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def inputs(model: CLIPConfig, prefix: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    size, length = model.vision.image_size, model.text.context_length
    return {
        f"{prefix}images": jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32),
        f"{prefix}tokens": jax.ShapeDtypeStruct((BATCH, length), jnp.int32),
    }


def params(model: CLIPConfig):
    return jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def siglip() -> CLIPConfig:
    """SigLIP's towers, in the widths of ViT-B/32."""
    model = architecture("ViT-B/32")
    text = dataclasses.replace(model.text, causal=False, pooling="last", projection_bias=True)
    return dataclasses.replace(
        model,
        embed_dim=768,
        vision=dataclasses.replace(model.vision, pooling="map"),
        text=text,
        activation="gelu_tanh",
        logit_bias=True,
    )


@pytest.mark.parametrize("model", [architecture("ViT-B/16"), siglip()], ids=["clip", "siglip"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_forward(model, tower):
    name, expected = {
        "image": ("images", vision_flops(model)),
        "text": ("tokens", text_flops(model)),
    }[tower]

    def encode(params, x):
        return CLIP(model).apply({"params": params}, x, method=f"encode_{tower}")

    flops = counted(encode, params(model), inputs(model)[name]) / BATCH
    assert expected == pytest.approx(flops, rel=TOLERANCE)
    assert expected < flops


def test_what_pooling_by_attention_adds():
    model = siglip()
    cls = dataclasses.replace(model, vision=dataclasses.replace(model.vision, pooling="cls"))
    tokens, width = 49, 768
    # Written out: keys and values; query, output and both layers of the MLP; scores and their sum.
    # Without a class token there is one token less, and no projection.
    pool = 2 * tokens * 2 * width**2 + 2 * (2 + 8) * width**2 + 2 * 2 * tokens * width
    block = 24 * width**2 + 4 * tokens * width
    with_class = 24 * width**2 + 4 * (tokens + 1) * width
    less = 12 * ((tokens + 1) * with_class - tokens * block) + 2 * width * 768
    assert vision_flops(model) - vision_flops(cls) == pytest.approx(pool - less)


@pytest.mark.parametrize("cached", [False, True])
def test_distilling_step(cached):
    # Three layers a tower, to spare time.
    student, teacher = (
        dataclasses.replace(
            architecture(name),
            vision=dataclasses.replace(architecture(name).vision, layers=3),
            text=dataclasses.replace(architecture(name).text, layers=3),
        )
        for name in ("ViT-B/16", "ViT-L/14")
    )
    hidden = {"hidden_weight": 1.0, "text_hidden_layers": ((1, 2),)} if not cached else {}
    experiment = experiment_of(
        student,
        loss=dataclasses.replace(DISTILLATION, **hidden),
        teacher=TeacherConfig("teacher"),
        quant=ClipPolicy(policy="none"),
    )
    experiment = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, batch_size=BATCH)
    )
    optimizer = make_optimizer(experiment.optim, experiment.train.steps)
    schedule = learning_rate(experiment.optim, experiment.train.steps)
    mesh = make_mesh(MeshConfig(data=1))
    step = make_train_step(experiment, teacher, optimizer, schedule, mesh)
    state = jax.eval_shape(lambda: create_state(experiment, teacher, optimizer, None))
    batch = inputs(student) | {"skipped": jax.ShapeDtypeStruct((BATCH,), jnp.int32)}
    if cached:
        shape = jax.ShapeDtypeStruct((BATCH, teacher.embed_dim), jnp.float32)
        batch |= {"teacher_image_embeddings": shape, "teacher_text_embeddings": shape}

    # A few operations a parameter, which would vanish in a batch of common size.
    def update(state):
        grads = state.trainable
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        norms = optax.tree.norm(grads), optax.tree.norm(updates)
        return optax.apply_updates(state.trainable, updates), opt_state, norms

    flops = (counted(step, state, params(teacher), batch) - counted(update, state)) / BATCH
    # The gradient with respect to the pixels is counted by convention, and not computed.
    no_gradient = 2 * 196 * 768 * 768
    expected = step_flops(experiment, teacher, cached)
    assert expected - no_gradient == pytest.approx(flops, rel=TOLERANCE)
    assert step_flops(experiment, teacher, not cached) != pytest.approx(expected, rel=0.1)


def test_known_models():
    model, teacher = architecture("ViT-B/16"), architecture("ViT-L/14")
    experiment = experiment_of(model, loss=LossConfig(contrastive_weight=0.0))
    assert step_flops(experiment, None) == pytest.approx(123.3e9, rel=5e-4)
    assert forward_flops(teacher) == pytest.approx(175.3e9, rel=5e-4)
    # Layer by layer: 197 image tokens of width 768, 77 text tokens of width 512, 12 layers each.
    image = 12 * 197 * (24 * 768**2 + 4 * 197 * 768) + 2 * 196 * 3 * 16**2 * 768 + 2 * 768 * 512
    text = 12 * 77 * (24 * 512**2 + 4 * 77 * 512) + 2 * 512 * 512
    assert forward_flops(model) == image + text
    # In a batch of 256 every image is compared with as many texts.
    clip = experiment_of(model, loss=LossConfig())
    assert step_flops(clip, None) - step_flops(experiment, None) == 3 * 2 * 256 * 512


def test_what_is_recomputed_is_no_work_of_the_model():
    model = architecture("ViT-B/32")
    full = dataclasses.replace(model, remat="full", scan_layers=True)
    assert step_flops(experiment_of(full), None) == step_flops(experiment_of(model), None)


def test_a_teacher_that_only_shows_embeddings_costs_no_logits():
    model = architecture("ViT-B/32")
    loss = LossConfig(contrastive_weight=0.0, embedding_weight=1.0)
    experiment = experiment_of(model, loss=loss, teacher=TeacherConfig("teacher"))
    assert step_flops(experiment, model, cached=True) == 3 * forward_flops(model)
    with_kl = dataclasses.replace(experiment, loss=dataclasses.replace(loss, similarity_weight=1.0))
    added = step_flops(with_kl, model, cached=True) - 3 * forward_flops(model)
    assert added == 4 * logits_flops(model, experiment.train.batch_size)
