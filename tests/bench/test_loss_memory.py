"""The memory of the losses is read of programs compiled for TPUs."""

import importlib.util

import pytest

from tclip.bench import loss_memory

SIZES = {"batch_size": 2048, "chunk_size": 128, "embed_dim": 64, "teacher_embed_dim": 96}


@pytest.fixture(scope="module", autouse=True)
def need_libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the compiler for TPUs, is not installed")


def test_blocks_of_the_logits_need_less_memory():
    figures = loss_memory.run(topology="v5e:2x2", **SIZES)
    gathered, chunked, ring = (
        figures["negatives"][name]["peak_bytes"] for name in ("gathered", "chunked", "ring")
    )
    # The logits alone take 4 MB on every device.
    assert gathered > 4 * 2048**2 / 4
    assert max(chunked, ring) < gathered / 2


def test_an_unknown_topology_is_an_error_and_no_crash():
    with pytest.raises(ValueError, match="the compiler for v9:2x2 failed"):
        loss_memory.run(topology="v9:2x2", **SIZES)
