"""Evidence as drawing: SVG path data for dots, masks and heat, from the numbers of one class in one image.

The drawing's longer side is SPAN units whatever the image's size, so that one line width, one dot size and whole
numbers serve all images, and a drawing costs 1 to 4 KB. P points; H x W original pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from PIL import Image

from pipeline import rle
from pipeline.errors import RunFolderError
from pipeline.pages.findings import Box, ClassEvidence

SPAN = 1000
HEAT_LEVELS = (0.15, 0.35, 0.55, 0.75, 0.9)
"""Shares of the peak at which the heat map's bands begin."""

_WIDEST = 2.5  # a drawing's longer side over its shorter one; thinner images get empty bands beside them
_GRID = 80  # cells along the longer side of masks and heat maps: 1/80 of the image is finer than any evidence
_DOT_STEPS = 5
_DOT_DIAMETERS = (12, 34)  # least and most, in units


@dataclass(frozen=True, slots=True)
class Canvas:
    """How original pixels become units of the drawing; pixel (0, 0) covers units 0 to `scale`."""

    width: int
    """Original pixels."""
    height: int

    @property
    def scale(self) -> float:
        """Units per original pixel."""
        return SPAN / max(self.width, self.height)

    @property
    def units(self) -> tuple[float, float]:
        """Width and height of the image in units; at least 1, or a very thin image would not be drawn at all."""
        return max(1.0, round(self.width * self.scale, 1)), max(1.0, round(self.height * self.scale, 1))

    @property
    def view_box(self) -> str:
        """The drawing's frame: the image, with empty bands beside it where it is very long or very tall."""
        wide, high = self.units
        frame_wide, frame_high = max(wide, SPAN / _WIDEST), max(high, SPAN / _WIDEST)
        left, top = (wide - frame_wide) / 2, (high - frame_high) / 2
        return f"{left:g} {top:g} {frame_wide:g} {frame_high:g}"


@dataclass(frozen=True, slots=True)
class Dots:
    """Fixations of about the same mass: one path of zero-length strokes, round at the ends."""

    path: str
    diameter: float
    opacity: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """One class's evidence as SVG; an empty path where there is nothing to draw."""

    dots: tuple[Dots, ...]
    """Faintest first, so that strong points lie on top."""
    box: Box | None
    """x, y, width, height in units."""
    mask: str
    """Outline of the saliency mask; to be filled by the even-odd rule."""
    shade: str
    """Everything but the mask, by the even-odd rule."""
    heat: tuple[str, ...]
    """Outlines of the heat map at HEAT_LEVELS; each lies within the one before."""
    points: int
    """Fixations there are."""
    points_drawn: int
    mass_drawn: float
    """Share of the evidence that the drawn points hold, in [0, 1]."""


def draw(evidence: ClassEvidence, canvas: Canvas, limit: int) -> Drawing:
    """Draw one class's evidence; of its points the `limit` strongest."""
    kept = evidence.strongest(limit)
    mask = "" if evidence.mask is None else _outline(_mask_cells(evidence.mask, canvas), 0.5, canvas)
    warm = heat(evidence, canvas.width, canvas.height)
    wide, high = canvas.units
    return Drawing(
        dots=_dots(kept, canvas),
        box=None if evidence.box is None else _rectangle(evidence.box, canvas),
        mask=mask,
        shade=f"M0 0H{wide:g}V{high:g}H0Z{mask}" if mask else "",
        heat=tuple(_outline(warm, level, canvas) for level in HEAT_LEVELS) if warm.any() else (),
        points=len(evidence),
        points_drawn=len(kept),
        mass_drawn=float(kept.mass.sum(dtype=np.float64)),
    )


def heat(evidence: ClassEvidence, width: int, height: int, long_side: int = _GRID) -> np.ndarray:
    """Return the saliency map over the whole image, float32, scaled to max 1.

    Its longer side has `long_side` cells, the shorter at least one; all zero without points.
    """
    wide, high = (max(1, round(long_side * length / max(width, height))) for length in (width, height))
    levels = Image.fromarray(evidence.map.astype(np.float32)).resize((wide, high), Image.Resampling.BILINEAR)
    shown = np.asarray(levels, np.float32)
    most = float(shown.max())
    return shown / most if most > 0 else shown


