"""Ternary products on eight devices under shard_map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from tclip.kernels import ternary_matmul
from tclip.quant import TernaryTensor
from tests.helpers.matmul_problems import problem, quantized


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def sharded(mesh, function, in_specs, out_specs):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


@pytest.mark.parametrize("activations", ["native", "int8"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_sharded_outputs(mesh, blocks, activations):
    x, w, *_ = problem((2, 3), 40, 64, (blocks, 64), jnp.float32)
    bias = jnp.linspace(-1, 1, 64)

    def local(x, words, scale, bias):
        tensor = TernaryTensor(words, scale, 40)
        return ternary_matmul(x, tensor, bias=bias, activations=activations, activation="gelu")

    columns = P(None, "x")
    function = sharded(mesh, local, (P(), columns, columns, P("x")), P(None, None, "x"))
    expected = ternary_matmul(x, w, bias=bias, activations=activations, activation="gelu")
    y = function(x, w.words, w.scale, bias)
    assert y.sharding.spec == P(None, None, "x")
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def sharded_inputs(mesh, w, activations):
    """Splits K over the devices, by words, and sums."""
    blocks = w.scale.shape[0] > 1

    def local(x, words, scale):
        tensor = TernaryTensor(words, scale, w.rows // 8)
        return jax.lax.psum(ternary_matmul(x, tensor, activations=activations), "x")

    scale_spec = P("x") if blocks else P()
    return sharded(mesh, local, (P(None, "x"), P("x"), scale_spec), P())


@pytest.mark.parametrize("blocks", [1, 8, 16])
def test_sharded_inputs_are_summed(mesh, blocks):
    x, w, expected, magnitude = problem((3,), 256, 20, (blocks, 20), jnp.float32)
    y = sharded_inputs(mesh, w, "native")(x, w.words, w.scale)
    assert (np.abs(np.asarray(y, np.float64) - expected) <= 1e-6 * magnitude).all()


def test_sharded_inputs_are_rounded_where_they_lie(mesh):
    x, w, *_ = problem((3,), 256, 20, (1, 20), jnp.float32)
    y = sharded_inputs(mesh, w, "int8")(x, w.words, w.scale)
    parts = quantized(np.asarray(x).reshape(3, 8, 32)).reshape(3, 256)
    w64 = np.asarray(w.dequantize(), np.float64)
    np.testing.assert_allclose(y, parts @ w64, atol=1e-6 * (np.abs(parts) @ np.abs(w64)).max())


@pytest.mark.parametrize("split", ["batch", "outputs"])
def test_gradients_of_sharded_products(mesh, split):
    x, w, *_ = problem((16,), 40, 64, (1, 64), jnp.float32)
    scale = w.scale.astype(jnp.float32)
    specs = (P("x"), P(), P()) if split == "batch" else (P(), P(None, "x"), P(None, "x"))
    out = P("x") if split == "batch" else P(None, "x")

    def product(x, words, scale):
        return ternary_matmul(x, TernaryTensor(words, scale, 40))

    def loss(function, x, scale):
        return jnp.sin(function(x, w.words, scale)).sum()

    def gradient(function):
        return jax.jit(jax.grad(functools.partial(loss, function), argnums=(0, 1)))(x, scale)

    for actual, expected in zip(
        gradient(jax.shard_map(product, mesh=mesh, in_specs=specs, out_specs=out)),
        gradient(product),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)
