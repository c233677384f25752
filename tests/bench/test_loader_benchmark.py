"""The loaders under comparison do the same; the figures are nobody's business here."""

import io

import numpy as np
import pytest
from PIL import Image

from tclip.bench import loader
from tclip.bench.photos import photo, write_photo_shards
from tclip.data import SourceConfig, open_source
from tclip.processing import PreprocessConfig, preprocess


def test_photographs_are_of_ordinary_size_and_always_the_same():
    files = [photo(np.random.default_rng(seed)) for seed in (0, 1, 2, 0)]
    assert files[0] == files[3]
    assert files[0] != files[1]
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            assert 480 <= min(image.size) <= 768
            assert 640 <= max(image.size) <= 1024
            assert image.mode == "RGB"
        assert 50_000 < len(file) < 200_000


def test_peer_transform_is_ours():
    pytest.importorskip("torch", reason="needs torch (extra: reference)")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (50, 50, 3), dtype=np.uint8))
    cfg = PreprocessConfig(image_size=24, train_scale=(1.0, 1.0), train_ratio=(1.0, 1.0))
    theirs = loader._TorchTransform(cfg)(image).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(theirs, preprocess(image, cfg), rtol=0, atol=1e-6)


def test_both_loaders_are_timed(capsys):
    for package in ("torch", "webdataset"):
        pytest.importorskip(package, reason=f"needs {package} (extra: reference)")
    figures = loader.run(photos=16, batch_size=4, batches=2, repeats=2, workers="0", image_size=32)
    assert [line["loader"] for line in figures["loaders"]] == ["tclip", "webdataset"]
    for line in (*figures["loaders"], figures["ratio"]):
        low, high = line["range"]
        assert 0 < low <= line["median"] <= high
    ours, theirs = (line["range"] for line in figures["loaders"])
    low, high = figures["ratio"]["range"]
    assert ours[0] / theirs[1] <= low <= high <= ours[1] / theirs[0]
    assert "best / best" in capsys.readouterr().out


def test_absent_peer_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch: tclip\[reference\]"):
        loader.run()


def test_ratio_is_of_the_best_numbers_of_workers_in_the_same_round(capsys):
    rates = {
        ("tclip", 0): [90.0, 40.0, 100.0],
        ("tclip", 2): [1.0, 200.0, 2.0],
        ("webdataset", 0): [10.0, 10.0, 10.0],
        ("webdataset", 2): [30.0, 20.0, 40.0],
    }
    figures = loader._figures(rates, batch_size=64)
    assert figures["ratio"] == {"median": 2.5, "range": (2.0, 3.0)}
    assert figures["loaders"][1] == {"loader": "tclip", "workers": 2} | {
        "median": 2.0,
        "range": (1.0, 200.0),
    }
    assert "| best / best           |   2.50 | 2.00 to 3.00 |" in capsys.readouterr().out


def test_both_loaders_yield_the_images_and_captions_of_the_shards(tmp_path):
    for package in ("torch", "webdataset"):
        pytest.importorskip(package, reason=f"needs {package} (extra: reference)")
    pattern = write_photo_shards(tmp_path, photos=8, shards=2)
    view = loader.default_view(image_size=32)
    source = open_source(SourceConfig(f"wds:{pattern}", data_dir=str(tmp_path)))
    captions = [caption for i in range(len(source)) for caption in source[i].captions]
    known = {tuple(row) for row in view.tokenizer.encode(captions).tolist()}
    ours = loader._ours(pattern, str(tmp_path), view, batch_size=4, workers=0)
    theirs = loader._peer(pattern, view, batch_size=4, batches=2, workers=0)
    for stream, shape in ((ours, (4, 32, 32, 3)), (theirs, (4, 3, 32, 32))):
        images, tokens = next(stream)
        stream.close()
        assert (images.shape, images.dtype) == (shape, np.float32)
        assert (tokens.shape, tokens.dtype) == ((4, 77), np.int32)
        assert {tuple(row) for row in tokens.tolist()} <= known
