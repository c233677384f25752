"""Which device the program that is being traced is for."""

import jax
from jax.sharding import AbstractDevice


def target_device() -> AbstractDevice:
    """The device of the mesh in context (`jax.set_mesh`), else the default device.

    With a mesh of a described topology, or an `AbstractMesh` that has an `abstract_device`, kernels
    are chosen for a machine that is not there.
    """
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return AbstractDevice(device.device_kind, getattr(device, "num_cores", None), device.platform)


def float32_is_exact() -> bool:
    """Whether `jax.default_matmul_precision` asks for products of float32 in all their bits."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return precision not in (None, "default", "fastest", "bfloat16")
