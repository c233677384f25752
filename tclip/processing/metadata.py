"""What image files say beside their pixels, which may be damaged where the pixels are whole."""

from collections.abc import Iterator

from PIL import ExifTags, Image

# What shows an image upright, by its EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
START_OF_SCAN, COMMENT = 0xDA, 0xFE
APPLICATION = range(0xE0, 0xF0)
# EXIF, and Adobe's, which says how colours are stored.
KEPT_SEGMENTS = (0xE1, 0xEE)
# Ancillary, and yet of the pixels, or their orientation.
KEPT_CHUNKS = (b"tRNS", b"eXIf")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where the metadata does not say one of the eight.

    Raises:
      Exception: of many kinds, where the pixels cannot be decoded.
    """
    if image.format not in ("JPEG", "MPO"):
        image.load()  # metadata may follow the pixels, whose faults are not those of metadata
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of many kinds, from the parsers of EXIF and XMP
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def without_metadata(data: bytes) -> bytes:
    """A JPEG or PNG file without what its pixels do not need; other files as they are."""
    if data.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(_png_chunks(data))
    if data.startswith(JPEG_SIGNATURE):
        return JPEG_SIGNATURE + b"".join(_jpeg_segments(data))
    return data


def _png_chunks(data: bytes) -> Iterator[bytes]:
    start = len(PNG_SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        kind = data[start + 4 : start + 8]
        is_critical = kind[:1].isupper()
        if is_critical or kind in KEPT_CHUNKS:
            yield data[start:end]
        start = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    start = len(JPEG_SIGNATURE)
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != START_OF_SCAN:
        marker = data[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        is_metadata = marker in APPLICATION and marker not in KEPT_SEGMENTS
        if not is_metadata and marker != COMMENT:
            yield data[start:end]
        start = end
    yield data[start:]
