"""Blocks one by one and stacked for a scan, each from the other."""

import dataclasses

import jax
import numpy as np
import pytest

from tclip.models import ARCHITECTURES, ClipPolicy, init_params, with_layout
from tclip.quant import TernaryTensor, init_quant, quantize_params

CONFIG = ARCHITECTURES["tiny"]
SCANNED = dataclasses.replace(CONFIG, scan_layers=True)


def make_params(packed):
    params = init_params(CONFIG, jax.random.key(0))
    if not packed:
        return params
    policy = ClipPolicy("all")
    return quantize_params(params, init_quant(params, policy), policy)


@pytest.mark.parametrize("packed", [False, True])
def test_stacking_and_unstacking_are_exact_inverses(packed):
    params = jax.jit(make_params, static_argnums=0)(packed)
    stacked = with_layout(params, SCANNED)
    for tower, layers in (("vision", CONFIG.vision.layers), ("text", CONFIG.text.layers)):
        kernel = stacked[tower]["blocks"]["mlp"]["fc2"]["kernel"]
        assert isinstance(kernel, TernaryTensor) == packed
        leaves = jax.tree.leaves(kernel)
        for i in range(layers):
            one = jax.tree.leaves(params[tower][f"blocks_{i}"]["mlp"]["fc2"]["kernel"])
            for leaf, expected in zip(leaves, one, strict=True):
                np.testing.assert_array_equal(leaf[i], expected)
        assert not any(name.startswith("blocks_") for name in stacked[tower])
    back = with_layout(stacked, CONFIG)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("config", [CONFIG, SCANNED])
def test_any_layout_becomes_that_of_the_config(config):
    expected = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    for start in (CONFIG, SCANNED):
        actual = jax.eval_shape(
            lambda start=start: with_layout(init_params(start, jax.random.key(0)), config)
        )
        assert actual == expected
