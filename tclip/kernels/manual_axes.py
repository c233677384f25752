"""Types of arrays under `jax.shard_map`."""

import jax


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
