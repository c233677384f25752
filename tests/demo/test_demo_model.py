"""The demo model: its size, its pictures, and what its card says of it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tclip
from tclip import demo
from tclip.data import SourceConfig, open_source
from tclip.demo import draw
from tclip.evals import evaluate
from tclip.prompts import class_embeddings

LARGEST_MODEL = 600_000  # bytes
LARGEST_PICTURE = 20_000
TEST_SET = Path(__file__).parents[3] / "shared/data/wds_cifar10"
# Probability of the right label: more than all the others together.
CLEAR = 0.5


@pytest.fixture(scope="module")
def model():
    return tclip.load(demo.MODEL)


def card() -> dict:
    """The YAML head of the model card."""
    yaml = pytest.importorskip("yaml", reason="PyYAML, which reads the card, is not installed")
    _, head, _ = (demo.MODEL / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_model_and_pictures_are_small():
    assert sum(path.stat().st_size for path in files(demo.MODEL)) < LARGEST_MODEL
    assert len(demo.PICTURES) == 3
    assert max(path.stat().st_size for path in demo.PICTURES) <= LARGEST_PICTURE


@pytest.mark.parametrize("picture", demo.PICTURES, ids=lambda picture: picture.stem)
def test_a_picture_is_clearly_what_it_is_named_after(model, picture):
    labels_CxD = class_embeddings(model, demo.LABELS, [demo.TEMPLATE])
    (image_D,) = model.encode_image([picture])
    logits_C = model.logit_scale * labels_CxD @ image_D
    probabilities_C = np.exp(logits_C - logits_C.max())
    probabilities_C /= probabilities_C.sum()
    best = int(probabilities_C.argmax())
    assert demo.LABELS[best] == picture.stem
    assert probabilities_C[best] > CLEAR


def test_the_pictures_are_those_that_draw_makes(tmp_path):
    draw.main(tmp_path)
    assert {path.name for path in demo.PICTURES} == {path.name for path in tmp_path.iterdir()}
    for picture in demo.PICTURES:
        drawn, shipped = (
            np.asarray(Image.open(io.BytesIO(path.read_bytes())), np.float32)
            for path in (tmp_path / picture.name, picture)
        )
        # Versions of Pillow may differ by the rounding of the JPEG.
        assert np.abs(drawn - shipped).mean() < 1


def test_the_card_names_the_data_and_the_licence():
    head = card()
    assert head["datasets"] == ["uoft-cs/cifar10"]
    assert head["license"] == "apache-2.0"


@pytest.mark.slow
@pytest.mark.skipif(not TEST_SET.exists(), reason=f"{TEST_SET} is absent")
def test_the_card_says_what_evaluation_measures(model, tmp_path):
    ((result,),) = (entry["results"] for entry in card()["model-index"])
    (metric,) = result["metrics"]
    config = SourceConfig(source=f"wds:{TEST_SET}", split="test", data_dir=str(tmp_path))
    scores = evaluate(model, open_source(config), 500, 0)
    assert scores["zeroshot_n"] == 10_000
    assert 100 * scores["zeroshot_top1"] == pytest.approx(metric["value"], abs=0.1)
