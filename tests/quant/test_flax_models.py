"""The same calls in models that know nothing of ternary weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from tclip.quant import TernaryPolicy, init_quant, quantize_params, ternarize_params, ternary_paths

POLICY = TernaryPolicy(r"(?:.*/)?hidden/kernel", "block:4", "optimal")


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="out")(nn.relu(nn.Dense(16, name="hidden")(x)))


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def train(params, apply, steps=60):
    """Fits XOR of two signs by gradient descent in weights and quant; the losses."""
    x = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (64, 8)), jnp.float32)
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    quant = init_quant(params, POLICY)

    def loss(trainable):
        logits = apply(ternarize_params(*trainable, POLICY), x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    def step(trainable, _):
        value, grads = jax.value_and_grad(loss)(trainable)
        return jax.tree.map(lambda p, g: p - 0.1 * g, trainable, grads), value

    return jax.jit(lambda t: jax.lax.scan(step, t, None, steps))((params, quant))


def check_ternary(w):
    """Two magnitudes a block of four inputs: 0 and the scale."""
    blocks = np.abs(np.asarray(w)).reshape(2, 4, 16)
    assert ((blocks == 0) | (blocks == blocks.max(1, keepdims=True))).all()


def test_linen_model_trains_with_ternary_weights():
    model = LinenModel()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8)))
    assert ternary_paths(variables, POLICY) == ("params/hidden/kernel",)
    (variables, quant), losses = train(variables, model.apply)
    assert losses[-1] < 0.7 * losses[0]
    ternary = ternarize_params(variables, quant, POLICY)
    check_ternary(ternary["params"]["hidden"]["kernel"])
    packed = quantize_params(variables, quant, POLICY, jnp.float32)
    np.testing.assert_array_equal(
        packed["params"]["hidden"]["kernel"].dequantize(), ternary["params"]["hidden"]["kernel"]
    )


def test_nnx_model_trains_with_ternary_weights():
    graph, state = nnx.split(NNXModel(nnx.Rngs(0)))
    assert ternary_paths(state, POLICY) == ("hidden/kernel",)
    assert ternary_paths(nnx.to_pure_dict(state), POLICY) == ("hidden/kernel",)
    (state, quant), losses = train(state, lambda s, x: nnx.merge(graph, s)(x))
    assert losses[-1] < 0.7 * losses[0]
    ternary = nnx.merge(graph, ternarize_params(state, quant, POLICY))
    check_ternary(ternary.hidden.kernel[...])
