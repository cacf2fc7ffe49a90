"""How a network sees an image, and the way back from its input to the original pixels.

The network's input is one resampling of a box of the original, `Region`; there is no image in between, so a
10,000 x 1 image costs what its own pixels cost. S is the side of the network's square input. Pixel (0, 0) is at the top
left; a coordinate on a line of pixels is measured at their edges, so pixel i covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ConfigError

FITS = ("crop", "squash")
MAP_SIDE = 24
"""Rows and columns of a stored saliency map: about as fine as the Gaussian that it is made with, in half a kilobyte."""

_ROUNDING = 1e-9
"""Pixels added before rounding down, so that a centre on the line between two pixels is in the second whatever the
last bit; two centres that differ at all differ by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What a network wants to be shown.

    Raises ConfigError for a size below 1 and an unknown `fit`.
    """

    size: int
    """Side of the network's square input, S, in pixels."""
    fit: str = "crop"
    """`crop`: the short side becomes `resize` pixels, then the middle S x S is taken; `squash`: the whole image
    becomes S x S, whatever its shape."""
    resize: int | None = None
    """For `crop` only, in pixels; None is `size`. Below `size` it counts as `size`: the picture is enlarged where
    torchvision would add a black border, since a border is nothing to find evidence on."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the channels red, green, blue, which lie in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides the channels afterwards."""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ConfigError(f"fit is {self.fit!r}; it must be one of {', '.join(FITS)}")
        if self.size < 1 or (self.resize is not None and self.resize < 1):
            raise ConfigError(f"size and resize are in pixels, at least 1; not {self.size} and {self.resize}")


@dataclass(frozen=True, slots=True)
class Region:
    """The part of an original image that becomes the network's S x S input."""

    width: int
    """Original width in pixels."""
    height: int
    """Original height in pixels."""
    size: int
    """Side of the network's input, S."""
    left: float
    """Edges of the part in original pixels: 0 <= left < right <= width, 0 <= top < bottom <= height."""
    top: float
    right: float
    bottom: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def step_x(self) -> float:
        """Original pixels per network pixel, along a row."""
        return (self.right - self.left) / self.size

    @property
    def step_y(self) -> float:
        """Original pixels per network pixel, along a column."""
        return (self.bottom - self.top) / self.size


@dataclass(frozen=True, slots=True, eq=False)
class OriginalPoints:
    """Points of one image on its original pixels, sorted by y, then x; each pixel at most once."""

    x: NDArray[np.int32]
    """int32 (P,): 0 <= x < width."""
    y: NDArray[np.int32]
    """int32 (P,): 0 <= y < height."""
    mass: NDArray[np.float32]
    """float32 (P,): share of the evidence; the sum is that of the points that came in."""


def seen_region(width: int, height: int, spec: InputSpec) -> Region:
    """Return the part of a `width` x `height` image that the network sees.

    For `crop` it is exactly what torchvision's Resize(resize) and CenterCrop(size) leave: the long side is rounded
    down, an odd rest is split as Python rounds halves. See `InputSpec.resize` for the one difference.
    """
    if spec.fit == "squash":
        return Region(width, height, spec.size, 0.0, 0.0, float(width), float(height))
    short = max(spec.resize or spec.size, spec.size)
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left, right = _middle(width, new_width, spec.size)
    top, bottom = _middle(height, new_height, spec.size)
    return Region(width, height, spec.size, left, top, right, bottom)


def original_points(region: Region, row: ArrayLike, col: ArrayLike, mass: ArrayLike) -> OriginalPoints:
    """Return the original pixels at the centres of network pixels; on the line between two, the right or lower one.

    `row`, `col` (int, in [0, S)) and `mass` are (P,). Where the image was enlarged several network pixels fall on one
    original pixel; their masses add up.
    """
    x = _pixels_at(region.left, region.step_x, np.asarray(col), region.width)
    y = _pixels_at(region.top, region.step_y, np.asarray(row), region.height)
    place, slot = np.unique(y * region.width + x, return_inverse=True)
    total = np.bincount(slot, weights=np.asarray(mass, dtype=np.float64), minlength=len(place))
    y, x = np.divmod(place, region.width)
    return OriginalPoints(x.astype(np.int32), y.astype(np.int32), total.astype(np.float32))


