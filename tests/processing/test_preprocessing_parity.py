"""The evaluation transform against Hugging Face's image processors, to the last bit of a pixel."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tclip.processing import PreprocessConfig, decode_image, preprocess
from tests.helpers.pictures import encode, extremes, gradient

SHARDS = Path(__file__).parents[3] / "shared/data/cifar10_train"


@pytest.fixture(scope="module")
def processors():
    """Hugging Face's processors, which load without torchvision, by the name of our `resize`."""
    reason = "needs transformers (extra: reference)"
    clip = pytest.importorskip("transformers.models.clip.image_processing_pil_clip", reason=reason)
    siglip = pytest.importorskip(
        "transformers.models.siglip.image_processing_pil_siglip", reason=reason
    )
    return {"shortest": clip.CLIPImageProcessorPil, "squash": siglip.SiglipImageProcessorPil}


def assert_parity(processors, file, image_size=48):
    """Our float32 values of a file are those of CLIPImageProcessor and SiglipImageProcessor."""
    for resize, processor in processors.items():
        cfg = PreprocessConfig(image_size=image_size, resize=resize)
        side = {"height": image_size, "width": image_size}
        reference = processor(
            size={"shortest_edge": image_size} if resize == "shortest" else side,
            crop_size=side,
            image_mean=list(cfg.mean),
            image_std=list(cfg.std),
        )
        with Image.open(io.BytesIO(file)) as image:
            expected = reference(image)["pixel_values"][0].transpose(1, 2, 0)
        ours = preprocess(decode_image(file), cfg)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 7), (300, 1), (3, 500), (500, 3), (333, 517), (517, 333), (1200, 90), (95, 211)]
    + [(48, side) for side in range(47, 53)],  # every remainder of the centre crop
)
def test_preprocess_equals_hugging_face_at_odd_sizes(processors, size):
    assert_parity(processors, encode(extremes(*size)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 80))
def test_preprocess_equals_hugging_face_at_any_size(processors, width, height, image_size):
    assert_parity(processors, encode(extremes(width, height)), image_size)


def test_preprocess_equals_hugging_face_in_every_mode(processors):
    image = gradient(90, 61)
    transparent = image.copy()
    transparent.putalpha(image.convert("L"))
    palette = image.quantize(16)
    files = [
        *(encode(image.convert(mode)) for mode in ("L", "1", "P")),
        *(encode(transparent.convert(mode)) for mode in ("LA", "RGBA")),
        encode(palette, transparency=bytes(range(0, 256, 16))),
        encode(palette, transparency=3),
        encode(palette, "GIF", transparency=3),
        encode(image, transparency=image.getpixel((5, 5))),
        encode(transparent, "WEBP", lossless=True),
        *(encode(image.convert(mode), "JPEG") for mode in ("RGB", "L", "CMYK")),
    ]
    for file in files:
        assert_parity(processors, file)


def test_upright_pictures_and_16_bits_are_where_hugging_face_differs(processors):
    """It ignores EXIF and turns 16-bit greyscale white; with that undone the rest is the same."""
    image = gradient(90, 61)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(image, exif=exif)
    upright = encode(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decode_image(file), decode_image(upright))
    assert_parity(processors, upright)
    values = np.linspace(0, 65535, 90 * 61, dtype=np.uint16).reshape(61, 90)
    deep = encode(Image.fromarray(values))
    with Image.open(io.BytesIO(deep)) as opened:
        assert np.mean(np.asarray(opened.convert("L")) == 255) > 0.99
    assert_parity(processors, encode(decode_image(deep)))


@pytest.mark.skipif(not SHARDS.exists(), reason=f"{SHARDS} is absent")
def test_preprocess_equals_hugging_face_on_photographs(processors):
    with tarfile.open(SHARDS / "00000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")][:1000:100]
        for number, name in enumerate(names):
            file = tar.extractfile(name).read()
            assert_parity(processors, file, 224)
            size = (300 + 37 * number, 640 - 23 * number)
            photograph = decode_image(file).resize(size, Image.Resampling.BICUBIC)
            assert_parity(processors, encode(photograph, "JPEG", quality=90), 224)
