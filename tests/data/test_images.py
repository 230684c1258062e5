"""Every kind of image file a user may have opens upright in RGB, or is a bad sample with a reason."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from clipx.data import images
from clipx.data.images import open_image
from clipx.errors import BadSample


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 6, y * 8, x + y], -1).astype(np.uint8))


def first_pixel(image: Image.Image) -> tuple:
    return image.getpixel((0, 0))


def test_an_ordinary_jpeg_is_what_pillow_decodes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(gradient(), "JPEG"))
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    for source in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(format):
    options = {"lossless": True} if format == "WEBP" else {}
    opened = open_image(encoded(gradient(), format, **options))
    assert np.array_equal(np.asarray(opened), np.asarray(gradient()))
    assert type(opened) is Image.Image


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    source = Image.new("RGB", (8, 8), "white").convert(mode)
    opened = open_image(encoded(source, "TIFF"))
    assert opened.mode == "RGB"
    assert first_pixel(opened) == (255, 255, 255)


def test_cmyk_jpeg_keeps_its_colour():
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    opened = np.asarray(open_image(encoded(red, "JPEG", quality=95))).reshape(-1, 3).mean(0)
    assert opened[0] > 200
    assert opened[1] < 60


def test_transparency_is_composited_on_white():
    assert first_pixel(open_image(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"))) == (
        255,
        255,
        255,
    )
    half = first_pixel(open_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")))
    assert half == pytest.approx((127, 127, 127), abs=1)
    assert first_pixel(open_image(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG"))) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0, 0, 0] * 256)
    assert first_pixel(open_image(encoded(palette, "PNG", transparency=3))) == (255, 255, 255)
    assert first_pixel(open_image(encoded(palette, "GIF", transparency=3))) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    opened = np.asarray(open_image(encoded(Image.fromarray(values), "PNG")))
    assert opened[0, :, 0].tolist() == [0, 1, 128, 255]
    # A dark 16-bit picture stays dark: the range is that of the format, not of the picture.
    dark = np.full((2, 2), 300, np.uint16)
    assert first_pixel(open_image(encoded(Image.fromarray(dark), "PNG"))) == (1, 1, 1)


def test_float_and_integer_tiffs_are_scaled_by_their_range():
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(open_image(encoded(unit, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    wide = Image.fromarray(np.array([[-1000, 0, 1000]], np.int32))
    assert np.asarray(open_image(encoded(wide, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    nothing = Image.fromarray(np.full((2, 2), np.nan, np.float32))
    assert first_pixel(open_image(encoded(nothing, "TIFF"))) == (0, 0, 0)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue", "lime")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert first_pixel(open_image(animated)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    opened = open_image(encoded(image, format, exif=exif))
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[0] > 200
    assert opened.getpixel((10, 35))[0] < 50


def test_damaged_exif_does_not_cost_the_image():
    good = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert open_image(good).size == (40, 30)


def test_one_pixel():
    assert open_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).size == (1, 1)
    assert open_image(encoded(Image.new("L", (1, 1)), "JPEG")).size == (1, 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_truncated_files_are_bad_samples(format, fraction):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = encoded(noise, format)
    with pytest.raises(BadSample, match="image"):
        open_image(whole[: int(len(whole) * fraction)])


def test_damaged_bytes_never_raise_anything_else():
    random = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        whole = bytearray(encoded(gradient(), format))
        for _ in range(40):
            damaged = bytearray(whole)
            for position in random.integers(0, len(damaged), 8):
                damaged[position] = random.integers(256)
            with contextlib.suppress(BadSample):
                assert open_image(bytes(damaged)).mode == "RGB"


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text file\n" * 20, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_what_is_not_an_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadSample, match=r"(not an|broken|truncated) image: .*a\.jpg"):
        open_image(tmp_path / "a.jpg")


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(BadSample, match="missing file"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(BadSample, match="not a regular file"):
        open_image(tmp_path)
    with pytest.raises(BadSample, match="unreadable file"):
        open_image("a\0b.jpg")


def test_a_bomb_is_refused_by_its_size():
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(BadSample, match=r"image too large: .*20000x20000, 400 million pixels"):
        open_image(bomb)
    with pytest.raises(BadSample, match=r"image too large: .*40x30"):
        open_image(encoded(gradient(), "PNG"), max_pixels=1000)


def test_a_large_jpeg_is_decoded_small():
    large = encoded(Image.new("L", (20_000, 10_000), 200), "JPEG")
    opened = open_image(large)
    assert opened.size == (5000, 2500)
    assert first_pixel(opened) == (200, 200, 200)


def test_a_large_progressive_jpeg_counts_in_full():
    progressive = encoded(gradient(), "JPEG", progressive=True)
    with pytest.raises(BadSample, match="image too large"):
        open_image(progressive, max_pixels=1000)


def test_other_large_images_come_back_reduced(monkeypatch):
    monkeypatch.setattr(images, "_LARGE", 400)
    assert open_image(encoded(gradient(), "PNG")).size == (20, 15)
    assert open_image(encoded(gradient().convert("RGBA"), "PNG")).size == (20, 15)
    assert open_image(encoded(gradient().convert("P"), "GIF")).size == (20, 15)


def test_a_thin_image_of_twenty_thousand_pixels_keeps_its_pixels():
    assert open_image(encoded(Image.new("RGB", (20_000, 3)), "JPEG")).size == (20_000, 3)
