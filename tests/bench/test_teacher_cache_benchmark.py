"""The benchmark runs."""

import pytest

from tclip.bench import teacher_cache


def test_ratio_lies_within_its_range(capsys):
    figures = teacher_cache.run("tiny", "tiny", layers=1, batch_size=4, repeats=2)
    low, high = figures["ratio_range"]
    assert 0 < low <= figures["ratio"] <= high
    assert figures["ratio_by_flops"] == pytest.approx(4 / 3)
    assert "live / stored" in capsys.readouterr().out
