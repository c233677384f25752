"""Image decoding of everything hostile, and the transforms against written-out references."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tclip.processing import (
    BadSample,
    PreprocessConfig,
    augment,
    decode_image,
    preprocess,
    transforms,
)
from tests.helpers.pictures import encode, extremes, gradient


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


def test_transparency_shows_white(recwarn):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 200, 0])
    decoded = decode_image(encode(image, transparency=b"\x00\xff"))
    assert (decoded.mode, decoded.getpixel((2, 2))) == ("RGB", (0, 200, 0))
    rgba = Image.new("RGBA", (8, 8), (10, 20, 30, 51))
    assert decode_image(encode(rgba)).getpixel((0, 0)) == (206, 208, 210)  # 0.2 c + 0.8 * 255
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
    resized = r"20000x3 .* limit of \d+ pixels when resized to 1493333x224"
    with pytest.raises(BadSample, match=resized):
        preprocess(decode_image(strip), PreprocessConfig())
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


def test_preprocess_of_a_square_of_the_right_size_only_normalises():
    image = gradient(32, 32)
    cfg = PreprocessConfig(image_size=32)
    expected = (np.asarray(image, np.float64) / 255 - cfg.mean) / cfg.std
    np.testing.assert_allclose(preprocess(image, cfg), expected, atol=1e-6)


def test_crops_have_the_published_distribution():
    cfg = PreprocessConfig(image_size=8, train_scale=(0.1, 0.5), train_ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.random_crop((200, 200), cfg, rng) for _ in range(3000)])
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
        box = transforms.random_crop(image.size, student, rngs[2])
        mirrored = rngs[2].random() < 0.5
        expected = image.resize((24, 24), Image.Resampling.BICUBIC, box=box)
        if mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_allclose(both[1], np.asarray(expected) / 127.5 - 1, atol=1e-6)


def reference_crop(image, cfg, seed):
    """The crop that `augment` draws, resized from all pixels, in grey levels."""
    box = transforms.random_crop(image.size, cfg, np.random.default_rng(seed))
    side = (cfg.image_size, cfg.image_size)
    return np.asarray(image.resize(side, Image.Resampling.BICUBIC, box=box), np.float64)


def grey_levels(view, cfg):
    return (view * np.array(cfg.std) + cfg.mean) * 255


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_jpegs_decoded_smaller_look_like_the_whole(scale):
    # Of an odd size, so that the last pixel of the smaller image is a part of one.
    noise = np.random.default_rng(0).normal(0, 4, (483, 645, 3))
    x, y = np.arange(645), np.arange(483)[:, None]
    ramps = np.stack(np.broadcast_arrays(255 * x / 645, 255 * y / 483, 128 + 0 * x), axis=-1)
    file = encode(Image.fromarray(np.clip(ramps + noise, 0, 255).astype(np.uint8)), "JPEG")
    cfg = PreprocessConfig(image_size=300 // scale, train_scale=(0.6, 0.9))
    for seed in range(5):
        (view,) = augment(file, [cfg], np.random.default_rng(seed))
        error = grey_levels(view, cfg) - reference_crop(decode_image(file), cfg, seed)
        assert 0 < np.abs(error).mean() < 1
        # A shift by a tenth of a smaller pixel would change the ramps by 0.04 levels or more.
        assert np.abs(error.mean(axis=(0, 1))).max() < 0.04 * scale


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_jpegs_are_cropped_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(gradient(645, 483), "JPEG", exif=exif)
    cfg = PreprocessConfig(image_size=100, train_scale=(0.6, 0.9))
    (view,) = augment(file, [cfg], np.random.default_rng(0))
    expected = reference_crop(decode_image(file), cfg, seed=0)
    np.testing.assert_allclose(grey_levels(view, cfg), expected, atol=1e-4)


def test_jpegs_are_never_decoded_smaller_than_the_view():
    file = encode(gradient(300, 200), "JPEG")
    cfg = PreprocessConfig(image_size=101, train_scale=(0.5, 1.0))
    for seed in range(5):
        (view,) = augment(file, [cfg], np.random.default_rng(seed))
        expected = reference_crop(decode_image(file), cfg, seed)
        np.testing.assert_allclose(grey_levels(view, cfg), expected, atol=1e-4)


def test_a_view_of_a_jpeg_does_not_depend_on_the_others():
    file = encode(extremes(301, 299), "JPEG")
    small, large = (PreprocessConfig(image_size=side, train_scale=(0.7, 1.0)) for side in (60, 200))
    for seed in range(5):
        first, second = augment(file, [small, large], np.random.default_rng(seed))
        for cfg, view in ((small, first), (large, second)):
            (alone,) = augment(file, [cfg], np.random.default_rng(seed))
            np.testing.assert_array_equal(view, alone)


def test_augment_refuses_what_decode_image_refuses():
    with pytest.raises(BadSample, match="not an image file of JPEG"):
        augment(b"hello", [PreprocessConfig()], np.random.default_rng(0))
    data = encode(gradient(64, 64), "JPEG")
    with pytest.raises(BadSample, match=r"(?i)truncated"):
        augment(data[: len(data) // 2], [PreprocessConfig()], np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "cubic"},
        {"resize": "longest"},
        {"image_size": 0},
        {"std": (0.0, 1.0, 1.0)},
        {"train_scale": (0.5, 2.0)},
        {"train_ratio": (2.0, 1.0)},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PreprocessConfig(**wrong)
