"""Small pictures in every colour mode and file format, made here, and what an upright RGB reader must make of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Grey = np.ndarray
"""uint8 (H, W)."""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def block(width: int, height: int, box: tuple[int, int, int, int]) -> Grey:
    """A bright block on black; box is x0, y0, x1, y1."""
    picture = np.zeros((height, width), dtype=np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return picture


def _palette(grey: Grey, **options: Any) -> bytes:
    """Bright parts are colour 0: white, or where that is transparent a dark blue, which must not be seen."""
    image = Image.fromarray((grey < 128).astype(np.uint8), mode="P")
    image.putpalette([*((0, 0, 90) if "transparency" in options else (255, 255, 255)), 0, 0, 0])
    return encoded(image, **options)


def _colour_key(grey: Grey) -> bytes:
    """Bright parts are a dark blue that the file calls transparent."""
    blue = np.zeros((*grey.shape, 3), dtype=np.uint8)
    blue[grey > 128, 2] = 90
    return encoded(Image.fromarray(blue), transparency=(0, 0, 90))


def _with_alpha(grey: Grey, mode: str, kind: str) -> bytes:
    """Bright parts are transparent black: only over white do they come out bright."""
    alpha = Image.fromarray(grey).point(lambda value: 255 - value)
    picture = Image.new(mode[:-1], alpha.size, 0)
    picture.putalpha(alpha)
    assert picture.mode == mode
    return encoded(picture, kind, lossless=True) if kind == "WEBP" else encoded(picture, kind)


def _cmyk(grey: Grey, kind: str, **options: Any) -> bytes:
    return encoded(Image.fromarray(grey).convert("RGB").convert("CMYK"), kind, **options)


FILES: dict[str, Callable[[Grey], bytes]] = {
    "rgb png": lambda grey: encoded(Image.fromarray(grey).convert("RGB")),
    "grey png": lambda grey: encoded(Image.fromarray(grey)),
    "grey jpeg": lambda grey: encoded(Image.fromarray(grey), "JPEG", quality=100),
    "rgb jpeg": lambda grey: encoded(Image.fromarray(grey).convert("RGB"), "JPEG", quality=100, subsampling=0),
    "1-bit png": lambda grey: encoded(Image.fromarray(grey).convert("1")),
    "palette png": _palette,
    "palette png, one transparent colour": lambda grey: _palette(grey, transparency=0),
    "palette png, alpha per colour": lambda grey: _palette(grey, transparency=b"\x00\xff"),
    "palette gif, transparent": lambda grey: _palette(grey, kind="GIF", transparency=0),
    "rgb png, transparent colour": _colour_key,
    "rgba png": lambda grey: _with_alpha(grey, "RGBA", "PNG"),
    "rgba webp": lambda grey: _with_alpha(grey, "RGBA", "WEBP"),
    "rgba tiff": lambda grey: _with_alpha(grey, "RGBA", "TIFF"),
    "la png": lambda grey: _with_alpha(grey, "LA", "PNG"),
    "cmyk tiff": lambda grey: _cmyk(grey, "TIFF"),
    "cmyk jpeg": lambda grey: _cmyk(grey, "JPEG", quality=100),
    "16-bit png": lambda grey: encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
    "16-bit tiff": lambda grey: encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
    "16-bit pgm": lambda grey: b"P5 %d %d 65535\n" % grey.shape[::-1] + (grey.astype(">u2") * 257).tobytes(),
    "32-bit tiff": lambda grey: encoded(Image.fromarray(grey.astype(np.int32) * 257), "TIFF"),
    "float tiff, 0..1": lambda grey: encoded(Image.fromarray(grey.astype(np.float32) / 255), "TIFF"),
    "float tiff, 0..255": lambda grey: encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"),
    "lab tiff": lambda grey: encoded(Image.fromarray(np.dstack([grey, grey * 0, grey * 0]), mode="LAB"), "TIFF"),
    "bmp": lambda grey: encoded(Image.fromarray(grey).convert("RGB"), "BMP"),
    "tga": lambda grey: encoded(Image.fromarray(grey).convert("RGB"), "TGA"),
}

_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""How a camera stores an upright picture under each EXIF orientation (EXIF 2.3, tag 0x0112)."""


def rotated(upright: np.ndarray, orientation: int, kind: str) -> bytes:
    """A file that becomes `upright`, uint8 (H, W) or (H, W, 3), when its EXIF orientation is followed."""
    image = Image.fromarray(np.ascontiguousarray(_STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind.split()[0], {})
    if kind == "TIFF lzw":
        options["compression"] = "tiff_lzw"
    return encoded(image, kind.split()[0], exif=exif, **options)


def with_broken_exif(image: Image.Image) -> bytes:
    """A good JPEG whose EXIF block promises five entries and ends; Pillow warns of it."""
    return encoded(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0", quality=100)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