def mask_of(counts: str, width: int, height: int) -> np.ndarray:
    """Return a saliency mask as bool (H, W) at original size; RunFolderError for evidence that was damaged."""
    try:
        mask: np.ndarray = rle.decode(counts, height, width)
    except ValueError as error:
        raise RunFolderError(f"the evidence is damaged: {error}; run the audit again") from error
    return mask


def _dots(evidence: ClassEvidence, canvas: Canvas) -> tuple[Dots, ...]:
    if not len(evidence):
        return ()
    x = ((evidence.x + 0.5) * canvas.scale).round().astype(int)
    y = ((evidence.y + 0.5) * canvas.scale).round().astype(int)
    # Area goes with mass; masses span orders of magnitude, so steps are taken on the dot's diameter.
    strength = np.sqrt(evidence.mass / max(float(evidence.mass.max()), 1e-30))
    step = np.minimum((strength * _DOT_STEPS).astype(int), _DOT_STEPS - 1)
    least, most = _DOT_DIAMETERS
    dots = []
    for level in range(_DOT_STEPS):
        at = step == level
        if at.any():
            path = "".join(f"M{a} {b}h0" for a, b in zip(x[at], y[at], strict=True))
            share = level / (_DOT_STEPS - 1)
            dots.append(Dots(path, round(least + share * (most - least), 1), round(0.55 + 0.45 * share, 2)))
    return tuple(dots)


def _rectangle(box: Box, canvas: Canvas) -> Box:
    wide, high = canvas.units
    left, right = (min(max(edge * canvas.scale, 0.0), wide) for edge in (box[0], box[2]))
    top, bottom = (min(max(edge * canvas.scale, 0.0), high) for edge in (box[1], box[3]))
    # The box of a single pixel of a large image would not be seen: 4 units is one pixel of the thumbnail.
    return round(left, 1), round(top, 1), round(max(right - left, 4.0), 1), round(max(bottom - top, 4.0), 1)


def _mask_cells(counts: str, canvas: Canvas) -> np.ndarray:
    """Return the mask's share of each cell of a coarse grid; pixels of a small image become blocks of cells."""
    mask = mask_of(counts, canvas.width, canvas.height)
    longest = max(mask.shape)
    if longest <= _GRID:
        times = -(-_GRID // longest)
        return mask.repeat(times, axis=0).repeat(times, axis=1).astype(np.float32)
    size = (max(1, round(_GRID * canvas.width / longest)), max(1, round(_GRID * canvas.height / longest)))
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize(size, Image.Resampling.BOX), np.float32) / 255


def _outline(cells: np.ndarray, level: float, canvas: Canvas) -> str:
    """Return where cells (h, w), spread over the whole image, pass `level`, as closed paths."""
    high, wide = cells.shape
    units_wide, units_high = canvas.units
    # A rim of zeros closes every path at the image's edge. Cell (0, 0) has its centre at 0.5, so the rim is at -0.5.
    lines: Any = contour_generator(
        x=(np.arange(wide + 2) - 0.5) * (units_wide / wide),
        y=(np.arange(high + 2) - 0.5) * (units_high / high),
        z=np.pad(cells, 1),
    ).lines(level)
    paths = []
    for line in lines:
        corners = np.stack([line[:, 0].clip(0, units_wide), line[:, 1].clip(0, units_high)], axis=1).round().astype(int)
        moved = np.ones(len(corners), bool)
        moved[1:] = (corners[1:] != corners[:-1]).any(axis=1)
        corners = corners[moved]
        if len(corners) > 2:
            steps = np.diff(corners, axis=0)
            turns = "".join(f"{a} {b} " for a, b in steps[:-1])
            paths.append(f"M{corners[0][0]} {corners[0][1]}l{turns.rstrip()}Z")
    return "".join(paths)
