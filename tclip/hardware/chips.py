"""Peaks of the accelerators that tclip trains on, for utilisation and for plans.

All figures are of one chip and dense. Of TPUs: operations and bandwidths are those of Google's
tables, https://docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), where the bandwidth of
the interconnect is the sum over links and both directions, and that of the network is given for a
pod or a host; memory is what the compiler, libtpu 0.0.42, lets a program use. Of GPUs: NVIDIA's
data sheets.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as users say it, and as topologies are called.
      flops: bfloat16 operations a second.
      hbm_bytes: memory that a program can use.
      hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second over one link to a neighbour, one way; 0 for GPUs.
      network_bandwidth: bytes a second to other slices, one way; 0 for GPUs.
      devices: how many devices of jax it appears as.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float = 0.0
    network_bandwidth: float = 0.0
    devices: int = 1


_GIB = 2.0**30
_V4 = Chip("v4", 275e12, 30.5 * _GIB, 1228e9, 50e9, 6.25e9)
_V5E = Chip("v5e", 197e12, 15.75 * _GIB, 819e9, 50e9, 3.125e9)
_V5P = Chip("v5p", 459e12, 95.74 * _GIB, 2765e9, 100e9, 6.25e9)
_V6E = Chip("v6e", 918e12, 31.25 * _GIB, 1638e9, 100e9, 12.5e9)
_TPU7X = Chip("tpu7x", 2307e12, 189.5 * _GIB, 7380e9, 100e9, 12.5e9, devices=2)

# By the `device_kind` of jax.
_CHIPS = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": _TPU7X,
    "NVIDIA A100-SXM4-40GB": Chip("A100 40GB", 312e12, 40e9, 1555e9),
    "NVIDIA A100-PCIE-40GB": Chip("A100 40GB PCIe", 312e12, 40e9, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 312e12, 80e9, 2039e9),
    "NVIDIA A100 80GB PCIe": Chip("A100 80GB PCIe", 312e12, 80e9, 1935e9),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80e9, 2000e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80e9, 3350e9),
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 4800e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a jax device's `device_kind`, None if it is not in the table."""
    return _CHIPS.get(device_kind)
