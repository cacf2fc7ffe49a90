"""From image files to what the network is shown; a bad image is a row with a reason, never an exception.

n images of a shard, S the side of the network's square input.
"""

from __future__ import annotations

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipeline import schema
from pipeline.dataset.manifest import Shard
from pipeline.dataset.rgb import ImageError, read_rgb
from pipeline.geometry import InputSpec, seen_region

__all__ = [
    "THUMBNAIL",
    "DecodedImage",
    "DecodedShard",
    "ImageError",
    "decode_image",
    "decode_shard",
    "levels",
    "load_original",
    "read_image",
    "thumbnail",
]

_MOST_BYTES = 1 << 30
"""A file larger than this is no picture; reading it could take the process's memory with it."""
_LONGEST = 1 << 22
"""Longest side in pixels; Pillow keeps the box to resample in float32, which beyond cannot tell half pixels apart."""
_WORTH_THREADS = 200 * 200
"""Pixels of an image from which threads gain: below, Python's own work, one thread at a time, is most of decoding."""
_THREADS = 4
"""Enough to keep up with a network; more than there are processors take turns, which costs nothing to speak of."""
THUMBNAIL = 8
"""Side of the little picture that is kept of each image, by which `pipeline.audit.duplicates` finds it again."""
_FOUND = ("sha256", "thumbnail", "width", "height", "status", "error")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedImage:
    """One image as the network is shown it."""

    pixels: NDArray[np.uint8]
    """uint8 (S, S, 3), RGB, before mean and standard deviation."""
    width: int
    """Original width in pixels, after EXIF rotation."""
    height: int
    """Original height in pixels, after EXIF rotation."""
    thumbnail: bytes
    """The whole image in little; see `thumbnail`."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedShard:
    """The images of one shard, in its order."""

    index: int
    """The shard's number."""
    rows: pa.Table
    """n rows: `Shard.rows`, and the columns `sha256` to `error` of `schema.EVIDENCE`."""
    pixels: NDArray[np.uint8]
    """uint8 (n, S, S, 3), RGB; zeros where `status` is `error`."""


def decode_image(data: bytes, spec: InputSpec) -> DecodedImage:
    """Return an image file's bytes as the network wants them: one bilinear resampling of the part it sees.

    `pipeline.dataset.rgb` says how other colours, depths and orientations become RGB; the resampling is Pillow's, with
    antialiasing, and agrees with torchvision's Resize and CenterCrop on the same picture up to rounding.

    Raises ImageError for bytes that hold no picture that can be read; MemoryError passes.
    """
    picture = read_rgb(data)
    if max(picture.size) > _LONGEST:
        raise ImageError(
            f"too long: {picture.width:,} x {picture.height:,} pixels, and no side may have over {_LONGEST:,}"
        )
    region = seen_region(picture.width, picture.height, spec)
    seen = picture.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=region.box)
    return DecodedImage(np.array(seen), picture.width, picture.height, thumbnail(picture))


def thumbnail(picture: Image.Image) -> bytes:
    """Return a picture's thumbnail as it is stored: 8 x 8 grey levels, row by row."""
    return picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


def levels(column: Any) -> NDArray[np.uint8]:
    """Return a column of thumbnails as uint8 (n, 64); zeros, which are never compared, where there is none."""
    filled = column.fill_null(bytes(THUMBNAIL**2))
    flat = np.frombuffer(b"".join(filled.to_pylist()), np.uint8)
    return flat.reshape(len(column), THUMBNAIL**2)


def decode_shard(shard: Shard, spec: InputSpec, *, threads: int = _THREADS) -> DecodedShard:
    """Read and decode a shard's images, each file once.

    An image that cannot be read, or whose row has a `problem`, gets the status `error` and the reason; `sha256` is
    there as soon as the bytes are. A row with a `problem` is not read at all.

    `threads` is the most threads to use, at least 1. Small images are decoded on one thread in any case, the first one
    telling for all. The result does not depend on it.

    Raises nothing for a bad image, except MemoryError for one that does not fit into memory.
    """
    pixels = np.zeros((shard.rows.num_rows, spec.size, spec.size, 3), dtype=np.uint8)

    def found(number: int, uri: str, problem: str | None) -> dict[str, Any]:
        result: dict[str, Any] = dict.fromkeys(_FOUND)
        try:
            if problem is not None:
                raise ImageError(problem)
            data = _read(uri)
            result["sha256"] = hashlib.sha256(data).hexdigest()
            image = decode_image(data, spec)
        except ImageError as error:
            return {**result, "status": "error", "error": str(error)}
        pixels[number] = image.pixels
        told = {"thumbnail": image.thumbnail, "width": image.width, "height": image.height}
        return {**result, **told, "status": "ok"}

    todo = list(zip(range(len(pixels)), *(shard.rows[name].to_pylist() for name in ("uri", "problem")), strict=True))
    results = []
    area = 0
    while todo and not area:
        results.append(found(*todo.pop(0)))
        area = (results[-1]["width"] or 0) * (results[-1]["height"] or 0)
    if threads > 1 and area >= _WORTH_THREADS:
        with ThreadPoolExecutor(threads) as pool:
            results += pool.map(lambda job: found(*job), todo)
    else:
        results += [found(*job) for job in todo]
    rows = shard.rows
    for name in _FOUND:
        field = schema.EVIDENCE.field(name)
        rows = rows.append_column(field, pa.array([result[name] for result in results], type=field.type))
    return DecodedShard(shard.index, rows, pixels)


def read_image(uri: str, spec: InputSpec) -> DecodedImage:
    """Return the image in a file as the network wants it; ImageError as `decode_image` and `load_original`."""
    return decode_image(_read(uri), spec)


def load_original(uri: str) -> Image.Image:
    """Return the picture in a file at its original size, mode RGB, upright.

    Raises ImageError for a file that cannot be read or holds no picture; MemoryError passes.
    """
    return read_rgb(_read(uri))


def _read(uri: str) -> bytes:
    path = Path(uri)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, forever
            raise ImageError("not a file: a folder" if stat.S_ISDIR(status.st_mode) else "not a file: a device or pipe")
        if status.st_size > _MOST_BYTES:
            raise ImageError(f"too large: {status.st_size:,} bytes, and no image file may have over {_MOST_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("the file is gone: it was there when the dataset was listed") from error
    except PermissionError as error:
        raise ImageError("no permission to read the file") from error
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ImageError(f"the path cannot be used: {error}") from error
