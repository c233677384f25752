"""Draws the pictures of the demo: python -m tclip.demo.draw FOLDER."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 256
# Drawn larger and made smaller, for smooth edges.
SCALE = 4
Colour = tuple[int, int, int]


def main(folder: Path) -> None:
    """Writes airplane.jpg, ship.jpg and truck.jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().save(folder / f"{name}.jpg", quality=85)


def gradient(top: Colour, bottom: Colour) -> Image.Image:
    """A vertical gradient."""
    side = SIZE * SCALE
    t = np.linspace(0, 1, side)[:, None, None]
    rows = (1 - t) * np.array(top) + t * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (side, side, 3)).astype(np.uint8))


def polygon(image: Image.Image, points: list[tuple[float, float]], colour: Colour) -> None:
    """Fills a polygon whose corners are fractions of the side."""
    side = SIZE * SCALE
    ImageDraw.Draw(image).polygon([(x * side, y * side) for x, y in points], fill=colour)


def ellipse(image: Image.Image, box: tuple[float, float, float, float], colour: Colour) -> None:
    """Fills an ellipse; its box is in fractions of the side."""
    side = SIZE * SCALE
    ImageDraw.Draw(image).ellipse([v * side for v in box], fill=colour)


def finished(image: Image.Image, grain: float) -> Image.Image:
    """Softens, makes smaller, and adds the grain of a photograph (grey levels)."""
    image = image.filter(ImageFilter.GaussianBlur(SCALE)).resize((SIZE, SIZE), Image.LANCZOS)
    noise = np.random.default_rng(0).normal(0, grain, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def airplane() -> Image.Image:
    """An airliner from the side, before a blue sky."""
    image = gradient((84, 142, 210), (196, 221, 244))
    grey, light, dark = (176, 184, 194), (236, 240, 244), (96, 104, 118)
    polygon(image, [(0.16, 0.34), (0.23, 0.34), (0.33, 0.49), (0.20, 0.50)], grey)
    polygon(image, [(0.40, 0.53), (0.60, 0.53), (0.36, 0.78), (0.28, 0.78)], dark)
    ellipse(image, (0.12, 0.45, 0.90, 0.59), light)
    polygon(image, [(0.12, 0.53), (0.90, 0.53), (0.84, 0.58), (0.20, 0.57)], grey)
    polygon(image, [(0.44, 0.46), (0.58, 0.46), (0.44, 0.34), (0.39, 0.34)], grey)
    polygon(image, [(0.12, 0.50), (0.24, 0.50), (0.14, 0.58), (0.09, 0.58)], grey)
    polygon(image, [(0.81, 0.48), (0.87, 0.50), (0.82, 0.51)], dark)
    for x in np.linspace(0.28, 0.76, 14):
        ellipse(image, (x, 0.495, x + 0.014, 0.512), dark)
    return finished(image, 3)


def ship() -> Image.Image:
    """A freighter on the sea."""
    image = gradient((150, 184, 214), (226, 234, 238))
    polygon(image, [(0, 0.62), (1, 0.62), (1, 1), (0, 1)], (44, 84, 116))
    for y, x in zip(np.linspace(0.66, 0.97, 12), np.linspace(0.05, 0.7, 12) * 7 % 0.7, strict=True):
        polygon(image, [(x, y), (x + 0.3, y + 0.004), (x + 0.28, y + 0.01)], (78, 120, 150))
    polygon(image, [(0.08, 0.54), (0.94, 0.52), (0.86, 0.68), (0.15, 0.68)], (60, 40, 44))
    polygon(image, [(0.13, 0.64), (0.88, 0.64), (0.86, 0.68), (0.15, 0.68)], (140, 48, 44))
    polygon(image, [(0.16, 0.36), (0.36, 0.36), (0.36, 0.54), (0.16, 0.54)], (232, 232, 228))
    polygon(image, [(0.20, 0.28), (0.32, 0.28), (0.32, 0.37), (0.20, 0.37)], (214, 214, 212))
    polygon(image, [(0.23, 0.18), (0.28, 0.18), (0.29, 0.28), (0.22, 0.28)], (196, 70, 50))
    for x in (0.18, 0.22, 0.26, 0.30):
        polygon(image, [(x, 0.40), (x + 0.025, 0.40), (x + 0.025, 0.44), (x, 0.44)], (60, 80, 100))
    colours = ((186, 82, 52), (64, 106, 140), (196, 158, 72), (96, 130, 92))
    for i, colour in enumerate(colours):
        x = 0.41 + 0.11 * i
        polygon(image, [(x, 0.44), (x + 0.1, 0.44), (x + 0.1, 0.54), (x, 0.54)], colour)
    return finished(image, 3)


def truck() -> Image.Image:
    """A lorry on a road, from the side."""
    image = gradient((186, 204, 220), (232, 232, 224))
    polygon(image, [(0, 0.58), (1, 0.58), (1, 0.74), (0, 0.74)], (110, 128, 86))
    polygon(image, [(0, 0.72), (1, 0.72), (1, 1), (0, 1)], (98, 98, 102))
    polygon(image, [(0.06, 0.26), (0.66, 0.26), (0.66, 0.70), (0.06, 0.70)], (226, 226, 224))
    polygon(image, [(0.06, 0.62), (0.66, 0.62), (0.66, 0.70), (0.06, 0.70)], (176, 178, 182))
    polygon(
        image, [(0.69, 0.40), (0.82, 0.40), (0.92, 0.56), (0.92, 0.72), (0.69, 0.72)], (176, 44, 40)
    )
    polygon(image, [(0.72, 0.43), (0.81, 0.43), (0.875, 0.55), (0.72, 0.55)], (58, 76, 92))
    polygon(image, [(0.06, 0.70), (0.92, 0.70), (0.92, 0.75), (0.06, 0.75)], (48, 48, 52))
    for x in (0.18, 0.33, 0.80):
        ellipse(image, (x - 0.07, 0.69, x + 0.07, 0.83), (26, 26, 28))
        ellipse(image, (x - 0.03, 0.73, x + 0.03, 0.79), (150, 150, 152))
    return finished(image, 3)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "airplane": airplane,
    "ship": ship,
    "truck": truck,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
