"""Any image file or bytes -> an upright RGB image in memory, or ``BadSample``: never another exception."""

import contextlib
import io
import os
import stat
import struct
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from clipx.errors import BadSample

MAX_PIXELS = 2**27
"""Most pixels an image may occupy in memory (134 million, 512 MiB as RGB in Pillow)."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".avif", ".jp2"}
)
"""File name endings taken for images, in lower case."""

# Formats whose decoders read pixels and nothing else: no PostScript, no vector formats, no plugins of other
# packages.
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# An image of more pixels than this is brought below it while or just after it is decoded. 4096 x 4096 is
# several times any CLIP's input, so that an ordinary photograph is never touched and keeps its exact pixels.
_LARGE = 2**24


def open_image(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file, or its bytes, to RGB.

    The first frame of an animation; EXIF orientation applied; transparency composited on white; 16 and 32
    bits a channel scaled to 8 rather than clipped. Images of more than 16.8 million pixels come back reduced
    by a whole factor; a JPEG of that size is reduced while it is decoded, so the full image is never in
    memory.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: most pixels that may be held while decoding.

    Returns:
        A loaded PIL image, mode RGB.

    Raises:
        BadSample: ``<reason>: <which file and what was found>``; the reason is one of missing file,
            unreadable file, not an image, truncated image, broken image, image too large, not enough memory.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(io.BytesIO(source), f"{len(source)} bytes", max_pixels)
    path = os.fspath(source)
    try:
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadSample(f"unreadable file: {path} is not a regular file")
        with open(path, "rb") as file:
            return _open(file, path, max_pixels)
    except FileNotFoundError:
        raise BadSample(f"missing file: {path}") from None
    except (OSError, ValueError) as error:
        raise BadSample(f"unreadable file: {path}: {error}") from None


def _open(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    try:
        image = _identify(file)
        if image is None:
            raise BadSample(f"not an image: {name}")
        factor = _fit(image, name, max_pixels)
        image.load()
        if isinstance(image, JpegImageFile) and image.mode == "RGB" and not _may_be_rotated(image):
            return image
        return _upright_rgb(image, factor)
    except BadSample:
        raise
    except MemoryError:
        raise BadSample(f"not enough memory: {name}") from None
    # Pillow's decoders raise nearly every built-in exception on hostile bytes; whichever it is, the sample is
    # bad.
    except Exception as error:
        reason = "truncated image" if "truncat" in str(error).lower() else "broken image"
        raise BadSample(f"{reason}: {name}: {str(error) or type(error).__name__}") from None


def _identify(file: IO[bytes]) -> ImageFile.ImageFile | None:
    """Read the header; None where no decoder knows the file.

    ``Image.open`` refuses by the size in the header, before a JPEG can be asked to decode at an eighth; so
    the header is read by the same decoders without that check, and ``_fit`` judges. Going straight to JPEG is
    also faster.
    """
    prefix = file.read(16)
    file.seek(0)
    if prefix[:3] == b"\xff\xd8\xff":
        return JpegImageFile(file)
    if not all(name in Image.OPEN for name in _FORMATS[:6]):
        Image.init()
    for name in _FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or not (accept is None or accept(prefix) is True):
            continue
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
            raise BadSample(f"broken image: {name} header: {error}") from None
    return None


def _fit(image: ImageFile.ImageFile, name: str, max_pixels: int) -> int:
    """Have a large JPEG decode small; return the factor by which another large image has still to shrink."""
    width, height = image.size
    # A progressive JPEG is held at full size inside the decoder whatever size it is asked for.
    progressive = bool(image.info.get("progressive") or image.info.get("progression"))
    if isinstance(image, JpegImageFile) and not progressive:
        factor = next((f for f in (1, 2, 4) if width * height <= _LARGE * f * f), 8)
        if factor > 1:
            image.draft(None, (max(width // factor, 1), max(height // factor, 1)))
        held = image.size[0] * image.size[1]
    else:
        held = width * height
    if held > max_pixels:
        raise BadSample(
            f"image too large: {name} is {width}x{height}, {width * height / 1e6:,.0f} million pixels"
            f" (limit {max_pixels / 1e6:,.0f} million)"
        )
    left = image.size[0] * image.size[1]
    return next((f for f in range(1, 64) if left <= _LARGE * f * f), 64)


def _may_be_rotated(image: Image.Image) -> bool:
    return any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"))


def _upright_rgb(image: Image.Image, factor: int) -> Image.Image:
    transparent = "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "RGBa", "La"}
    # Damaged EXIF says nothing about the pixels, which are kept as they lie. In place: no second full-size
    # copy.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    elif transparent:
        image = image.convert("RGBA")
    elif image.mode not in {"RGB", "L"}:
        image = image.convert("RGB")
    if factor > 1:
        image = image.reduce(factor)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # A copy where the mode is right already: the caller gets no file handle and no further frames.
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 or 32 bits (or floats) a pixel to 8.

    16-bit modes by their full range; 32-bit integers and floats by the smallest of the ranges 1, 255, 65535
    that holds them (1 for floats only), otherwise from their own minimum to their maximum.
    """
    values = np.asarray(image).astype(np.float32)
    low, high = 0.0, 65535.0
    # Pillow before 11 reads a 16-bit grey PNG as mode I.
    if not (image.mode.startswith("I;16") or image.format == "PNG"):
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        least, most = float(values.min()), float(values.max())
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        high = next((top for top in ranges if most <= top), most)
        if least < 0 or most > 65535:
            low, high = least, max(most, least + 1e-6)
    scaled = (values - low) * (255.0 / (high - low))
    return Image.fromarray(np.clip(scaled + 0.5, 0, 255).astype(np.uint8))
