"""The device mesh, and rules that say where every array of a training run lives.

One axis, "data": the batch is split over it, parameters and optimiser state are replicated.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"

Rules = Sequence[tuple[str, PartitionSpec]]

# First match wins; a leaf that no rule matches is an error.
STATE_RULES: Rules = ((r".*", PartitionSpec()),)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Attributes: data: number of devices along the batch axis; -1 takes all there are."""

    data: int = -1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axis "data" over the first `config.data` of all or of `devices`.

    Raises:
      ValueError: there are fewer devices than asked for.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices) if config.data == -1 else config.data
    if not 1 <= n <= len(devices):
        raise ValueError(f"mesh.data={n}: there are {len(devices)} devices; use -1 for all of them")
    # jax.make_mesh defaults to explicit axes, under which Linen's modules do not trace.
    return jax.make_mesh((n,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:n])


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless `accumulate` micro-batches of equal size split over the mesh."""
    n = mesh.shape[DATA_AXIS]
    if accumulate < 1 or batch_size < 1 or batch_size % (accumulate * n):
        raise ValueError(
            f"train.batch_size={batch_size} is not divisible by optim.accumulate={accumulate} "
            f"times the {n} devices of the mesh; use a multiple of {max(accumulate, 1) * n}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def path_name(path: tuple[Any, ...]) -> str:
    """Names of the keys of a jax key path, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules = STATE_RULES) -> Any:
    """Returns the tree of NamedShardings that `rules` give to the leaves of `tree`.

    Args:
      tree: any pytree; only its structure is read.
      rules: pairs of a regular expression, matched against the whole "/"-joined path of a leaf, and
        a PartitionSpec; the first match wins.

    Raises:
      ValueError: a leaf that no rule matches.
    """

    def leaf_sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no sharding rule matches {name!r}; add one to tclip/sharding.py")

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)
