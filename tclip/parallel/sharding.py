"""The device mesh, and rules that say where every array of a training run lives.

The mesh has four axes. The batch is split over "slice" (TPU slices, joined by a slower network),
"data" and "fsdp". Weights are spread over "fsdp" along their outputs, so that packing them along
their inputs stays within a device, and over "tensor" as in Megatron-LM (arXiv 1909.08053).
"""
# jax makes the name jax.Device at run time:
# pyright: reportInvalidTypeForm=false

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

SLICE, DATA, FSDP, TENSOR = AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = (SLICE, DATA, FSDP)

Rules = Sequence[tuple[str, PartitionSpec]]

# For the path of a parameter, the axes of its last dimensions; leading ones (layers) are not split.
# First match wins. What is small is replicated.
PARAM_RULES: Rules = (
    (r".*/(?:[qkv]_proj|fc1)/kernel", PartitionSpec(None, (TENSOR, FSDP))),
    (r".*/(?:[qkv]_proj|fc1)/bias", PartitionSpec(TENSOR)),
    (r".*/(?:out_proj|fc2)/kernel", PartitionSpec(TENSOR, FSDP)),
    (
        r".*/(?:patch_embed|projection)/kernel|.*/token_embedding/embedding",
        PartitionSpec(None, FSDP),
    ),
    (r".*/(?:bias|scale|class_embedding|position_embedding|probe)", PartitionSpec()),
    (r"logit_(?:scale|bias)", PartitionSpec()),
)

