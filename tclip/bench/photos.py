"""Shards of made-up photographs, for benchmarks that must not depend on a download."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

WORDS = ("a", "the", "photo", "of", "dog", "street", "red", "house", "near", "water", "people")


def write_photo_shards(folder: Path, photos: int, shards: int) -> str:
    """Writes tar shards of (key.jpg, key.txt), always the same, and returns their pattern."""
    rng = np.random.default_rng(0)
    numbers = iter(tqdm(range(photos), "photographs", disable=None))
    for shard, share in enumerate(np.array_split(np.arange(photos), shards)):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for _, number in zip(share, numbers, strict=False):
                caption = " ".join(rng.choice(WORDS, rng.integers(4, 16)))
                for suffix, data in (("jpg", photo(rng)), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{number:08}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/{{00000..{shards - 1:05}}}.tar"


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG of quality 90 and 640x480 to 1024x768 pixels, three in ten of them upright.

    Its spectrum falls with the frequency as that of natural images does (Field 1987: amplitude 1/f;
    a little steeper here, as after a camera's smoothing), which gives the 80 to 180 kB that
    photographs of this size have.
    """
    width = int(rng.integers(640, 1025))
    height = width * 3 // 4
    size = (height, width) if rng.random() < 0.3 else (width, height)
    luma, blue, red = _textures(rng, size)
    channels = np.stack([128 + 50 * luma, 128 + 15 * blue, 128 + 15 * red], axis=-1)
    pixels = np.clip(channels, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.frombytes("YCbCr", size, pixels.tobytes()).save(file, "JPEG", quality=90)
    return file.getvalue()


def _textures(rng: np.random.Generator, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Noise of unit variance [height, width]: fine for the luma, smoother for both chromas."""
    width, height = size
    frequency = np.hypot(np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = np.inf  # no constant part
    for slope in (1.5, 1.6, 1.6):
        noise = rng.standard_normal((2, *frequency.shape))
        texture = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency**slope, (height, width))
        yield texture / texture.std()
