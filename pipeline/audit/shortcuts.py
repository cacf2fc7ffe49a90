"""Classes that are told by the same corner or border of their images: what is learned there may be a shortcut.

Scanners, sites and cameras leave marks where the object is not: a ruler, a date, a frame. A network that finds the
mark needs no object (Selvaraju et al., "Grad-CAM", ICCV 2017, 6.3: doctors and nurses; Lapuschkin et al., "Unmasking
Clever Hans", Nature Communications 2019: a photographer's tag at the lower border of the horses).

Looked at are images taken for what they are labelled: there the evidence is what the class is recognised by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.flags import integers, scan

CORNER, BORDER = 1 / 4, 1 / 8
"""Sides of a corner and depth of a border, as shares of the image: a sixteenth and an eighth of its area."""

DENSE = 4
"""How many times as dense the evidence must be there as if it were spread evenly, for half of the class's images: a
quarter of it in a corner, half of it at a border."""

TIMES = 2
"""How many times that of the other classes the share must be: where all evidence lies low, so do the objects."""

_AREAS = np.array([CORNER**2] * 4 + [BORDER] * 4)

_FEWEST = 10
"""Images of a class below which nothing is said of it."""

_BATCH_ROWS = 1024

REGIONS = (
    "top left corner", "top right corner", "bottom left corner", "bottom right corner",
    "top border", "bottom border", "left border", "right border",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcut:
    """A class whose evidence lies in the same region of most of its images."""

    label: int
    name: str
    where: str
    """One of `REGIONS`."""
    share: float
    """Median share of an image's evidence in it, in [0, 1]."""
    elsewhere: float
    """The same of the images of all other classes."""
    images: int
    """Images looked at: predicted as labelled, with evidence."""


def find_shortcuts(parts: Sequence[Path], class_names: Sequence[str]) -> tuple[Shortcut, ...]:
    """Return the classes whose evidence gathers in one corner or at one border, in class order.

    A class counts where the median share of its images in a region is at least `DENSE` times the region's area and
    `TIMES` that of the other classes' images; the region where it is densest is named. Classes of fewer than 10 images
    are left out.
    """
    labels, shares = [np.zeros(0, np.int64)], [np.zeros((0, len(REGIONS)), np.float32)]
    columns = ["label", "pred", "width", "height", "pred_fix_x", "pred_fix_y", "pred_fix_mass"]
    for batch in scan(parts, columns, _BATCH_ROWS):
        label = integers(batch, "label")
        traced = batch.column("pred_fix_mass").is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero((label >= 0) & (label == integers(batch, "pred")) & traced)
        if len(rows):
            labels.append(label[rows])
            shares.append(_shares(batch.take(rows)))
    label, share = np.concatenate(labels), np.concatenate(shares)
    found = []
    for one in np.flatnonzero(np.bincount(label) >= _FEWEST).tolist():
        own = label == one
        inside = np.median(share[own], axis=0)
        dense = inside >= DENSE * _AREAS
        if not dense.any() or own.all():
            continue
        outside = np.median(share[~own], axis=0)  # of nearly all images, so only where it can matter
        gathered = dense & (inside >= TIMES * outside)
        if gathered.any():
            at = int(np.argmax(np.where(gathered, inside / _AREAS, 0)))
            found.append(
                Shortcut(
                    label=one,
                    name=class_names[one],
                    where=REGIONS[at],
                    share=float(inside[at]),
                    elsewhere=float(outside[at]),
                    images=int(own.sum()),
                )
            )
    return tuple(found)


def _shares(batch: Any) -> NDArray[np.float32]:
    """Return the share of each image's evidence in each of `REGIONS`, (n, 8)."""
    mass = batch.column("pred_fix_mass")
    count = mass.value_lengths().to_numpy()
    row = np.repeat(np.arange(len(batch)), count)
    x, y = (
        (batch.column(f"pred_fix_{axis}").flatten().to_numpy() + 0.5)
        / batch.column(side).to_numpy(zero_copy_only=False)[row]
        for axis, side in (("x", "width"), ("y", "height"))
    )
    weight = mass.flatten().to_numpy()
    left, right, top, bottom = x < CORNER, x > 1 - CORNER, y < CORNER, y > 1 - CORNER
    regions = (
        left & top, right & top, left & bottom, right & bottom,
        y < BORDER, y > 1 - BORDER, x < BORDER, x > 1 - BORDER,
    )  # fmt: skip
    return np.stack(
        [np.bincount(row, weights=weight * inside, minlength=len(batch)) for inside in regions], axis=1
    ).astype(np.float32)
