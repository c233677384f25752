"""Programs in C on the engine: the example, and what it should print."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import tclip
import tclip.engine
from tclip.demo import MODEL, PICTURES
from tclip.processing import read_pixels

SOURCES = Path(tclip.engine.__file__).parent
EXAMPLE = SOURCES / "examples/classify.c"
LABELS = ["a photo of a dog", "a photo of a cat", "a photo of a ship"]


def run(*command, **options) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def example_inputs(folder: Path) -> tuple[list[Path], dict[str, float]]:
    """Arguments of the example, and the logits that the Python model gives for them."""
    model = tclip.load(MODEL, activations="int8", backend="jax")
    pixels = read_pixels(PICTURES[0], model.preprocess)
    pixels.astype("<f4").tofile(folder / "pixels")
    rows = model.tokenizer.encode(LABELS).tolist()
    lines = (
        f"{label}\t{' '.join(map(str, ids))}\n" for label, ids in zip(LABELS, rows, strict=True)
    )
    (folder / "labels").write_text("".join(lines))
    cosines = model.encode_text(LABELS) @ model.encode_image([PICTURES[0]])[0]
    logits = np.asarray(cosines) * float(model.logit_scale)
    return [MODEL, folder / "pixels", folder / "labels"], dict(zip(LABELS, logits, strict=True))


def assert_logits(printed: str, expected: dict[str, float]) -> None:
    rows = dict(line.rsplit("\t", 1) for line in printed.splitlines())
    assert list(rows) == list(expected)
    for label, value in rows.items():
        # Float sums in another order move some activations to the next of 255 steps.
        assert float(value) == pytest.approx(expected[label], abs=0.05)
