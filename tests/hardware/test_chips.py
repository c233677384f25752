"""The table of chips agrees with that of jax, and knows no chip that it does not list."""

import jax
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from tclip.hardware.chips import chip_of


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_tpus_are_those_of_jax(kind):
    # jax's figures are of a core, rounded, and the memory is what is built in.
    cores = 1 if "lite" in kind else 2
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("x",), abstract_device=AbstractDevice(kind, 1, "tpu"))
    ):
        info = pltpu.get_tpu_info()
    chip = chip_of(kind)
    assert chip.flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.01)
    # jax has another figure for v5p, 2460 GB/s.
    tolerance = 0.13 if chip.name == "v5p" else 0.01
    assert chip.hbm_bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=tolerance)
    assert 0.88 <= chip.hbm_bytes / (cores * info.hbm_capacity_bytes) <= 1


def test_two_names_of_a_chip():
    assert chip_of("TPU v5e") == chip_of("TPU v5 lite")
    assert chip_of("TPU v6e") == chip_of("TPU v6 lite")


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v9"])
def test_unknown_chips_have_no_peak(kind):
    assert chip_of(kind) is None
