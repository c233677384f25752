"""The benchmark runs, and counts operations as the published architectures have them."""

import pytest

from tclip.bench import teacher_cache
from tclip.models import architecture


def test_ratio_lies_within_its_range(capsys):
    figures = teacher_cache.run("tiny", "tiny", layers=1, batch_size=4, repeats=2)
    low, high = figures["ratio_range"]
    assert 0 < low <= figures["ratio"] <= high
    assert figures["ratio_by_flops"] == pytest.approx(4 / 3)
    assert "live / stored" in capsys.readouterr().out


def test_operations_of_vit_b_16():
    # Layer by layer: 197 image tokens of width 768, 77 text tokens of width 512, 12 layers each.
    image = 12 * 197 * (24 * 768**2 + 4 * 197 * 768) + 2 * 196 * 3 * 16**2 * 768
    text = 12 * 77 * (24 * 512**2 + 4 * 77 * 512)
    assert teacher_cache.forward_flops(architecture("ViT-B/16")) == image + text
