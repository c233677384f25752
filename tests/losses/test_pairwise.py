"""Pairwise losses, however their negatives are met, against NumPy in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tclip.losses import LossConfig, Outputs, check_negatives, total_loss
from tclip.losses.logits import equal_captions
from tclip.losses.partial_sums import add, exp_sum
from tclip.parallel.sharding import MeshConfig, batch_sharding, make_mesh
from tests.helpers import loss_problems as problems
from tests.helpers.loss_problems import B, D, make_captions, make_outputs

NEGATIVES = ("gathered", "chunked", "ring")
MESHES = {
    "one device": MeshConfig(data=1),
    "slice, data, fsdp": MeshConfig(slice=2, data=2, fsdp=2),
    "data, tensor": MeshConfig(data=4, tensor=2),
}
# Weights of the terms, so that none hides another in the sum.
WEIGHTS = {"contrastive": 1.0, "similarity_kl": 0.5, "logits_mse": 0.01}
# Groups of equal captions, within a device and across them.
CAPTIONS = make_captions([(0, 1, 9), (4, 14)])
VARIABLES = "image", "text", "logit_scale", "logit_bias"


def make_config(**options):
    return LossConfig(
        contrastive_weight=WEIGHTS["contrastive"],
        similarity_weight=WEIGHTS["similarity_kl"],
        logits_weight=WEIGHTS["logits_mse"],
        temperature=2.5,
        chunk_size=8,
        **options,
    )


def variables_of(outputs):
    return {name: getattr(outputs, name) for name in VARIABLES}


@functools.cache
def models():
    """A student and a teacher of other width and scale."""
    return tuple(
        Outputs(**variables_of(outputs))
        for outputs in (make_outputs(0), make_outputs(1, embedding=D + 3, scale=60.0))
    )


@functools.cache
def expected(contrastive):
    """The terms, and the gradient of their weighted sum by central differences in float64."""
    config, (student, teacher) = make_config(contrastive=contrastive), models()

    def loss(variables):
        terms = problems.pairwise(config, Outputs(**variables), teacher, CAPTIONS)
        return sum(WEIGHTS[name] * term for name, term in terms.items())

    variables = {name: np.array(x, np.float64) for name, x in variables_of(student).items()}
    gradient, step = jax.tree.map(np.zeros_like, variables), 1e-5
    for name, x in variables.items():
        for index in np.ndindex(x.shape):
            start, sides = x[index], []
            for side in (start + step, start - step):
                x[index] = side
                sides.append(loss(variables))
            x[index] = start
            gradient[name][index] = (sides[0] - sides[1]) / (2 * step)
    return problems.pairwise(config, student, teacher, CAPTIONS), gradient


def place(mesh, outputs):
    rows, scalar = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    return jax.device_put(outputs, Outputs(rows, rows, scalar, scalar))


@pytest.mark.parametrize("contrastive", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("mesh", MESHES)
def test_terms_and_gradients(mesh, negatives, contrastive):
    mesh = make_mesh(MESHES[mesh])
    config = make_config(contrastive=contrastive, negatives=negatives)

    def loss(student, teacher, captions):
        return total_loss(config, student, teacher, captions, {}, mesh)

    student, teacher = (place(mesh, outputs) for outputs in models())
    captions = jax.device_put(CAPTIONS, batch_sharding(mesh))
    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, terms), gradient = function(student, teacher, captions)
    expected_terms, expected_gradient = expected(contrastive)
    assert set(terms) == set(expected_terms)
    for name, value in expected_terms.items():
        problems.assert_close(terms[name], value)
    for name, value in variables_of(gradient).items():
        # The bias moves all logits of a softmax alike: what it adds up cancels.
        scale = 1.0 if name == "logit_bias" else np.abs(expected_gradient[name]).max()
        error = np.abs(np.asarray(value) - expected_gradient[name]).max()
        assert error <= 1e-5 * scale, (name, error / scale)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_one_term_alone_needs_no_teacher(negatives):
    mesh, (student, _) = make_mesh(MESHES["slice, data, fsdp"]), models()
    config = LossConfig(negatives=negatives, chunk_size=8)
    loss, terms = total_loss(config, student, None, CAPTIONS, {}, mesh)
    assert list(terms) == ["contrastive"]
    problems.assert_close(loss, problems.softmax_contrastive(student, CAPTIONS))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_features_alone_need_no_pairs(negatives):
    mesh, (student, _) = make_mesh(MESHES["slice, data, fsdp"]), models()
    config = LossConfig(contrastive_weight=0, embedding_weight=1, negatives=negatives, chunk_size=8)
    loss, terms = total_loss(config, student, student, CAPTIONS, {}, mesh)
    assert list(terms) == ["embedding_l2"]
    assert loss == 0


@functools.cache
def temporary_bytes(negatives, devices, batch_size):
    """Of the compiled value and gradient of all pairwise terms, on each device."""
    mesh = make_mesh(MeshConfig(data=devices))
    config = dataclasses.replace(make_config(negatives=negatives), chunk_size=64)

    def rows(width, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((batch_size, width), dtype, sharding=batch_sharding(mesh))

    outputs = Outputs(rows(16), rows(16), *(jax.ShapeDtypeStruct((), jnp.float32),) * 2)

    def loss(student, teacher, captions):
        return total_loss(config, student, teacher, captions, {}, mesh)[0]

    function = jax.jit(jax.value_and_grad(loss))
    compiled = function.lower(outputs, outputs, rows(77, jnp.int32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("negatives", "devices", "part"),
    [("chunked", 1, 1 / 32), ("chunked", 8, 1 / 32), ("ring", 8, 1 / 8)],
)
def test_memory_is_that_of_a_block_of_the_logits(negatives, devices, part):
    gathered = temporary_bytes("gathered", devices, 2048)
    assert gathered > 4 * 2048 * 2048 / devices
    assert temporary_bytes(negatives, devices, 2048) < 1.3 * part * gathered


def test_memory_of_chunks_grows_with_the_batch_and_not_with_its_square():
    small, large = (temporary_bytes("chunked", 1, size) for size in (1024, 4096))
    assert large < 5 * small


@pytest.mark.parametrize(
    ("chunk_size", "devices"), [(3, 1), (12, 2), (4, 8), (32, 1)], ids=lambda x: str(x)
)
def test_chunks_that_do_not_make_up_the_batch_are_refused(chunk_size, devices):
    mesh = make_mesh(MeshConfig(data=devices))
    config = LossConfig(negatives="chunked", chunk_size=chunk_size)
    with pytest.raises(
        ValueError, match=rf"loss.chunk_size={chunk_size} .* batch of {B}.*{devices}"
    ):
        check_negatives(config, B, mesh)
    check_negatives(dataclasses.replace(config, negatives="ring"), B, mesh)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=9),
    st.integers(1, 8),
    st.floats(-10, 10, width=32),
)
def test_sums_of_exponentials_are_added_in_parts(row, cut, factor):
    row = np.asarray(row, np.float32)
    cut = min(cut, len(row) - 1)
    total = add(*(exp_sum(jnp.asarray(part)[None]) for part in (row[:cut], row[cut:])))
    exact = row.astype(np.float64)
    log_sum = np.log(np.exp(exact - exact.max()).sum())
    assert total.exponent[0] == row.max()
    np.testing.assert_allclose(np.log(total.value[0]), log_sum, atol=1e-6)
    weighted = exp_sum(jnp.asarray(row)[None], np.float32(factor))
    np.testing.assert_allclose(weighted.value[0], factor * np.exp(log_sum), rtol=1e-5, atol=1e-30)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=4, max_size=4))
def test_captions_are_equal_token_by_token(tokens):
    actual = equal_captions(jnp.asarray(tokens), jnp.asarray(tokens[1:]))
    assert actual.dtype == bool
    np.testing.assert_array_equal(actual, [[a == b for b in tokens[1:]] for a in tokens])
