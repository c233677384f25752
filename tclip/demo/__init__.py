"""The demo model that ships with tclip: a ternary CLIP of CIFAR-10's classes, and pictures."""

from pathlib import Path

_FOLDER = Path(__file__).parent
# A packed folder, made by configs/demo.py; its README.md is the model card.
MODEL = _FOLDER / "model"
LABELS = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TEMPLATE = "a photo of a {}."
# Rendered by tclip.demo.draw; each is named after what it shows.
PICTURES = tuple(sorted((_FOLDER / "pictures").glob("*.jpg")))
