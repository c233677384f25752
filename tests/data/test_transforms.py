"""Image decoding of everything hostile, and the transforms against written-out references."""

import contextlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tclip.data import (
    BadSample,
    PreprocessConfig,
    augment,
    decode_image,
    load_preprocess,
    preprocess,
    save_preprocess,
    transforms,
)


def gradient(width, height):
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 3)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image, fmt="PNG", **options):
    out = io.BytesIO()
    image.save(out, format=fmt, **options)
    return out.getvalue()


def test_lossless_rgb_is_exact():
    image = gradient(40, 30)
    assert np.array_equal(decode_image(encode(image)), image)


def test_cmyk_and_greyscale_become_rgb():
    image = gradient(40, 30)
    cmyk = decode_image(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert cmyk.mode == "RGB"
    assert np.abs(np.asarray(cmyk, float) - np.asarray(image, float)).mean() < 4
    grey = decode_image(encode(image.convert("L")))
    assert np.array_equal(np.asarray(grey)[..., 1], np.asarray(image.convert("L")))


def test_sixteen_bit_greyscale_keeps_the_upper_byte():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    decoded = decode_image(encode(Image.fromarray(values)))
    assert np.array_equal(np.asarray(decoded)[..., 0], values >> 8)


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(fmt):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data).getpixel((8, 8)) == (255, 0, 0)


def test_palette_with_transparency_and_rgba(recwarn):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 200, 0])
    decoded = decode_image(encode(image, transparency=b"\x00\xff"))
    assert (decoded.mode, decoded.getpixel((2, 2))) == ("RGB", (0, 200, 0))
    rgba = Image.new("RGBA", (8, 8), (10, 20, 30, 40))
    assert decode_image(encode(rgba)).getpixel((0, 0)) == (10, 20, 30)
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    image = gradient(24, 16)
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = image.transpose(stored[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encode(turned, exif=exif)), image)


def test_wide_images_work_up_to_the_limit_and_are_refused_above_it(monkeypatch):
    cfg = PreprocessConfig(image_size=32)
    strip = encode(Image.new("RGB", (20_000, 3), "red"))
    assert preprocess(decode_image(strip), cfg).shape == (32, 32, 3)
    (view,) = augment(strip, [cfg], np.random.default_rng(0))
    assert view.shape == (32, 32, 3)
    huge = encode(Image.new("1", (20_000, 4_000)))
    loads = []
    monkeypatch.setattr(Image.Image, "load", lambda self: loads.append(self))
    with pytest.raises(BadSample, match=rf"20000x4000 .* limit of {transforms.MAX_PIXELS}"):
        decode_image(huge)
    assert not loads


def test_decompression_bomb_is_a_bad_sample():
    header = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")):
        crc = zlib.crc32(kind + body)
        chunks += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    with pytest.raises(BadSample, match="DecompressionBombError"):
        decode_image(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_bad_samples(fmt):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), fmt)
    for length in (0, 10, len(data) // 2):
        with pytest.raises(BadSample):
            decode_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"])
def test_other_files_are_bad_samples_in_one_line(data):
    with pytest.raises(BadSample) as error:
        decode_image(data)
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.data())
def test_damaged_bytes_either_decode_or_are_bad_samples(fmt, data):
    encoded = bytearray(encode(gradient(20, 14), fmt))
    for _ in range(data.draw(st.integers(1, 8))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadSample):
        assert decode_image(bytes(encoded)).mode == "RGB"


def reference_preprocess(image, cfg):
    """Resizes the shorter side, then crops the centre, on whole images, as Hugging Face does."""
    size, (width, height) = cfg.image_size, image.size
    if width < height:
        new = (size, int(size * height / width))
    else:
        new = (int(size * width / height), size)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    resized = image.resize(new, transforms.RESAMPLING[cfg.interpolation])
    cropped = resized.crop((left, top, left + size, top + size))
    return (np.asarray(cropped, np.float64) / 255 - cfg.mean) / cfg.std


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 120),
    st.integers(3, 120),
    st.sampled_from([16, 31, 48]),
    st.sampled_from(["bicubic", "bilinear"]),
)
def test_preprocess_equals_resize_then_crop(width, height, size, interpolation):
    cfg = PreprocessConfig(image_size=size, interpolation=interpolation)
    image = gradient(width, height)
    ours = preprocess(image, cfg)
    assert ours.dtype == np.float32
    # A value that falls on the edge of rounding may differ by one grey level.
    one_level = 1.01 / 255 / min(cfg.std)
    np.testing.assert_allclose(ours, reference_preprocess(image, cfg), atol=one_level)


