"""Small pictures and their files for the tests of data."""

import io

import numpy as np
from PIL import Image


def gradient(width, height):
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 3)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image, fmt="PNG", **options):
    out = io.BytesIO()
    image.save(out, format=fmt, **options)
    return out.getvalue()


def extremes(width, height, seed=0):
    """Noise of black and white, on which bicubic resizing overshoots and is clipped most."""
    values = np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), (height, width, 3))
    return Image.fromarray(values)
