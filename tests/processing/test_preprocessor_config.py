"""preprocessor_config.json against files as published and as transformers writes them."""

import json

import pytest

from tclip.processing import PreprocessConfig, load_preprocess, save_preprocess

CLIP = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
CONFIG = PreprocessConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SQUARE = {"height": 224, "width": 224}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "preprocessor_config.json"


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_round_trip(path, resize, interpolation):
    cfg = PreprocessConfig(
        image_size=48, mean=(0.5, 0.4, 0.3), interpolation=interpolation, resize=resize
    )
    save_preprocess(cfg, path)
    assert load_preprocess(path) == cfg


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_files_are_exchanged_with_transformers(tmp_path, path, resize):
    transformers = pytest.importorskip(
        "transformers", reason="needs transformers (extra: reference)"
    )
    cfg = PreprocessConfig(image_size=48, resize=resize, interpolation="bilinear")
    save_preprocess(cfg, path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    name = {"shortest": "CLIPImageProcessor", "squash": "SiglipImageProcessor"}[resize]
    assert type(processor).__name__ in (name, f"{name}Pil")
    path.unlink()
    processor.save_pretrained(tmp_path)
    assert load_preprocess(path) == cfg


@pytest.mark.parametrize(
    ("values", "resize"),
    [
        # openai/clip-vit-base-patch32 before and after transformers 4.25; laion's; SigLIP's.
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}
            | {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3},
            "shortest",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}}
            | {"crop_size": SQUARE, "rescale_factor": 0.00392156862745098},
            "shortest",
        ),
        ({"size": {"shortest_edge": 224}, "crop_size": SQUARE}, "shortest"),
        ({"image_processor_type": "SiglipImageProcessor", "size": SQUARE}, "squash"),
        ({"image_processor_type": "SiglipImageProcessorFast", "size": SQUARE}, "squash"),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "do_center_crop": False},
            "squash",
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": SQUARE, "crop_size": SQUARE},
            "squash",
        ),
    ],
)
def test_published_forms(path, values, resize):
    path.write_text(json.dumps(CLIP | values))
    loaded = load_preprocess(path)
    assert (loaded.image_size, loaded.resize, loaded.interpolation) == (224, resize, "bicubic")
    assert (loaded.mean, loaded.std) == (CONFIG.mean, CONFIG.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "do_normalize is off"),
        ({"do_rescale": False}, "do_rescale is off"),
        ({"do_resize": False}, "do_resize is off"),
        ({"rescale_factor": 1 / 127.5}, r"rescale_factor is 0\.00784.*not 1/255"),
        ({"resample": 1}, "resample 1 is none of"),
        ({"image_processor_type": "ViTImageProcessor"}, "it is a ViTImageProcessor"),
        ({"image_processor_type": 3}, "does not describe"),
        ({"crop_size": 200}, "does not resize to a square and keep it"),
        ({"crop_size": {"height": 224, "width": 200}}, "does not resize to a square"),
        ({"size": {"height": 224, "width": 200}}, "does not resize to a square"),
        ({"do_center_crop": False}, "does not resize to a square"),
        ({"size": None}, "does not resize to a square"),
        ({"size": "large", "crop_size": "large"}, "large"),
        ({"size": {"longest_edge": 224}}, "lacks 'shortest_edge'"),
        ({"image_mean": 0.5}, "does not describe"),
        ({"image_mean": [0.5]}, "does not describe"),
        ({"image_std": [0, 1, 1]}, "std must be positive"),
    ],
)
def test_other_preprocessings_are_refused(path, change, message):
    save_preprocess(CONFIG, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as error:
        load_preprocess(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"size": 224', "\0"])
def test_other_files_are_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        load_preprocess(path)


def test_absent_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_preprocess(path)
