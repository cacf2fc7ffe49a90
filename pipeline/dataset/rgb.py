"""An image file's bytes as an upright 8-bit RGB picture, or the reason in words why there is none.

What a viewer of the dataset would see is what the network gets:

- turned as its EXIF orientation says; the first picture of an animation or a series;
- transparent parts over white;
- 16-bit grey scaled to 8 bits, 0..65535 to 0..255, nothing clipped; grey levels stored as larger integers or as
  fractions are taken as 0..1 (fractions only), 0..255 or 0..65535, whichever is the first to hold them all, else
  their own range is stretched;
- colour profiles are left aside, as in torchvision's transforms.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "QOI", "TGA")
"""Pictures only: Pillow would also run Ghostscript on an EPS file. TGA, which has no signature, comes last."""

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"BM", "BMP"),
    (4, b"ftypavif", "AVIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\0\0\1\0", "ICO"),
)
_HEIF = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255)
_AT_ONCE = 1 << 20
"""Pixels of a grey picture that are scaled at once: of a large one, numbers of all would fill the memory."""


class ImageError(Exception):
    """An image cannot be read; the message is the reason in words, fit for the `error` column."""


def read_rgb(data: bytes) -> Image.Image:
    """Return the picture in an image file's bytes, mode RGB, upright.

    Raises ImageError for bytes that hold no picture, or one that is damaged or of too many pixels; MemoryError passes.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    with _pillow_quiet():
        image = _opened(data)
        try:
            image.load()
            orientation = _orientation(image)
            picture = _rgb(image)
            return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
        except MemoryError:
            raise
        except Exception as error:  # plugins raise whatever a damaged file leads them to
            if "truncated" in str(error):
                raise ImageError(_how_far(image, data)) from error
            raise ImageError(f"damaged {image.format}: {_words(error)}") from error


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(_what_instead(data)) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"too large: more than {limit:,} pixels, the limit against decompression bombs") from error
    except Exception as error:
        if "truncated" in str(error).lower() or _bytes_promised(data) > len(data):
            raise ImageError(f"truncated {_name(data)}: it ends after {_bytes_there(data)}") from error
        raise ImageError(f"damaged {_name(data)}: {_words(error)}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or the EXIF block is damaged: the picture is good."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_grey(image, (65535,))
    if image.mode == "I":
        return _from_grey(image, (255, 65535))
    if image.mode == "F":
        return _from_grey(image, (1, 255, 65535))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        picture = Image.new("RGB", image.size, _WHITE)
        picture.paste(layer, (0, 0), layer)
        return picture
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _from_grey(image: Image.Image, tops: tuple[int, ...]) -> Image.Image:
    """Scale grey values to 8 bits: from 0 to the first of `tops` that none exceeds, else from their own range."""
    stored = np.asarray(image)
    step = max(1, _AT_ONCE // max(1, stored.shape[1]))
    strips = [slice(start, start + step) for start in range(0, len(stored), step)]
    low, high = np.inf, -np.inf
    for strip in strips:
        values = stored[strip].astype(np.float32)
        finite = np.isfinite(values)
        low = min(low, float(np.min(values, where=finite, initial=np.inf)))
        high = max(high, float(np.max(values, where=finite, initial=-np.inf)))
    top = next((float(top) for top in tops if low >= 0 and high <= top), None)
    bottom, span = (0.0, top) if top is not None else (low, max(high - low, 1e-30))
    grey = np.empty(stored.shape, np.uint8)
    for strip in strips:
        values = stored[strip].astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = np.rint((values - bottom) * (255 / span))
        grey[strip] = np.where(np.isfinite(values), np.clip(scaled, 0, 255), 0)
    return Image.fromarray(grey).convert("RGB")


def _how_far(image: Image.Image, data: bytes) -> str:
    """Say where a truncated file ends. Rows that were not reached are still zero, as Pillow left them."""
    end = f"truncated {image.format}: it ends after {_bytes_there(data)}"
    if image.format == "GIF" or image.info.get("interlace"):  # rows are not stored one after the other
        return end
    try:
        bounds = image.im.getbbox()
    except Exception:
        return end
    rows = bounds[3] - bounds[1] if bounds else 0
    return f"{end}, with about {rows} of {image.height} rows readable"


def _bytes_there(data: bytes) -> str:
    promised = _bytes_promised(data)
    return f"{len(data):,} of {promised:,} bytes" if promised > len(data) else f"{len(data):,} bytes"


def _bytes_promised(data: bytes) -> int:
    """Return the length that the file itself claims, 0 where its format does not begin with it."""
    return int.from_bytes(data[4:8], "little") + 8 if data[:4] == b"RIFF" else 0


def _name(data: bytes) -> str:
    """Return the format that a file's first bytes speak of, or `file`."""
    return next((name for at, mark, name in _SIGNATURES if data[at : at + len(mark)] == mark), "file")


def _what_instead(data: bytes) -> str:
    head = data[:64]
    if head.startswith(b"version https://git-lfs"):
        return "not an image but a Git LFS pointer; run `git lfs pull` in the dataset"
    if head[4:12] in _HEIF:
        return "a HEIC/HEIF image, which cannot be read here; convert it to JPEG or PNG"
    if _name(data) != "file":
        return f"damaged or truncated {_name(data)}: its header cannot be read ({len(data):,} bytes)"
    text = head.decode("utf-8", errors="replace").rstrip("�")
    line = " ".join(text.split())
    if line and "�" not in line and line.isprintable():
        return f"not an image: the file holds text, beginning with {line[:32]!r}"
    return f"not an image in a known format; the file begins with the bytes {head[:8].hex(' ')}"


def _words(error: Exception) -> str:
    """Return an exception's message as one line without addresses, which would differ from run to run."""
    line = " ".join(str(error).split())
    return re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", line)[:200] or type(error).__name__


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Hold back what Pillow warns about while pictures are being read: odd metadata, many pixels, palettes.

    Each such file would warn; whatever matters of it becomes an ImageError. Filters belong to the process, not to the
    thread, on most Pythons: so the first reader sets them, the last one in any thread puts them back, and only
    warnings raised inside Pillow are meant.
    """
    global _quiet_users, _quiet_filters
    if getattr(sys.flags, "context_aware_warnings", False):  # Python 3.14 on: filters can belong to the thread
        with warnings.catch_warnings():
            _ignore_pillow()
            yield
        return
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            _ignore_pillow()
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None


def _ignore_pillow() -> None:
    for category in (UserWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")
