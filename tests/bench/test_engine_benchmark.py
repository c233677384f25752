"""The benchmark times the same model in every runtime that is installed."""

import numpy as np
import pytest

from tclip.bench import engine
from tclip.bench.cpu_runtimes import ENGINE, RUNTIMES, TOWERS, open_tower
from tclip.bench.steps import cut_architecture
from tclip.engine import unavailable

pytestmark = pytest.mark.skipif(unavailable() != "", reason="the engine was not built")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, whose quantisation is deprecated
def test_every_tower_is_timed_in_every_runtime(capsys):
    figures = engine.run("tiny", layers=1, batches="2", repeats=2)
    installed = [name for name in RUNTIMES if engine._is_installed(name)]
    assert set(figures["times"]) == {"image 2", "text 2"}
    for of in figures["times"].values():
        assert list(of) == installed
        assert of[ENGINE]["ratio"] == 1
        assert all(0 < each["least"] <= each["milliseconds"] for each in of.values())
    for of in figures["memory"].values():
        # Python with numpy takes 30 MB; jax, which the engine does not import, some 200.
        assert 20 < of[ENGINE] < 120
    assert figures["kernel"] in capsys.readouterr().out


@pytest.mark.parametrize("tower", TOWERS)
def test_the_float_runtimes_agree(tower, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model = engine._prepare(tmp_path, cut_architecture("tiny", 1, "float32"))
    inputs = engine._inputs(model, tower, 3)
    names = [name for name in RUNTIMES if "float32" in name and engine._is_installed(name)]
    first, *others = (open_tower(name, tmp_path, tower)(inputs) for name in names)
    assert first.shape == (3, model.embed_dim)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-4)
