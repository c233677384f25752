"""The optimiser against its formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tclip.models import ClipPolicy, architecture, init_params
from tclip.parallel.sharding import path_name
from tclip.quant import init_quant
from tclip.run.optim import OptimConfig, decay_mask, learning_rate, make_optimizer


def test_cosine_schedule_follows_its_formula():
    config = OptimConfig(lr=0.4, warmup_steps=10, final_lr_fraction=0.1)
    schedule = learning_rate(config, 110)
    for step in range(111):
        if step < 10:
            expected = 0.4 * step / 10
        else:
            cosine = 0.5 * (1 + np.cos(np.pi * (step - 10) / 100))
            expected = 0.4 * (0.1 + 0.9 * cosine)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_constant_schedule_has_a_linear_tail():
    config = OptimConfig(
        lr=0.4, warmup_steps=10, schedule="constant", decay_fraction=0.3, final_lr_fraction=0.5
    )
    schedule = learning_rate(config, 100)
    for step, expected in {5: 0.2, 10: 0.4, 69: 0.4, 70: 0.4, 85: 0.3, 100: 0.2}.items():
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_constant_schedule_without_a_tail_and_without_warmup():
    config = OptimConfig(lr=0.4, warmup_steps=0, schedule="constant", decay_fraction=0.0)
    schedule = learning_rate(config, 3)
    assert [float(schedule(step)) for step in range(3)] == pytest.approx([0.4] * 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "linear"},
        {"decay_fraction": 1.5},
        {"ema_decay": -0.1},
        {"lr": 0.0},
        {"warmup_steps": -1},
    ],
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValueError, match="optim"):
        OptimConfig(**changes)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_warmup_longer_than_training_is_refused(schedule):
    with pytest.raises(ValueError, match=r"warmup_steps=100 .* train\.steps=100"):
        learning_rate(OptimConfig(warmup_steps=100, schedule=schedule), 100)


def test_exactly_the_matrices_decay():
    """In CLIP these are the leaves of two axes, but for the position embeddings."""
    params = jax.eval_shape(lambda key: init_params(architecture("tiny"), key), jax.random.key(0))
    policy = ClipPolicy(policy="all")
    quant = jax.eval_shape(lambda params: init_quant(params, policy), params)
    trainable = {"params": params, "quant": quant, "adapters": {"image_embedding": params}}
    trainable["adapters"] = {"image_embedding": jnp.zeros((4, 8))}
    mask = decay_mask(trainable, OptimConfig().no_decay)
    decays = {path_name(p) for p, m in jax.tree_util.tree_leaves_with_path(mask) if m}
    matrices = {
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)
        if leaf.ndim == 2 and not path_name(path).startswith("quant/")
    }
    assert decays == {name for name in matrices if not name.endswith("position_embedding")}
    assert "params/text/token_embedding/embedding" in decays
    assert "adapters/image_embedding" in decays


def test_two_updates_follow_adamw_with_clipping_and_a_slower_quant():
    config = OptimConfig(
        lr=0.1,
        warmup_steps=0,
        schedule="constant",
        decay_fraction=0.0,
        weight_decay=0.3,
        grad_clip=1.0,
        quant_lr_multiplier=0.5,
    )
    trainable = {
        "params": {"fc": {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.asarray([0.5])}},
        "quant": {"fc/kernel": {"log_scale": jnp.asarray([[0.3, 0.4]])}},
        "adapters": {},
    }
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(trainable)
    factors = {"kernel": 1.0, "bias": 1.0, "log_scale": 0.5}
    decays = {"kernel": 0.3, "bias": 0.0, "log_scale": 0.0}
    moments = dict.fromkeys(factors, (0.0, 0.0))
    values = by_name(trainable)
    rng = np.random.default_rng(0)
    for t in (1, 2):
        grads = jax.tree.map(
            lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), trainable
        )
        updates, state = optimizer.update(grads, state, trainable)
        trainable = optax.apply_updates(trainable, updates)

        norm = np.sqrt(sum(np.sum(np.square(g)) for g in by_name(grads).values()))
        for name, g in by_name(grads).items():
            g = g * min(1.0, 1.0 / norm)
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
            moments[name] = m, v
            adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.98**t)) + 1e-6)
            step = 0.1 * factors[name] * (adam + decays[name] * values[name])
            values[name] = values[name] - step
        for name, value in by_name(trainable).items():
            np.testing.assert_allclose(value, values[name], rtol=1e-5)


def by_name(tree) -> dict[str, np.ndarray]:
    return {
        path_name(path).rsplit("/", 1)[1]: np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
