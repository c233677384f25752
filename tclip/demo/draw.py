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
    image = image.filter(ImageFilter.GaussianBlur(SCALE)).resize(
        (SIZE, SIZE), Image.Resampling.LANCZOS
    )
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
    """A lorry on a road before trees, seen from the front and the side."""
    image = gradient((214, 220, 222), (236, 234, 226))
    for x, y in zip(np.linspace(-0.1, 1, 12), np.arange(12) * 5 % 7 * 0.015 + 0.1, strict=True):
        ellipse(image, (x - 0.04, y, x + 0.16, y + 0.6), (70, 88 + int(300 * y) % 24, 56))
    polygon(image, [(0, 0.66), (1, 0.60), (1, 1), (0, 1)], (150, 146, 140))
    polygon(image, [(0.12, 0.84), (0.98, 0.72), (1, 0.80), (0.10, 0.92)], (92, 90, 88))
    polygon(image, [(0.42, 0.14), (0.97, 0.24), (0.97, 0.68), (0.42, 0.74)], (206, 92, 36))
    polygon(image, [(0.42, 0.14), (0.97, 0.24), (0.97, 0.28), (0.42, 0.20)], (232, 132, 70))
    for x in np.linspace(0.47, 0.93, 7):
        polygon(image, [(x, 0.2), (x + 0.01, 0.2), (x + 0.01, 0.7), (x, 0.7)], (168, 70, 26))
    polygon(image, [(0.30, 0.72), (0.97, 0.65), (0.97, 0.72), (0.30, 0.82)], (44, 42, 44))
    polygon(image, [(0.08, 0.30), (0.30, 0.26), (0.30, 0.80), (0.08, 0.80)], (214, 60, 36))
    polygon(image, [(0.30, 0.26), (0.42, 0.28), (0.42, 0.76), (0.30, 0.80)], (166, 40, 26))
    polygon(image, [(0.105, 0.35), (0.28, 0.32), (0.28, 0.51), (0.105, 0.52)], (40, 50, 62))
    polygon(image, [(0.32, 0.34), (0.40, 0.35), (0.40, 0.51), (0.32, 0.51)], (48, 58, 70))
    polygon(image, [(0.11, 0.58), (0.27, 0.57), (0.27, 0.67), (0.11, 0.67)], (52, 50, 52))
    polygon(image, [(0.07, 0.73), (0.31, 0.73), (0.31, 0.82), (0.07, 0.81)], (58, 58, 60))
    for x in (0.09, 0.25):
        ellipse(image, (x, 0.68, x + 0.045, 0.72), (250, 246, 220))
    for x, y, r in ((0.12, 0.82, 0.045), (0.37, 0.79, 0.075), (0.74, 0.72, 0.065)):
        ellipse(image, (x - 0.8 * r, y - r, x + 0.8 * r, y + r), (24, 24, 26))
        ellipse(image, (x - 0.3 * r, y - 0.4 * r, x + 0.3 * r, y + 0.4 * r), (140, 138, 136))
    x, y, r = 0.87, 0.70, 0.06
    ellipse(image, (x - 0.8 * r, y - r, x + 0.8 * r, y + r), (24, 24, 26))
    return finished(image, 3)


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "airplane": airplane,
    "ship": ship,
    "truck": truck,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
