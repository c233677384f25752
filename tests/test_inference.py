"""Embedding images and texts: what goes in, what comes out, how often it compiles."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

import tclip
from tclip import inference
from tclip.inference import Model
from tclip.models import CLIP
from tclip.processing import PreprocessConfig, train_tokenizer
from tests.helpers import tiny

IMAGES = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def test_embeddings_are_those_of_the_encoders_with_unit_norm():
    model = tiny.float_model()
    variables = {"params": model.params}
    raw = np.asarray(CLIP(model.config).apply(variables, IMAGES, method="encode_image"))
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_image(IMAGES), expected, atol=1e-6)
    texts = ["a red square", "", "x" * 10_000]
    tokens = model.tokenizer.encode(texts)
    raw = np.asarray(CLIP(model.config).apply(variables, tokens, method="encode_text"))
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode_text(texts), expected, atol=1e-6)


def test_long_inputs_are_cut_into_batches_and_compile_few_shapes():
    model = tiny.float_model()
    texts = [f"number {i}" for i in range(300)]
    together = model.encode_text(texts)  # batches of 128, 128 and 64
    compiled = inference._encode._cache_size()
    for count in (300, 127, 101, 44):
        np.testing.assert_allclose(model.encode_text(texts[:count]), together[:count], atol=1e-6)
    other = dataclasses.replace(model, params=tiny.params(1))
    other.encode_text(texts)
    assert inference._encode._cache_size() == compiled
    assert model.encode_text([]).shape == model.encode_image([]).shape == (0, 32)


def test_paths_bytes_and_pictures_are_one(tmp_path):
    picture = tiny.square("red")
    file = tmp_path / "red.png"
    file.write_bytes(tiny.png(picture))
    model = tiny.float_model()
    rows = model.encode_image([file, str(file), file.read_bytes(), picture])
    assert rows.shape == (4, 32)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows - rows[0], 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_pictures_of_every_mode_are_embedded(mode):
    picture = Image.new("I;16", (40, 30), 30_000) if mode == "I;16" else None
    picture = picture or tiny.square("green").convert(mode)
    assert np.isfinite(tiny.float_model().encode_image([picture])).all()


def test_wrong_inputs_are_one_clear_error(tmp_path):
    model = tiny.float_model()
    with pytest.raises(ValueError, match="expected a list of texts"):
        model.encode_text("a cat")
    with pytest.raises(ValueError, match="expected a list of images"):
        model.encode_image("cat.png")
    with pytest.raises(ValueError, match=r"float pixels \[B, 32, 32, 3\], got float32\[3, 48"):
        model.encode_image(np.zeros((3, 48, 48, 3), np.float32))
    with pytest.raises(ValueError, match="got uint8"):
        model.encode_image(np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"cat\.png"):
        model.encode_image([tmp_path / "cat.png"])
    (tmp_path / "dog.png").write_text("no image")
    with pytest.raises(ValueError, match=r"dog\.png: not an image file"):
        model.encode_image([tmp_path / "dog.png"])


def test_a_tokenizer_or_preprocessing_of_another_model_is_refused():
    model = tiny.float_model()
    with pytest.raises(ValueError, match="images of 48 pixels, the model takes 32"):
        dataclasses.replace(model, preprocess=PreprocessConfig(image_size=48))
    foreign = train_tokenizer(["other words altogether"], 16, 520)
    with pytest.raises(ValueError, match="is not that of the model"):
        dataclasses.replace(model, tokenizer=foreign)


def test_a_workdir_loads_its_weights_float_or_ternary(tmp_path):
    texts = ["a red square"]
    loaded = tclip.load(tiny.write_workdir(tmp_path / "float"))
    np.testing.assert_allclose(loaded.encode_text(texts), tiny.float_model().encode_text(texts))
    assert loaded.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)
    student = tclip.load(tiny.write_workdir(tmp_path / "student", quant=tiny.POLICY))
    expected = tiny.fake_quant_model().encode_text(texts)
    np.testing.assert_allclose(student.encode_text(texts), expected, atol=1e-6)


def test_loading_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model folder at .*nowhere"):
        tclip.load(tmp_path / "nowhere")
    workdir = tiny.write_workdir(tmp_path / "run")
    (workdir / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
        tclip.load(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(FileNotFoundError, match="run has no checkpoint yet"):
        tclip.load(workdir)


def test_a_zero_embedding_stays_zero_and_nan_stays_nan():
    model = tiny.float_model()
    projection = model.params["text"]["projection"]["kernel"]
    for value in (0.0, np.nan):
        text = model.params["text"] | {"projection": {"kernel": projection * 0 + value}}
        changed = Model(
            model.config, model.params | {"text": text}, model.tokenizer, model.preprocess
        )
        np.testing.assert_array_equal(changed.encode_text(["x"]), np.full((1, 32), value))
