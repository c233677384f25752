"""Weights that say how they are to be multiplied: packed ternary ones, by int8 activations."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from tclip.quant.groups import expand, group_shape
from tclip.quant.packing import pack, unpack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TernaryTensor:
    """The weight [..., K, N] whose value is scale * codes; a pytree of its two arrays.

    Attributes:
      words: int32 [..., ceil(K/16), N], the codes as `pack` lays them out.
      scale: float [..., 1 or K/B, 1 or N], grouped as in `ternarize`.
      rows: K, which the number of words does not tell; static under jit.
    """

    words: jax.Array
    scale: jax.Array
    rows: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, [..., K, N]."""
        return (*self.words.shape[:-2], self.rows, self.words.shape[-1])

    @property
    def ndim(self) -> int:
        return self.words.ndim

    def dequantize(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The float weight [..., K, N], multiplied in float32 and rounded once to dtype."""
        codes = unpack(self.words, self.rows)
        return (codes * expand(self.scale.astype(jnp.float32), codes.shape)).astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Activations:
    """A weight [..., K, N] to multiply activations by that are first rounded to 8 bits.

    Attributes:
      weight: an array, for training with fake-quantised activations, or packed.
    """

    weight: jax.Array | TernaryTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape


def pack_ternary(w: jax.Array, group: str) -> TernaryTensor:
    """Packs what `ternarize` returned, [..., K, N], without loss; no gradient flows through.

    Args:
      group: of the scales that w was made with.
    """
    w = jax.lax.stop_gradient(w)
    *layers, groups, columns = group_shape(w.shape, group)
    rows = w.shape[-2]
    largest = jnp.abs(w).reshape(*layers, groups, rows // groups, -1).max(axis=-2)
    scale = largest if columns > 1 else largest.max(axis=-1, keepdims=True)
    return TernaryTensor(pack(jnp.sign(w).astype(jnp.int8)), scale, rows)
