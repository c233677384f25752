"""The compiler for NVIDIA GPUs, which needs no GPU."""

import importlib.metadata
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# What XLA wants to know of a GPU that is not there: an H100, but for the compute capability.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: {shared_memory} core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def is_installed() -> bool:
    """Whether jax has its compiler for NVIDIA GPUs."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any(plugin.name.startswith("xla_cuda") for plugin in plugins)


def compile_for_gpu(
    function: Callable,
    shapes: tuple,
    *,
    major: int = 9,
    minor: int = 0,
    shared_memory: int = 232448,
    compiler_options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Compiles `function` for a GPU that need not be there.

    Args:
      shapes: a `jax.ShapeDtypeStruct`, or a tree of them, for each argument.
      major: of the compute capability, with minor: 9.0 is that of an H100.
      shared_memory: bytes that a program can have.
      compiler_options: of XLA, such as `xla_dump_to`.
    """
    target = _TARGET.format(major=major, minor=minor, shared_memory=shared_memory)
    devices = topologies.get_topology_desc(
        "1x1x1", platform="cuda", topology="1x1x1", target_config=target
    ).devices
    mesh = Mesh(devices[:1], ("x",), axis_types=(AxisType.Auto,))
    here = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shapes)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*shapes).compile(compiler_options)
