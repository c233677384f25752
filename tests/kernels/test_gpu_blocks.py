"""How the kernel for NVIDIA GPUs divides products among programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tclip.kernels.ternary_matmul import gpu, gpu_blocks


@given(
    st.integers(1, 4000),
    st.integers(1, 20_000),
    st.integers(1, 9000),
    st.integers(1, 4),
    st.sampled_from([16, 8]),
)
def test_programs_share_k_without_gap_or_waste(m, k, n, scale_blocks, bits):
    k = k if scale_blocks == 1 else gpu_blocks.BLOCK * (1 + k // 1000) * scale_blocks
    blocks = gpu_blocks.choose_blocks((m, k, n), scale_blocks, bits, gpu_blocks.TILES)
    words_in_block = -(-k // (16 * scale_blocks))
    share = blocks.steps * blocks.words
    assert (blocks.splits - 1) * share < words_in_block <= blocks.splits * share
    assert blocks.parts * blocks.scale_blocks == scale_blocks * blocks.splits
    if blocks.scale_blocks > 1:
        assert words_in_block == share


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("tile", gpu_blocks.TILES, ids=lambda tile: tile.name)
def test_what_is_loaded_ahead_fits_shared_memory(tile, bits):
    words = gpu_blocks.choose_blocks((4096, 4096, 4096), 1, bits, (tile,)).words
    loaded = tile.rows * words * 16 * bits // 8 + words * tile.columns * 4
    assert gpu.STAGES * loaded <= 99 * 1024


def test_large_products_of_one_row_fill_a_gpu():
    for size in (4096, 8192):
        blocks = gpu_blocks.choose_blocks((1, size, size), 1, 16, gpu_blocks.TILES)
        assert size // blocks.tile.columns * blocks.parts >= gpu_blocks.MULTIPROCESSORS


@pytest.mark.parametrize("rows", [1576, 3152])
@pytest.mark.parametrize("n", [768, 3072])
def test_sums_of_many_rows_stay_in_the_kernel(rows, n):
    assert gpu_blocks.choose_blocks((rows, 768, n), 1, 16, gpu_blocks.TILES).parts == 1