def original_box(region: Region, box: ArrayLike) -> tuple[float, float, float, float]:
    """Return a box of the network's input, xyxy at pixel edges, in original pixels and within the image; NaN stays."""
    x0, y0, x1, y1 = (float(edge) for edge in np.asarray(box, dtype=np.float64))
    xs = np.clip([region.left + x0 * region.step_x, region.left + x1 * region.step_x], 0, region.width)
    ys = np.clip([region.top + y0 * region.step_y, region.top + y1 * region.step_y], 0, region.height)
    return float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1])


def original_mask(region: Region, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the network's input, bool (S, S), as one of the original, bool (height, width).

    An original pixel has the value of the network pixel at its centre; where an edge of the part that is seen cuts
    it, at the middle of what is seen of it. What is not seen is False.
    """
    cols, first_col = _network_pixels(region.left, region.step_x, region.size, region.width)
    rows, first_row = _network_pixels(region.top, region.step_y, region.size, region.height)
    original = np.zeros((region.height, region.width), dtype=np.bool_)
    window = (slice(first_row, first_row + len(rows)), slice(first_col, first_col + len(cols)))
    original[window] = np.asarray(mask)[np.ix_(rows, cols)]
    return original


def original_map(region: Region, saliency: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a map of the network's input, float (S, S), >= 0, as levels of the whole original, uint8.

    They are (MAP_SIDE, MAP_SIDE), whatever the image's shape: the mean of the map over each cell, where what is not
    seen counts as 0, scaled so that the largest is 255. A map of zeros stays one.
    """
    rows = _cell_shares(region.top, region.step_y, region.size, region.height)
    cols = _cell_shares(region.left, region.step_x, region.size, region.width)
    mean = rows @ saliency @ cols.T
    levels: NDArray[np.uint8] = np.rint(mean * (255 / max(float(mean.max()), 1e-30))).astype(np.uint8)
    return levels


def _middle(length: int, resized: int, size: int) -> tuple[float, float]:
    """Return the edges, in original pixels, of the middle `size` of `length` pixels resized to `resized`."""
    offset = round((resized - size) / 2.0)
    return offset * length / resized, (offset + size) * length / resized


def _pixels_at(start: float, step: float, index: NDArray[Any], length: int) -> NDArray[np.int64]:
    place = np.floor(start + (index + 0.5) * step + _ROUNDING).astype(np.int64)
    return np.minimum(place, length - 1)


def _cell_shares(start: float, step: float, size: int, length: int) -> NDArray[np.float32]:
    """Return what share of each cell along one axis every network pixel covers, (MAP_SIDE, S)."""
    cells = np.arange(MAP_SIDE + 1) * (length / MAP_SIDE)
    pixels = start + np.arange(size + 1) * step
    shared = np.minimum(cells[1:, None], pixels[1:]) - np.maximum(cells[:-1, None], pixels[:-1])
    share: NDArray[np.float32] = (shared.clip(min=0) * (MAP_SIDE / length)).astype(np.float32)
    return share


def _network_pixels(start: float, step: float, size: int, length: int) -> tuple[NDArray[np.int64], int]:
    """Return the network pixel for each original pixel that is seen, along one axis, and the first of these."""
    stop = start + size * step
    first, end = int(np.floor(start + _ROUNDING)), min(length, int(np.ceil(stop - _ROUNDING)))
    edges = np.clip(np.arange(first, end + 1), start, stop)
    middles = (edges[:-1] + edges[1:]) / 2
    index = np.floor((middles - start) / step + _ROUNDING).astype(np.int64)
    return np.minimum(index, size - 1), first