def test_preprocess_of_a_square_of_the_right_size_only_normalises():
    image = gradient(32, 32)
    cfg = PreprocessConfig(image_size=32)
    expected = (np.asarray(image, np.float64) / 255 - cfg.mean) / cfg.std
    np.testing.assert_allclose(preprocess(image, cfg), expected, atol=1e-6)


def test_crops_have_the_published_distribution():
    cfg = PreprocessConfig(image_size=8, train_scale=(0.1, 0.5), train_ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transforms._random_crop((200, 200), cfg, rng) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 200
    area, ratio = width * height / 200**2, np.log(width / height)
    # Uniform: mean of the ends, and standard deviation of the width over sqrt(12).
    assert abs(area.mean() - 0.3) < 0.01
    assert abs(area.std() - 0.4 / 12**0.5) < 0.01
    assert abs(ratio.mean()) < 0.04
    assert abs(ratio.std() - 2 * np.log(2) / 12**0.5) < 0.02


def test_augment_is_a_function_of_its_generator_and_flips_half():
    image = gradient(40, 40)
    data = encode(image)
    cfg = PreprocessConfig(image_size=16, train_scale=(1.0, 1.0), train_ratio=(1.0, 1.0), flip=True)
    outputs = [augment(data, [cfg], np.random.default_rng(i))[0] for i in range(40)]
    again = [augment(data, [cfg], np.random.default_rng(i))[0] for i in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(outputs, again, strict=True))
    plain = preprocess(image, cfg)
    kept = sum(np.array_equal(out, plain) for out in outputs)
    mirrored = sum(np.array_equal(out, plain[:, ::-1]) for out in outputs)
    assert kept + mirrored == 40
    assert 8 < kept < 32


def test_views_show_one_crop_in_their_own_size_and_normalisation():
    student = PreprocessConfig(image_size=16, train_scale=(0.2, 0.9), flip=True)
    teacher = PreprocessConfig(image_size=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    image = gradient(90, 70)
    for seed in range(6):
        rngs = [np.random.default_rng(seed) for _ in range(3)]
        alone = augment(encode(image), [student], rngs[0])
        both = augment(encode(image), [student, teacher], rngs[1])
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
        np.testing.assert_array_equal(both[0], alone[0])
        box = transforms._random_crop(image.size, student, rngs[2])
        mirrored = rngs[2].random() < 0.5
        expected = image.resize((24, 24), Image.Resampling.BICUBIC, box=box)
        if mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_allclose(both[1], np.asarray(expected) / 127.5 - 1, atol=1e-6)


def test_augment_refuses_what_decode_image_refuses():
    with pytest.raises(BadSample, match="not an image file of JPEG"):
        augment(b"hello", [PreprocessConfig()], np.random.default_rng(0))
    data = encode(gradient(64, 64), "JPEG")
    with pytest.raises(BadSample, match=r"(?i)truncated"):
        augment(data[: len(data) // 2], [PreprocessConfig()], np.random.default_rng(0))


def test_config_round_trip_and_older_files(tmp_path):
    cfg = PreprocessConfig(image_size=48, mean=(0.5, 0.4, 0.3), interpolation="bilinear")
    path = tmp_path / "preprocessor_config.json"
    save_preprocess(cfg, path)
    assert load_preprocess(path) == cfg
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"size": 48, "crop_size": 48}))
    assert load_preprocess(path) == cfg
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a CLIP preprocessor_config"):
        load_preprocess(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "cubic"},
        {"image_size": 0},
        {"std": (0.0, 1.0, 1.0)},
        {"train_scale": (0.5, 2.0)},
        {"train_ratio": (2.0, 1.0)},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreprocessConfig(**wrong)