# Where a leaf of a train state belongs: to a parameter, to the scales and thresholds of one, or to
# nothing that is split.
_ROLES = re.compile(
    r"(?:.*/)?(?:params/(?P<param>.+)|quant/(?P<group>.+)/log_(?:scale|threshold)|adapters/.+)"
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the axes of the mesh; their product is the number of devices.

    Attributes:
      slice: TPU slices; -1 takes as many as the devices come in.
      data: copies of the weights within a slice; -1 takes what the other axes leave.
      fsdp: devices that weights and optimiser are spread over, which share the batch as well.
      tensor: devices that share the heads and the hidden units of every layer.
    """

    slice: int = -1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            if size < 1 and not (size == -1 and name in (SLICE, DATA)):
                raise ValueError(f"mesh.{name}={size}: must be at least 1")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of the axes `AXES` over all, or over the first few, of `devices`.

    Neighbours along "tensor" and "fsdp" are close in the network, and only "slice" crosses between
    TPU slices. Elsewhere `config.slice` splits the devices in their order.

    Raises:
      ValueError: the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _axis_sizes(config, devices)
    used = devices[: math.prod(sizes)]
    slices, *within = sizes
    # Axes may share a dimension of the torus, or take several.
    if _slices(used) == 1:
        grid = mesh_utils.create_device_mesh(sizes, used, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *within), (slices, 1, 1, 1), used, allow_split_physical_axes=True
        )
    # Under explicit axes Linen's modules do not trace.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _axis_sizes(config: MeshConfig, devices: Sequence[jax.Device]) -> tuple[int, int, int, int]:
    there = _slices(devices)
    slices = there if config.slice == -1 else config.slice
    if there > 1 and slices != there:
        raise ValueError(
            f"mesh.slice={slices}: the devices come in {there} slices; use {there}, or -1"
        )
    others = slices * config.fsdp * config.tensor
    data = len(devices) // others if config.data == -1 else config.data
    needed = data * others
    if not 1 <= needed <= len(devices) or (config.data == -1 and needed != len(devices)):
        raise ValueError(
            f"mesh: slice={slices}, data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} "
            f"do not fit the {len(devices)} devices; slice, fsdp and tensor have to divide them, "
            "and data=-1 takes the rest"
        )
    if needed < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"mesh: {needed} of {len(devices)} devices would leave processes without one; "
            "use data=-1"
        )
    return slices, data, config.fsdp, config.tensor


def _slices(devices: Sequence[jax.Device]) -> int:
    """TPU slices that the devices belong to; other devices count as one."""
    # Devices of a described single slice have no such attribute; on GPUs it means something else.
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless `accumulate` micro-batches of equal size split over the mesh."""
    n = axes_size(mesh, BATCH_AXES)
    if accumulate < 1 or batch_size < 1 or batch_size % (accumulate * n):
        raise ValueError(
            f"train.batch_size={batch_size} is not divisible by optim.accumulate={accumulate} "
            f"times the {n} devices that share the batch; use a multiple of "
            f"{max(accumulate, 1) * n}"
        )


def axes_size(mesh: Mesh | AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Devices along an entry of a PartitionSpec."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def placed(shapes: Any, shardings: Any) -> Any:
    """Returns ShapeDtypeStructs of a tree, of arrays or their shapes, with these shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def path_name(path: tuple[Any, ...]) -> str:
    """Names of the keys of a jax key path, joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def param_shardings(params: Any, mesh: Mesh, rules: Rules = PARAM_RULES) -> Any:
    """Returns the tree of NamedShardings that `rules` give to the leaves of a parameter tree.

    Args:
      params: arrays or their shapes.
      rules: pairs of a regular expression, matched against the whole "/"-joined path of a leaf, and
        the PartitionSpec of its last dimensions; the first match wins.

    Raises:
      ValueError: a parameter that no rule matches, a rule that matches none, or a dimension that
        the devices do not divide.
    """
    names = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(f"sharding rule {pattern!r} matches no parameter; remove it")

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, param_spec(path_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(state: Any, mesh: Mesh, rules: Rules = PARAM_RULES) -> Any:
    """Returns the shardings of a train state, or of any tree of such parts.

    What belongs to a parameter follows it: leaves under "params/" (moments of the optimiser and the
    moving average too) have its sharding, and leaves under "quant/" what their groups leave of it.
    Scalars and adapters are replicated.

    Raises:
      ValueError: a leaf that is none of these, or as `param_shardings` without its second case.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        role = _ROLES.fullmatch(name)
        if role is None and leaf.ndim:
            raise ValueError(
                f"no sharding rule is for {name!r}; add one to tclip/parallel/sharding.py"
            )
        if role and role["param"]:
            spec = param_spec(role["param"], leaf.shape, mesh, rules)
        elif role and role["group"]:
            spec = divisible(_rule(role["group"], leaf.ndim, rules), leaf.shape, mesh)
        else:
            spec = PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def divisible(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """What of a spec an array can follow that has fewer entries than the one it belongs to.

    A dimension that the devices do not divide, such as that of one scale for all inputs, is whole.
    """
    return PartitionSpec(
        *(a if n % axes_size(mesh, a) == 0 else None for a, n in zip(spec, shape, strict=True))
    )


def _rule(name: str, ndim: int, rules: Rules) -> PartitionSpec:
    """The spec of the parameter `name`, an entry for each of its dimensions."""
    for pattern, spec in rules:
        if re.fullmatch(pattern, name):
            return PartitionSpec(*(None,) * (ndim - len(spec)), *spec)
    raise ValueError(f"no sharding rule matches {name!r}; add one to {__name__}")


def param_spec(
    name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = PARAM_RULES
) -> PartitionSpec:
    """The axes of every dimension of a parameter; arguments and errors as `param_shardings`."""
    spec = _rule(name, len(shape), rules)
    for axes, size in zip(spec, shape, strict=True):
        n = axes_size(mesh, axes)
        if size % n:
            keys = " times ".join(f"mesh.{a}" for a in ((axes,) if isinstance(axes, str) else axes))
            raise ValueError(
                f"{name} {list(shape)}: {keys} = {n} does not divide its dimension of {size}; "
                f"choose a divisor of it, such as {math.gcd(size, n)}"
            )
    return spec
