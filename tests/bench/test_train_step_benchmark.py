"""The benchmark runs and is consistent with itself; its figures are nobody's business here."""

import pytest

from tclip.bench import train_step


def test_ratio_lies_within_its_range(capsys):
    figures = train_step.run("tiny", layers=1, batch_size=4, repeats=3, dtype="float32")
    low, high = figures["ratio_range"]
    assert 0 < low <= figures["ratio"] <= high
    assert "ternary / float" in capsys.readouterr().out


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="unknown architecture 'ViT-Z'"):
        train_step.run("ViT-Z", layers=1, batch_size=4, repeats=1, dtype="float32")
