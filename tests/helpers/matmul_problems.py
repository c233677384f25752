"""Ternary products with what they should be in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh

from tclip.quant import TernaryTensor, pack

# Relative to the sum of the magnitudes of the products: the rounding of the result, and in float32
# that of the additions.
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-10}

V5E = AbstractDevice("TPU v5 lite", 1, "tpu")
V5P = AbstractDevice("TPU v5p", 2, "tpu")
V6E = AbstractDevice("TPU v6 lite", 1, "tpu")
TPU7X = AbstractDevice("TPU7x", 1, "tpu")
H100 = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")


def program_for(device: AbstractDevice):
    """Within, programs are traced for the device."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


def problem(lead, rows, columns, scale_shape, dtype, seed=0):
    """x, the packed weight, and x @ w and |x| @ |w| in NumPy float64."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    scale = rng.uniform(0.01, 1, scale_shape).astype(np.float16)
    x = jnp.asarray(rng.normal(size=(*lead, rows)), dtype)
    x64, w64 = np.asarray(x, np.float64), codes * full_scale(scale, (rows, columns))
    tensor = TernaryTensor(pack(codes), jnp.asarray(scale), rows)
    return x, tensor, x64 @ w64, np.abs(x64) @ np.abs(w64)


def shapes_of(m, k, n, scale_shape, dtype):
    """The shapes of x and of a packed weight."""
    scale = jax.ShapeDtypeStruct(scale_shape, jnp.float32)
    words = jax.ShapeDtypeStruct((-(-k // 16), n), jnp.int32)
    return jax.ShapeDtypeStruct((m, k), dtype), TernaryTensor(words, scale, k)


def full_scale(scale, shape):
    """A scale in any grouping, repeated over the weight, in float64."""
    full = np.asarray(scale, np.float64)
    if full.ndim:
        repeats = [n // s for n, s in zip(shape, full.shape, strict=True)]
        full = full.repeat(repeats[0], 0).repeat(repeats[1], 1)
    return full


def quantized(x):
    """What rounding the rows of x to 8 bits leaves of it, in float64."""
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / np.where(scale == 0, 1, scale)) * scale


def integer_rows(shape, seed=0):
    """Integers of magnitude up to 127, reached in every row: 8-bit rounding leaves them alone."""
    x = np.random.default_rng(seed).integers(-126, 127, shape)
    x[..., 0] = 127
    return x
