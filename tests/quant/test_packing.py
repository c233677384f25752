import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tclip.quant import ESTIMATORS, TernaryTensor, pack, ternarize, unpack
from tclip.quant.packing import code_at
from tclip.quant.tensor import pack_ternary

shapes = st.tuples(st.sampled_from([1, 2, 15, 16, 17, 31, 33, 48]), st.sampled_from([1, 5]))


def words_by_hand(codes):
    """The documented bits, one at a time, as Python integers."""
    rows, columns = codes.shape
    out = []
    for r in range((rows + 15) // 16):
        line = []
        for column in range(columns):
            word = 0
            for i in range(16):
                row = 16 * r + i
                code = int(codes[row, column]) if row < rows else 0
                word |= {-1: 0b11, 0: 0b00, 1: 0b01}[code] << (2 * i)
            line.append(word - (1 << 32) if word >= 1 << 31 else word)
        out.append(line)
    return out


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(0, 2**16))
def test_round_trip_and_layout(shape, seed):
    codes = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    words = jax.jit(pack)(codes)
    assert words.dtype == jnp.int32
    assert np.asarray(words).tolist() == words_by_hand(codes)
    back = jax.jit(unpack, static_argnums=1)(words, shape[0])
    assert back.dtype == jnp.int8
    np.testing.assert_array_equal(back, codes)


def test_leading_axes_are_packed_one_by_one_and_under_jit_and_vmap():
    codes = np.random.default_rng(0).integers(-1, 2, (2, 3, 21, 5)).astype(np.int8)
    words = pack(codes)
    assert words.shape == (2, 3, 2, 5)
    np.testing.assert_array_equal(words[1, 2], pack(codes[1, 2]))
    np.testing.assert_array_equal(jax.jit(pack)(codes), words)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(pack))(codes), words)
    np.testing.assert_array_equal(jax.jit(unpack, static_argnums=1)(words, 21), codes)


def test_each_position_of_a_word():
    codes = np.random.default_rng(1).integers(-1, 2, (32, 3)).astype(np.int8)
    words = pack(codes)
    for i in range(16):
        np.testing.assert_array_equal(code_at(words, i), codes[i::16])


@pytest.mark.parametrize("codes", [np.ones((2, 2), np.int32), np.ones(4, np.int8)])
def test_pack_refuses_other_arrays(codes):
    with pytest.raises(ValueError, match="pack takes int8 codes"):
        pack(codes)


@pytest.mark.parametrize("code", [2, -2, -128])
def test_pack_refuses_other_codes(code):
    with pytest.raises(ValueError, match=r"codes in \{-1, 0, 1\}"):
        pack(np.full((2, 2), code, np.int8))


def test_unpack_refuses_a_wrong_row_count_or_dtype():
    words = pack(np.ones((20, 2), np.int8))
    for rows in (0, 16, 33):
        with pytest.raises(ValueError, match=f"2 words a column do not hold {rows} rows"):
            unpack(words, rows)
    with pytest.raises(ValueError, match="unpack takes int32 words"):
        unpack(words.astype(jnp.float32), 20)


@pytest.mark.parametrize("scale_shape", [(1, 1), (1, 3), (5, 3), (20, 3)])
def test_tensor_is_scale_times_codes_and_a_pytree(scale_shape):
    rng = np.random.default_rng(2)
    codes = rng.integers(-1, 2, (20, 3)).astype(np.int8)
    scale = rng.uniform(0.1, 1, scale_shape).astype(np.float16)
    tensor = TernaryTensor(pack(codes), jnp.asarray(scale), rows=20)
    assert (tensor.shape, tensor.ndim) == ((20, 3), 2)
    repeats = [n // s for n, s in zip((20, 3), scale_shape, strict=True)]
    expected = codes * scale.astype(np.float32).repeat(repeats[0], 0).repeat(repeats[1], 1)
    for dtype in (jnp.float32, jnp.bfloat16):
        dense = jax.jit(lambda t, d=dtype: t.dequantize(d))(tensor)
        np.testing.assert_array_equal(dense, jnp.asarray(expected).astype(dtype))
    leaves, structure = jax.tree.flatten(tensor)
    assert [leaf.shape for leaf in leaves] == [(2, 3), scale_shape]
    assert jax.tree.unflatten(structure, leaves).rows == 20


def test_a_scan_slices_stacked_tensors_by_layer():
    codes = np.random.default_rng(3).integers(-1, 2, (4, 20, 3)).astype(np.int8)
    scale = jnp.arange(1.0, 13).reshape(4, 1, 3)
    stacked = TernaryTensor(pack(codes), scale, rows=20)
    assert stacked.shape == (4, 20, 3)
    _, dense = jax.lax.scan(lambda _, layer: (None, layer.dequantize()), None, stacked)
    np.testing.assert_array_equal(dense, codes * np.asarray(scale))


def ternary(shape, group, seed=0, dtype=np.float32):
    w = jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)
    return ternarize(w, *ESTIMATORS["twn"](w, group))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 5).map(lambda n: 8 * n),
    st.integers(1, 5),
    st.sampled_from(["tensor", "channel", "block:8"]),
    st.integers(0, 2**16),
)
def test_ternary_weights_are_packed_without_loss(layers, rows, columns, group, seed):
    w = ternary((layers, rows, columns), group, seed)
    packed = pack_ternary(w, group)
    assert packed.shape == w.shape
    np.testing.assert_array_equal(packed.dequantize(), w)


def test_groups_of_zeros_and_weights_of_reduced_precision():
    w = ternary((16, 4), "channel", dtype=jnp.bfloat16).at[:, 1].set(0)
    np.testing.assert_array_equal(pack_ternary(w, "channel").dequantize(jnp.bfloat16), w)


def test_the_packed_scale_of_a_group_is_its_magnitude():
    w = ternary((16, 3), "block:8")
    blocks = np.abs(np.asarray(w)).reshape(2, 8, 3).max(axis=1)
    np.testing.assert_array_equal(pack_ternary(w, "block:8").scale, blocks)
