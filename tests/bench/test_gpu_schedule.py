"""The reading of machine code, and where the compiler is installed what it says of the kernel."""

import pytest

from tclip.bench import gpu_schedule
from tclip.hardware.gpu_compiler import is_installed
from tclip.kernels.ternary_matmul.gpu_blocks import TILES

MACHINE_CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS R2, [R3] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0030*/                   SHF.R.U32.HI R4, RZ, R5, R2.reuse ;
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR12], R24, gsb0 ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   ISETP.NE.U32.AND P5, PT, R12, 0x300, PT ;
.L_x_3:
        /*0070*/               @P5 BRA `(.L_x_2) ;
        /*0080*/                   EXIT ;
"""


def test_the_loop_that_multiplies():
    names = [name.split(".")[0] for name in gpu_schedule.loop(MACHINE_CODE)]
    assert names == ["SHF", "HGMMA", "BRA", "ISETP", "BRA"]
    with pytest.raises(ValueError, match="no loop with products"):
        gpu_schedule.loop(MACHINE_CODE.replace("HGMMA", "FFMA"))


@pytest.mark.skipif(
    not is_installed() or not gpu_schedule.path_of("nvdisasm"),
    reason="the compiler for NVIDIA GPUs, or nvdisasm, is not installed",
)
@pytest.mark.parametrize("kind", ["native", "int8"])
def test_costs_of_tiles(kind, capsys):
    figures = gpu_schedule.run(kind)["tiles"][kind]
    assert "tensor cores" in capsys.readouterr().out
    for tile in TILES:
        of = figures[tile.name]
        assert of["spilled"] == 0
        # A multiprocessor has room for two programs, of which one multiplies while the other waits.
        assert 2 * 32 * tile.warps * of["registers"] <= 65536
        # Unpacking takes no longer than multiplying where tensor cores are the bound.
        if tile.rows >= 64:
            slowest = max(of["scheduler"], of["integer units"])
            assert slowest <= (1 if kind == "native" else 1.3) * of["tensor cores"]
        if kind == "native":
            busy = max(of[name] for name in ("tensor cores", "scheduler", "integer units"))
            assert tile.busy == pytest.approx(busy, rel=0.1)
