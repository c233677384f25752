"""Weights that fsdp spreads over the devices: what is computed with them, and what travels."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tclip.models import effective_weights
from tclip.parallel.gather import FloatCopy, GatheredWeight, gather_weights
from tclip.parallel.sharding import MeshConfig, make_mesh, param_shardings
from tclip.plan.inputs import abstract_batch
from tclip.quant import ESTIMATORS, Int8Activations, ternarize, ternary_paths
from tclip.quant.tensor import pack_ternary
from tclip.run.experiment import Experiment, TrainConfig
from tclip.train.sharded_step import make_sharded_step
from tests.helpers import tiny

BATCH = 8
ALL_GATHER = re.compile(r" = \(?(\w+)\[([\d,]*)\]\S* all-gather(?:-start)?\(")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def spread() -> NamedSharding:
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(None, "fsdp"))


def gathered(w: jax.Array, kind: str, spread: NamedSharding) -> GatheredWeight:
    everywhere = NamedSharding(spread.mesh, PartitionSpec())
    copy = FloatCopy(w, everywhere) if kind == "float" else pack_ternary(w, kind)
    return GatheredWeight(w, copy, spread)


@pytest.mark.parametrize("kind", ["float", "tensor", "channel", "block:8"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_are_those_of_the_weight(spread, kind, dtype):
    latent = jnp.asarray(RNG.standard_normal((24, 16)), jnp.float32)
    groups = ESTIMATORS["twn"](latent, "channel" if kind == "float" else kind)
    x = jnp.asarray(RNG.standard_normal((3, 5, 24)), dtype)

    def value_and_gradients(product):
        def f(latent, x, *groups):
            w = latent if kind == "float" else ternarize(latent, *groups)
            return jnp.sum(jnp.sin(product(w, x)).astype(jnp.float32))

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))(latent, x, *groups)

    ours = value_and_gradients(lambda w, x: gathered(w, kind, spread).matmul(x))
    expected = value_and_gradients(lambda w, x: x @ w.astype(dtype))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        # The same products, added up in the order that the compiler likes.
        tolerance = 2e-6 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * abs(b).max())


@pytest.mark.parametrize("kind", ["float", "channel"])
def test_a_dense_table_is_the_weight_and_its_gradient_stays_spread(spread, kind):
    w = ternarize(jnp.asarray(RNG.standard_normal((24, 16)), jnp.float32), 0.5, 0.5)
    g = jnp.asarray(RNG.standard_normal((24, 16)), jnp.float32)

    @jax.jit
    def f(w):
        leaf = gathered(w, kind, spread)
        dense, vjp = jax.vjp(lambda leaf: leaf.dense(jnp.float32), leaf)
        return dense, vjp(g)[0].value

    dense, gradient = f(jax.device_put(w, spread))
    np.testing.assert_array_equal(dense, w)
    np.testing.assert_array_equal(gradient, g)
    assert gradient.sharding.is_equivalent_to(spread, 2)


def is_leaf(leaf) -> bool:
    return isinstance(leaf, GatheredWeight | Int8Activations)


@pytest.mark.parametrize("activations", ["native", "int8"])
def test_leaves_that_are_spread_are_gathered(activations):
    policy = dataclasses.replace(tiny.POLICY, policy="blocks", activations=activations)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(tiny.params(), param_shardings(tiny.params(), mesh))
    paths = ternary_paths(tiny.params(), policy)
    quant = {path: tiny.quant()[path] for path in paths}

    @jax.jit
    def weights(params):
        plain = effective_weights(params, quant, policy)
        return plain, gather_weights(plain, mesh, paths, policy.group)

    plain, everywhere = weights(params)
    kinds = {"TernaryTensor": 0, "FloatCopy": 0}
    leaves = (jax.tree.leaves(tree, is_leaf=is_leaf) for tree in (everywhere, plain))
    for leaf, expected in zip(*leaves, strict=True):
        if isinstance(leaf, Int8Activations):
            leaf, expected = leaf.weight, expected.weight
        if isinstance(leaf, GatheredWeight):
            kinds[type(leaf.copy).__name__] += 1
            np.testing.assert_array_equal(leaf.copy.dequantize(jnp.float32), expected)
            leaf = leaf.value
        np.testing.assert_array_equal(leaf, expected)
    # Projections, patches and tokens are not ternary by this policy.
    assert kinds == {"TernaryTensor": len(paths), "FloatCopy": 4}


def test_without_fsdp_nothing_is_gathered():
    params = tiny.params()
    assert gather_weights(params, make_mesh(MeshConfig())) is params


def largest_gathered(policy: str) -> dict[str, int]:
    """Entries of the largest array of each type that a step on eight devices gathers."""
    model = dataclasses.replace(tiny.config(), scan_layers=True)
    quant = dataclasses.replace(tiny.POLICY, policy=policy)
    experiment = Experiment(
        model=model,
        preprocess=tiny.PREPROCESS,
        quant=quant,
        train=TrainConfig(batch_size=BATCH),
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    jitted = make_sharded_step(experiment, None, mesh)
    batch = abstract_batch(experiment, None, False, mesh)
    text = jitted.step.lower(jitted.state, None, batch).compile().as_text()
    largest = {}
    for dtype, shape in ALL_GATHER.findall(text):
        entries = int(np.prod([int(n) for n in shape.split(",") if n], initial=1))
        largest[dtype] = max(largest.get(dtype, 0), entries)
    return largest


def test_of_ternary_weights_packed_words_travel():
    tower = tiny.config().text
    kernel, table = tower.width * tower.mlp_dim, tower.vocab_size * tower.width
    floats, ternary = largest_gathered("none"), largest_gathered("all")
    assert floats["f32"] == table
    # Scales and the batch's embeddings are gathered as floats, weights are not.
    assert ternary["f32"] < kernel
    assert ternary["s32"] == -(-tower.vocab_size // 16) * tower.width
