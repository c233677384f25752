import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.quant import ternarize, ternary_codes

GROUPS = {
    "scalar": lambda k, n: (),
    "tensor": lambda k, n: (1, 1),
    "channel": lambda k, n: (1, n),
    "row": lambda k, n: (k, 1),
    "block": lambda k, n: (k // 4, n),
    "element": lambda k, n: (k, n),
}


def spread(values, shape):
    """The value that each weight sees, by its index alone."""
    if values.ndim == 0:
        return np.full(shape, values)
    index = np.indices(shape)
    return values[tuple(i // (n // g) for i, n, g in zip(index, shape, values.shape, strict=True))]


def add_up(values, group):
    if group == ():
        return values.sum()
    out = np.zeros(group)
    index = np.indices(values.shape)
    where = tuple(i // (n // g) for i, n, g in zip(index, values.shape, group, strict=True))
    np.add.at(out, where, values)
    return out


def expected(w, scale, threshold, g, clip):
    """The op and its gradients in NumPy float64, from the formulas of the docstring."""
    s, t = spread(scale, w.shape), spread(threshold, w.shape)
    signs = (w > t).astype(float) - (w < -t)
    ramp = np.abs(np.abs(w) - t) < s / 2
    return (
        s * signs,
        g * (np.abs(w) < clip),
        add_up(g * signs, scale.shape),
        -add_up(g * np.sign(w) * ramp, threshold.shape),
    )


def problem(shape, scale_shape, threshold_shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    # Multiples of 1/64 are exact in every dtype here, and so many weights lie on a threshold.
    w = rng.integers(-96, 97, shape) / 64
    scale = rng.integers(1, 33, scale_shape) / 32
    threshold = rng.integers(0, 33, threshold_shape) / 64
    g = rng.integers(-8, 9, shape) / 8
    cast = [jnp.asarray(a, dtype) for a in (w, g)]
    return w, scale, threshold, g, *cast


@partial(jax.jit, static_argnums=4)
def value_and_cotangents(w, scale, threshold, g, clip):
    scale, threshold = scale.astype(jnp.float32), threshold.astype(jnp.float32)
    value, vjp = jax.vjp(lambda *a: ternarize(*a, clip), w, scale, threshold)
    return value, *vjp(g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("group", GROUPS)
def test_value_and_gradient_match_the_formulas(group, dtype):
    shape = (12, 5)
    shapes = (GROUPS[group](*shape),) * 2
    w, scale, threshold, g, w_cast, g_cast = problem(shape, *shapes, dtype)
    results = value_and_cotangents(w_cast, scale, threshold, g_cast, 0.75)
    for result, reference in zip(results, expected(w, scale, threshold, g, 0.75), strict=True):
        # Every product and sum of these numbers is exact in float32.
        np.testing.assert_array_equal(np.asarray(result, np.float64), reference)
    assert [r.dtype for r in results] == [dtype, dtype, jnp.float32, jnp.float32]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_grouping_matches_the_formulas(data):
    shape = data.draw(st.sampled_from([(1,), (6,), (4, 6), (2, 6, 4), (1, 6, 1), (2, 1, 4, 6)]))
    divisors = [[d for d in range(1, n + 1) if n % d == 0] for n in shape]
    shapes = [tuple(data.draw(st.sampled_from(d)) for d in divisors) for _ in range(2)]
    seed = data.draw(st.integers(0, 2**16))
    w, scale, threshold, g, w_cast, g_cast = problem(shape, *shapes, jnp.float32, seed)
    results = value_and_cotangents(w_cast, scale, threshold, g_cast, 1.0)
    for result, reference in zip(results, expected(w, scale, threshold, g, 1.0), strict=True):
        np.testing.assert_array_equal(np.asarray(result), reference)
    np.testing.assert_array_equal(
        np.asarray(ternary_codes(w_cast, jnp.float32(threshold))),
        np.sign(results[0]).astype(np.int8),
    )


def test_layers_under_vmap_scan_and_remat_are_grouped_like_a_leading_axis():
    shape, group = (3, 8, 4), (3, 2, 4)
    _, scale, threshold, _, w, g = problem(shape, group, group, jnp.float32)
    args = (w, jnp.float32(scale), jnp.float32(threshold))

    def loss(op):
        return lambda *a: (op(*a) * g).sum()

    def scanned(*a):
        return jax.lax.scan(lambda _, x: (None, ternarize(*x)), None, a)[1]

    reference = jax.value_and_grad(loss(ternarize), argnums=(0, 1, 2))(*args)
    for op in (jax.vmap(ternarize), scanned, jax.checkpoint(ternarize), jax.jit(ternarize)):
        result = jax.jit(jax.value_and_grad(loss(op), argnums=(0, 1, 2)))(*args)
        jax.tree.map(np.testing.assert_array_equal, result, reference)


def test_bfloat16_weights_are_compared_in_float32():
    w = jnp.asarray([0.5, -0.5], jnp.bfloat16)
    # In bfloat16 both thresholds would round to 0.5.
    np.testing.assert_array_equal(ternarize(w, 1.0, 0.4999), [1, -1])
    np.testing.assert_array_equal(ternarize(w, 1.0, 0.5001), [0, 0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_anywhere_gives_nan_exactly_where_it_is_used(dtype):
    w = jnp.asarray([[0.1, -2.0], [jnp.nan, 2.0]], dtype)
    assert np.isnan(np.asarray(ternarize(w, 1.0, 0.5), np.float32)).tolist() == [
        [False, False],
        [True, False],
    ]
    w = jnp.nan_to_num(w)
    bad = jnp.asarray([[1.0, jnp.nan]])
    for result in (ternarize(w, bad, 0.5), ternarize(w, 1.0, bad)):
        assert np.isnan(np.asarray(result, np.float32)).tolist() == [[False, True]] * 2


def test_zero_weights_are_zero_at_a_zero_threshold():
    w = jnp.asarray([0.0, -0.0, 1e-30])
    np.testing.assert_array_equal(ternarize(w, 1.0, 0.0), [0, 0, 1])
    np.testing.assert_array_equal(ternary_codes(w, 0.0), np.int8([0, 0, 1]))


def test_backward_keeps_nothing_but_the_arguments():
    w = jnp.ones((64, 32))
    scale, threshold = jnp.ones((1, 32)), jnp.ones((4, 32))
    saved = jax.tree.leaves(jax.vjp(ternarize, w, scale, threshold)[1])
    assert sorted(a.size for a in saved) == [32, 4 * 32, 64 * 32]


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 4), (1, 1, 1), (8, 8), (0, 4)])
def test_a_scale_that_does_not_group_the_weight_is_refused(shape):
    w = jnp.ones((4, 6))
    with pytest.raises(ValueError, match=r"scale of shape .* does not group"):
        ternarize(w, jnp.ones(shape), 0.5)
    with pytest.raises(ValueError, match=r"threshold of shape .* does not group"):
        ternary_codes(w, jnp.ones(shape))


def test_integer_weights_are_refused():
    with pytest.raises(ValueError, match="floating-point weights, got int32"):
        ternarize(jnp.ones((2, 2), jnp.int32), 1.0, 0.5)


def test_the_import_pulls_in_jax_and_nothing_above_it():
    code = (
        "import sys; import jax, numpy; before = {m.split('.')[0] for m in sys.modules};"
        "from tclip.quant import ternarize;"
        "after = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names);"
        "print(*sorted(after - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["tclip"]
