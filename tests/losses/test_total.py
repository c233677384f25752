"""The sum of the losses and its terms against their formulas written out in NumPy (float64)."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tclip import losses
from tclip.losses import LossConfig, Widths
from tclip.losses.features import embedding_l2, hidden_mse
from tclip.parallel.sharding import MeshConfig, make_mesh
from tests.helpers import loss_problems as problems
from tests.helpers.loss_problems import (
    B,
    D,
    W,
    assert_close,
    logits,
    make_captions,
    make_outputs,
    softmax,
    unit,
)

MESH = make_mesh(MeshConfig(data=1))
CAPTIONS = make_captions([(0, 2, 5)])
EVERYTHING = LossConfig(
    similarity_weight=2.0,
    temperature=3.0,
    logits_weight=0.1,
    embedding_weight=5.0,
    hidden_weight=0.5,
    hidden_layers=((0, 1), (1, 3)),
    text_hidden_layers=((0, 0), (1, 1)),
)


def total_loss(config, student, teacher, adapters=None):
    return losses.total_loss(config, student, teacher, CAPTIONS, adapters or {}, MESH)


def hidden_reference(student, teacher):
    pairs = zip(
        student.image_hidden + student.text_hidden,
        teacher.image_hidden + teacher.text_hidden,
        strict=True,
    )
    return np.mean([((s.astype(np.float64) - t) ** 2).mean() for s, t in pairs])


def test_contrastive_without_repeated_captions_is_clips():
    outputs = make_outputs(0)
    z = logits(outputs)
    i = np.arange(B)
    rows, columns = np.log(softmax(z, 1)[i, i]).mean(), np.log(softmax(z, 0)[i, i]).mean()
    loss, _ = losses.total_loss(LossConfig(), outputs, None, make_captions([]), {}, MESH)
    assert_close(loss, -(rows + columns) / 2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_similarity_kl_over_rows_and_columns(temperature):
    student, teacher = make_outputs(4), make_outputs(5, embedding=D + 3, scale=50.0)
    config = LossConfig(contrastive_weight=0, similarity_weight=1, temperature=temperature)
    _, terms = total_loss(config, student, teacher)
    assert_close(terms["similarity_kl"], problems.similarity_kl(student, teacher, temperature))


def test_embedding_l2_compares_unit_embeddings_of_both_towers():
    student, teacher = make_outputs(8), make_outputs(9)
    image = ((unit(student.image) - unit(teacher.image)) ** 2).sum(-1).mean()
    text = ((unit(student.text) - unit(teacher.text)) ** 2).sum(-1).mean()
    assert_close(embedding_l2(student, teacher, {}), (image + text) / 2)


def test_hidden_mse_is_the_mean_over_pairs_and_towers():
    student, teacher = make_outputs(10), make_outputs(11)
    assert_close(hidden_mse(student, teacher, {}), hidden_reference(student, teacher))


@pytest.mark.parametrize(("images", "texts"), [(1, 0), (0, 2), (2, 1)])
def test_towers_may_have_different_numbers_of_hidden_pairs(images, texts):
    student, teacher = (
        dataclasses.replace(
            outputs,
            image_hidden=outputs.image_hidden[:images],
            text_hidden=outputs.text_hidden[:texts],
        )
        for outputs in (make_outputs(27), make_outputs(28))
    )
    assert_close(hidden_mse(student, teacher, {}), hidden_reference(student, teacher))


def test_adapters_bridge_widths_that_differ():
    student, teacher = make_outputs(12), make_outputs(13, embedding=D + 3, width=W + 4)
    adapters = losses.init_adapters(
        jax.random.key(0), Widths(D, W, W), Widths(D + 3, W + 4, W + 4), EVERYTHING
    )
    assert {name: kernel.shape for name, kernel in adapters.items()} == {
        **dict.fromkeys(("image_embedding", "text_embedding"), (D, D + 3)),
        **dict.fromkeys(
            ("image_hidden_0", "image_hidden_1", "text_hidden_0", "text_hidden_1"), (W, W + 4)
        ),
    }
    a = {name: np.asarray(kernel, np.float64) for name, kernel in adapters.items()}
    image = unit(student.image @ a["image_embedding"]) - unit(teacher.image)
    text = unit(student.text @ a["text_embedding"]) - unit(teacher.text)
    expected = ((image**2).sum(-1).mean() + (text**2).sum(-1).mean()) / 2
    assert_close(embedding_l2(student, teacher, adapters), expected)

    terms = []
    for tower in ("image", "text"):
        ours, theirs = getattr(student, f"{tower}_hidden"), getattr(teacher, f"{tower}_hidden")
        for i in range(2):
            terms.append(((ours[i] @ a[f"{tower}_hidden_{i}"] - theirs[i]) ** 2).mean())
    assert_close(hidden_mse(student, teacher, adapters), np.mean(terms))


def test_adapters_only_where_they_are_needed():
    key, ours, theirs = jax.random.key(0), Widths(8, 16, 16), Widths(12, 24, 16)
    assert losses.init_adapters(key, ours, ours, EVERYTHING) == {}
    assert losses.init_adapters(key, ours, theirs, LossConfig(similarity_weight=1.0)) == {}
    both = LossConfig(hidden_weight=1.0, hidden_layers=((0, 0),), text_hidden_layers=((0, 0),))
    assert set(losses.init_adapters(key, ours, theirs, both)) == {"image_hidden_0"}
    only_image = LossConfig(hidden_weight=1.0, hidden_layers=((0, 0), (1, 1)))
    adapters = losses.init_adapters(key, Widths(8, 16, 16), Widths(8, 24, 24), only_image)
    assert set(adapters) == {"image_hidden_0", "image_hidden_1"}
    adapters = losses.init_adapters(key, Widths(400, 1, 1), Widths(300, 1, 1), EVERYTHING)
    assert not np.array_equal(adapters["image_embedding"], adapters["text_embedding"])
    np.testing.assert_allclose(np.std(adapters["image_embedding"]), 400**-0.5, rtol=0.02)


def test_distillation_is_zero_with_zero_gradient_when_student_equals_teacher():
    outputs = make_outputs(14)
    config = dataclasses.replace(EVERYTHING, contrastive_weight=0.0)

    def loss(student):
        return total_loss(config, student, outputs)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(outputs)
    assert set(metrics) == {"similarity_kl", "logits_mse", "embedding_l2", "hidden_mse"}
    for term in (value, *metrics.values()):
        np.testing.assert_allclose(term, 0.0, atol=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)


def test_gradients_agree_with_finite_differences():
    student, teacher = make_outputs(15, scale=3.0), make_outputs(16, scale=4.0)
    config = dataclasses.replace(EVERYTHING, temperature=1.5)

    def loss(image, text, scale):
        ours = dataclasses.replace(student, image=image, text=text, logit_scale=scale)
        return total_loss(config, ours, teacher)[0]

    arguments = student.image, student.text, jnp.float32(3.0)
    check_grads(loss, arguments, order=1, modes=("rev",), eps=1e-2, rtol=2e-2)


def test_total_is_the_weighted_sum_and_metrics_are_unweighted():
    student, teacher = make_outputs(17), make_outputs(18)
    config = dataclasses.replace(EVERYTHING, contrastive="sigmoid", contrastive_weight=0.25)
    loss, metrics = total_loss(config, student, teacher)
    for name, value in problems.pairwise(config, student, teacher, CAPTIONS).items():
        assert_close(metrics[name], value)
    assert_close(metrics["embedding_l2"], embedding_l2(student, teacher, {}))
    assert_close(metrics["hidden_mse"], hidden_mse(student, teacher, {}))
    weights = {
        "contrastive": 0.25,
        "similarity_kl": 2.0,
        "logits_mse": 0.1,
        "embedding_l2": 5.0,
        "hidden_mse": 0.5,
    }
    assert_close(loss, sum(weights[name] * float(term) for name, term in metrics.items()))


def test_no_gradient_reaches_the_teacher():
    student, teacher = make_outputs(20), make_outputs(21)

    def loss(teacher):
        return total_loss(EVERYTHING, student, teacher)[0]

    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(jax.grad(loss)(teacher)))


def test_bfloat16_embeddings_are_computed_with_in_float32():
    low = make_outputs(22, dtype=jnp.bfloat16)
    high = jax.tree.map(lambda x: x.astype(np.float32), low)
    teacher = make_outputs(23)
    loss, metrics = total_loss(EVERYTHING, low, teacher)
    expected, _ = total_loss(EVERYTHING, high, teacher)
    assert all(term.dtype == jnp.float32 for term in metrics.values())
    assert_close(loss, expected)


def test_a_zero_embedding_has_a_finite_loss_and_gradient():
    teacher = make_outputs(24)
    student = dataclasses.replace(make_outputs(25), image=np.zeros((B, D), np.float32))

    def loss(student):
        return total_loss(EVERYTHING, student, teacher)[0]

    value, gradient = jax.value_and_grad(loss)(student)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": "hinge"}, "loss.contrastive='hinge': choose from softmax, sigmoid"),
        ({"negatives": "local"}, "loss.negatives='local': choose from gathered, chunked, ring"),
        ({"chunk_size": 0}, "loss.chunk_size=0"),
        ({"embedding_weight": -1.0}, "embedding_weight -1.0 is negative"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"hidden_weight": 1.0}, "hidden_layers"),
        ({"hidden_layers": ((0, 0),)}, "hidden_weight"),
        ({"text_hidden_layers": ((0, 0),)}, "hidden_weight"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)


def test_a_missing_teacher_is_refused():
    with pytest.raises(ValueError, match="teacher"):
        total_loss(EVERYTHING, make_outputs(0), None)


def test_hidden_layers_need_equal_token_counts():
    teacher = make_outputs(26)
    short = dataclasses.replace(teacher, image_hidden=tuple(h[:, 1:] for h in teacher.image_hidden))
    with pytest.raises(ValueError, match=r"image: .*equal token counts.* 5 .* 4"):
        hidden_mse(teacher, short, {})
    with pytest.raises(ValueError, match=r"image: 2 hidden layers .* 0"):
        hidden_mse(teacher, dataclasses.replace(teacher, image_hidden=()), {})
    none = dataclasses.replace(teacher, image_hidden=(), text_hidden=())
    with pytest.raises(ValueError, match="no hidden layers"):
        hidden_mse(none, none, {})


def test_the_losses_load_nothing_above_jax():
    code = (
        "import sys, tclip.losses\n"
        "assert not {'flax', 'optax', 'orbax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
