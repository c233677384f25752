"""The benchmark runs and is consistent with itself, and packed weights are as small as promised."""

import functools

import jax
import pytest

from tclip.bench import encoder
from tclip.models import architecture


def test_every_tower_and_kind_is_timed(capsys):
    figures = encoder.run("tiny", layers=1, batches="3", repeats=2)
    assert set(figures["towers"]) == {"image 3", "text 3"}
    for kinds in figures["towers"].values():
        assert set(kinds) == {"float", "packed", "packed, int8"}
        assert kinds["float"]["ratio"] == 1
        for of in kinds.values():
            low, high = of["range"]
            assert 0 < low <= of["milliseconds"] <= high
            assert of["samples_per_second"] == pytest.approx(3e3 / of["milliseconds"])
    # One layer of 8 width^2 weights and its feed-forward twice as wide.
    weights = 8 * 32**2
    assert figures["towers"]["image 3"]["float"]["peak_bytes"] > 4 * weights
    assert figures["weight_bytes"]["packed"] < figures["weight_bytes"]["float"] / 4
    assert "samples/s" in capsys.readouterr().out


def test_packed_vit_b16_takes_less_than_45_megabytes():
    pack = functools.partial(encoder.packed_params, architecture("ViT-B/16"), "all")
    size = encoder.weight_bytes(jax.eval_shape(pack))
    # 2 bits for each of its 149.6 million parameters, at least.
    assert 149_620_737 / 4 < size < 45e6


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="unknown architecture 'ViT-Z'"):
        encoder.run("ViT-Z")
