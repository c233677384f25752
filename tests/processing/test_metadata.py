"""Whatever stands beside the pixels of a file: the pixels are used, upright where that is said."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tclip.processing import BadSample, PreprocessConfig, read_pixels
from tclip.processing.transforms import augment, decode_image

# Pillow warns of damaged metadata.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True}}
ORIENTATION, X_RESOLUTION, SOFTWARE = 0x112, 0x11A, 0x131
BYTE, ASCII, SHORT, LONG, RATIONAL, FLOAT, NO_TYPE = 1, 2, 3, 4, 5, 11, 99


def encoded(fmt: str, exif: bytes = b"", image: Image.Image = PICTURE) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, exif=exif, **FORMATS[fmt])
    return file.getvalue()


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A TIFF of one directory; an entry is a tag, a type, a count and four bytes."""
    rows = (struct.pack("<HHI4s", *entry) for entry in entries)
    count = struct.pack("<IH", 8, len(entries))
    return b"Exif\0\0II*\0" + count + b"".join(rows) + bytes(4)


def turned(value: int) -> tuple[int, int, int, bytes]:
    return ORIENTATION, SHORT, 1, struct.pack("<HH", value, 0)


def upright(orientation: int) -> np.ndarray:
    """The picture turned by Pillow's own function."""
    image = PICTURE.copy()
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def pixels(data: bytes | Image.Image) -> np.ndarray:
    return np.asarray(decode_image(data))


PLAIN = {fmt: pixels(encoded(fmt)) for fmt in FORMATS}


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "other",
    [
        (X_RESOLUTION, NO_TYPE, 1, bytes(4)),
        (X_RESOLUTION, RATIONAL, 1, bytes(4)),
        (X_RESOLUTION, RATIONAL, 9, b"\xff\xff\xff\x7f"),
        (SOFTWARE, SHORT, 1, b"\1\0\0\0"),
        (SOFTWARE, ASCII, 2**31, b"\1\0\0\0"),
    ],
)
def test_an_image_is_upright_whatever_the_other_tags_are(fmt, orientation, other):
    data = encoded(fmt, exif(turned(orientation), other))
    expected = pixels(encoded(fmt)) if orientation == 1 else None
    if fmt != "JPEG":
        expected = upright(orientation)
    found = pixels(data)
    assert found.shape == upright(orientation).shape
    if expected is not None:
        np.testing.assert_array_equal(found, expected)
    augment(data, [PreprocessConfig(image_size=8)], np.random.default_rng(0))


@pytest.mark.parametrize("fmt", FORMATS)
@given(
    metadata=st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(lambda rest: b"Exif\0\0II*\0\x08\0\0\0" + rest),
        st.sampled_from([0, 9, 255, 65535]).map(lambda value: exif(turned(value))),
        st.tuples(
            st.sampled_from([BYTE, ASCII, RATIONAL, FLOAT]), st.binary(min_size=4, max_size=4)
        ).map(lambda entry: exif((ORIENTATION, entry[0], 1, entry[1]))),
    )
)
def test_metadata_that_say_no_orientation_change_nothing(fmt, metadata):
    found = pixels(encoded(fmt, metadata))
    if found.shape == PLAIN[fmt].shape:
        options = [PLAIN[fmt], *(PLAIN[fmt][::y, ::x] for y in (1, -1) for x in (1, -1))]
        assert any((found == option).all() for option in options)
    else:  # the bytes may state an orientation by chance
        assert found.shape == PLAIN[fmt].swapaxes(0, 1).shape


@given(
    marker=st.sampled_from([*range(0xE0, 0xEE), 0xEF, 0xFE]),
    prefix=st.sampled_from(
        [b"", b"JFIF\0", b"MPF\0II*\0\x08\0\0\0", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM"]
    ),
    rest=st.binary(max_size=40),
)
def test_a_damaged_segment_of_a_jpeg_costs_no_picture(marker, prefix, rest):
    body = prefix + rest
    data = encoded("JPEG")
    segment = struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
    np.testing.assert_array_equal(pixels(data[:2] + segment + data[2:]), PLAIN["JPEG"])


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt", b"tEXt", b"pHYs", b"gAMA", b"vpAg"])
@pytest.mark.parametrize("is_checksum_right", [True, False])
def test_a_damaged_chunk_of_a_png_costs_no_picture(kind, is_checksum_right):
    data = encoded("PNG")
    bodies = b"", b"name\0\0", b"name\0\0" + zlib.compress(bytes(2**22)), bytes(3)
    for body in bodies:
        checksum = zlib.crc32(kind + body) ^ (not is_checksum_right)
        chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
        header = 8 + 25
        found = pixels(data[:header] + chunk + data[header:])
        np.testing.assert_array_equal(found, PLAIN["PNG"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_paths_bytes_and_images_are_decoded_alike(orientation, tmp_path):
    data = encoded("JPEG", exif(turned(orientation)))
    (tmp_path / "a.jpg").write_bytes(data)
    config = PreprocessConfig(image_size=16)
    opened = Image.open(io.BytesIO(data))
    first = read_pixels(data, config)
    for image in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), opened):
        np.testing.assert_array_equal(read_pixels(image, config), first)
    assert opened.getexif().get(ORIENTATION) == orientation  # it is not changed


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N", "I"])
def test_16_bit_greys_keep_their_upper_bits(mode):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    order = {"I;16B": ">u2", "I;16L": "<u2", "I;16": "<u2", "I;16N": "=u2"}.get(mode, "=i4")
    image = Image.frombytes(mode, (16, 16), grey.astype(order).tobytes())
    np.testing.assert_array_equal(pixels(image)[..., 0], grey >> 8)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_what_is_transparent_lies_over_white(mode):
    alpha = Image.fromarray(np.random.default_rng(1).integers(0, 2, (12, 20), np.uint8) * 255)
    image = PICTURE.convert("L") if mode in ("LA", "La") else PICTURE.convert("RGB")
    image.putalpha(alpha)
    if mode == "PA":
        image = PICTURE.convert("P").convert("PA")
        image.putalpha(alpha)
    expected = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected)
    given = {"La": "La", "RGBa": "RGBa"}.get(mode)
    found = pixels(image.convert(given) if given else image)
    np.testing.assert_array_equal(found, np.asarray(expected.convert("RGB")))


def test_images_of_floats_are_refused():
    with pytest.raises(BadSample, match="mode F"):
        decode_image(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="mode F"):
        read_pixels(Image.new("F", (4, 4)), PreprocessConfig(image_size=8))
