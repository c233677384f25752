"""Sixteen ternary codes to an int32 word, along the input dimension.

Word r of a column holds the codes of rows 16r .. 16r+15, two bits each, least significant first, in
two's complement: -1 is 0b11, 0 is 0b00, +1 is 0b01. Rows beyond the last are 0.
"""

import jax
import jax.numpy as jnp
from jax.core import Tracer

CODES_PER_WORD = 16


def pack(codes: jax.Array) -> jax.Array:
    """Packs int8 codes in {-1, 0, 1}, [..., K, N], into int32 words, [..., ceil(K/16), N].

    Raises:
      ValueError: another dtype than int8, fewer than two axes, or, outside of jit, another code.
    """
    codes = jnp.asarray(codes)
    if codes.dtype != jnp.int8 or codes.ndim < 2:
        raise ValueError(
            f"pack takes int8 codes [..., rows, columns], got {codes.dtype}{list(codes.shape)}"
        )
    if not isinstance(codes, Tracer) and jnp.any((codes < -1) | (codes > 1)):
        raise ValueError("pack takes codes in {-1, 0, 1}, got others")
    *layers, rows, columns = codes.shape
    words = -(-rows // CODES_PER_WORD)
    padding = [(0, 0)] * len(layers) + [(0, words * CODES_PER_WORD - rows), (0, 0)]
    fields = jnp.pad(codes, padding).reshape(*layers, words, CODES_PER_WORD, columns)
    shifts = 2 * jnp.arange(CODES_PER_WORD, dtype=jnp.uint32)[:, None]
    # The fields of a word do not overlap, so that their sum is their union.
    bits = ((fields.astype(jnp.uint32) & 3) << shifts).sum(axis=-2, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(bits, jnp.int32)


def unpack(words: jax.Array, rows: int) -> jax.Array:
    """The inverse of `pack`: int32 words [..., ceil(rows/16), N] to int8 codes [..., rows, N].

    Raises:
      ValueError: another dtype than int32, or another number of words than `rows` needs.
    """
    words = jnp.asarray(words)
    if words.dtype != jnp.int32 or words.ndim < 2:
        raise ValueError(
            f"unpack takes int32 words [..., words, columns], got {words.dtype}{list(words.shape)}"
        )
    *layers, count, columns = words.shape
    if count != -(-rows // CODES_PER_WORD):
        raise ValueError(f"{count} words a column do not hold {rows} rows, 16 to a word")
    codes = code_at(words[..., None, :], jnp.arange(CODES_PER_WORD, dtype=jnp.int32)[:, None])
    return codes.reshape(*layers, count * CODES_PER_WORD, columns)[..., :rows, :]


def code_at(words: jax.Array, position: jax.Array | int) -> jax.Array:
    """The int8 code in the given field, 0 to 15, of each word."""
    # Shifting left drops the fields above; shifting right, arithmetically, extends the sign.
    return ((words << (30 - 2 * position)) >> 30).astype(jnp.int8)
