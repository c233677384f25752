"""Types of arrays under `jax.shard_map`."""

import jax
from jax.sharding import AxisType


def vary_together(*arrays: jax.Array | None) -> list[jax.Array | None]:
    """Marks the arrays as varying over all the mesh axes over which any of them varies.

    Operations of jax.numpy do so by themselves; a custom derivative, a loop's carry and a kernel do
    not. What varies already, and None, is returned as it is.
    """
    varying = [set() if a is None else jax.typeof(a).manual_axis_type.varying for a in arrays]
    axes = set().union(*varying)
    return [
        a if a is None else jax.lax.pcast(a, tuple(sorted(axes - own)), to="varying")
        for a, own in zip(arrays, varying, strict=True)
    ]


def split_by_compiler() -> bool:
    """Whether XLA is to split what is traced here over devices, which it cannot do to a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind != AxisType.Manual for size, kind in axes)
