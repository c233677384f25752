"""Tables that say where each parameter lies in another format, read in both directions."""

import dataclasses
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from tclip.models import CLIPConfig, init_params, leaves_by_path

Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """What turns their array into ours and, exactly, back."""

    to_ours: Function
    to_theirs: Function


def _patches_to_convolution(kernel_KxW: np.ndarray) -> np.ndarray:
    patch_size = math.isqrt(kernel_KxW.shape[0] // 3)
    return kernel_KxW.reshape(patch_size, patch_size, 3, -1).transpose(3, 2, 0, 1)


SAME = Transform(lambda x: x, lambda x: x)
# torch's linear layers keep [outputs, inputs].
TRANSPOSED = Transform(lambda x: x.T, lambda x: x.T)
# torch's convolution keeps [width, 3, rows, columns]; ours is [rows * columns * 3, width].
CONVOLUTION = Transform(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _patches_to_convolution
)


def under_axes(n: int) -> Transform:
    """Theirs has `n` leading axes of size 1 more than ours."""
    return Transform(lambda x: x.reshape(x.shape[n:]), lambda x: x.reshape((1,) * n + x.shape))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs.

    Attributes:
      theirs: its name.
      ours: "/"-joined path of our parameter; of several if theirs holds them side by side, along
        the last axis of ours.
      transform: between the two.
    """

    theirs: str
    ours: tuple[str, ...]
    transform: Transform = SAME


Table = Iterable[Entry]


def linear(theirs: str, ours: str) -> Table:
    """torch's Linear with a bias."""
    yield Entry(f"{theirs}.weight", (f"{ours}/kernel",), TRANSPOSED)
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",))


def norm(theirs: str, ours: str) -> Table:
    """torch's LayerNorm."""
    yield Entry(f"{theirs}.weight", (f"{ours}/scale",))
    yield Entry(f"{theirs}.bias", (f"{ours}/bias",))


def packed_attention(theirs: str, ours: str) -> Table:
    """torch's MultiheadAttention, which holds the projections to q, k and v in one tensor."""
    paths = [f"{ours}/{name}_proj" for name in "qkv"]
    yield Entry(f"{theirs}.in_proj_weight", tuple(f"{p}/kernel" for p in paths), TRANSPOSED)
    yield Entry(f"{theirs}.in_proj_bias", tuple(f"{p}/bias" for p in paths))
    yield from linear(f"{theirs}.out_proj", f"{ours}/out_proj")


def import_params(
    tensors: Mapping[str, np.ndarray],
    table: Table,
    config: CLIPConfig,
    ignored: Container[str],
    file: Path,
) -> dict[str, Any]:
    """Returns float32 parameters of `config`, blocks one by one.

    Args:
      tensors: by their names.
      table: of every parameter of `config`.
      ignored: names of tensors that need not be there and mean nothing.
      file: what the tensors were read from, for messages.

    Raises:
      ValueError: a tensor is missing, unknown, of another shape, of integers, or not finite; sizes
        in `config` of which no model can be.
    """
    shapes = _scanned_shapes(config, file)
    params, used = {}, set()
    # A config may name a billion layers: a table that is made as it is read ends at the first.
    for entry in table:
        tensor = _checked(entry.theirs, tensors, _their_shape(entry, shapes), file)
        parts = _split(entry.transform.to_ours(tensor), len(entry.ours))
        for path, part in zip(entry.ours, parts, strict=True):
            params[path] = jnp.asarray(part, jnp.float32)
        used.add(entry.theirs)
    for name in tensors.keys() - used:
        if name not in ignored:
            raise ValueError(f"{file}: tensor {name!r} has no place in a model of this config")
    return unflatten_dict(params, sep="/")


def export_tensors(params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """The inverse of `import_params`: tensors by their names, in the dtypes of the parameters.

    Args:
      params: blocks one by one; what the table does not name is left out.
      table: of the parameters.
    """
    leaves = leaves_by_path(params)
    tensors = {}
    for entry in table:
        parts = [np.asarray(leaves[path]) for path in entry.ours]
        tensors[entry.theirs] = np.asarray(entry.transform.to_theirs(_join(parts)), order="C")
    return tensors


def _checked(
    name: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], file: Path
) -> np.ndarray:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"{file}: tensor {name!r} is missing, expected {list(shape)}")
    if tensor.shape != shape or not np.issubdtype(tensor.dtype, np.floating):
        raise ValueError(
            f"{file}: tensor {name!r} is {tensor.dtype}{list(tensor.shape)}, "
            f"expected floats {list(shape)}"
        )
    if not np.isfinite(tensor).all():
        raise ValueError(f"{file}: tensor {name!r} holds NaN or infinity")
    return tensor


# A single tensor may be a scalar, which has no last axis.
def _split(tensor: np.ndarray, parts: int) -> list[np.ndarray]:
    return [tensor] if parts == 1 else np.split(tensor, parts, axis=-1)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _scanned_shapes(config: CLIPConfig, file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters by path, blocks stacked: as quick for many layers as for one."""
    config = dataclasses.replace(config, scan_layers=True)
    try:
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    except OverflowError:
        raise ValueError(f"{file}: no model is of the sizes in its config") from None
    return {name: leaf.shape for name, leaf in leaves_by_path(shapes).items()}


def _their_shape(entry: Entry, scanned: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    name, layer = re.subn(r"/blocks_\d+/", "/blocks/", entry.ours[0])
    shape = scanned[name][layer:]
    if len(entry.ours) > 1:
        shape = (*shape[:-1], len(entry.ours) * shape[-1])
    # Takes no memory, whatever the shape.
    return entry.transform.to_theirs(np.broadcast_to(np.float32(0), shape)).shape
