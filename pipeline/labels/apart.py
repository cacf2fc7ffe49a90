"""Apart: whether the evidence of two classes lies on two objects, or on one that can be read twice.

Two measures say so: how far apart the evidence lies (`fixcore.evidence_distance`), and how far the odds swing when one
half of the image is shown in place of the other (`pipeline.judging.halves`). How much of either is usual depends on the
network's last map, on how sure it is of itself, and on how large and alike the objects are, so the dataset says it
itself: by the first two guesses at images that most likely show one thing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

USUAL_SHARE = 0.95
"""Share of the usual images that show one object by this rule: what stands out from them is two."""

USUAL_DISTANCE = 1.3
"""Distance from which evidence lies apart where too few images say what is usual: between where the middles are as far
apart as the mass is from its own middle (1), and where two clouds of one shape become two peaks (1.6)."""

ENOUGH = 100
"""Usual images from which on the dataset decides."""

LOOKED_AT = 500
"""Images whose halves are looked at to learn what is usual, if so many there are."""


def usual_share(images: int) -> float:
    """Return the share of so many images that is looked at to learn what is usual, in (0, 1]."""
    return min(1.0, LOOKED_AT / max(images, 1))


def is_looked_at(image_id: str, share: float) -> bool:
    """Return whether an image is among that share: always the same ones, at random."""
    return zlib.crc32(image_id.encode()) < share * 2**32


@dataclass(frozen=True, slots=True, eq=False)
class Usual:
    """What is usual in n images that most likely show one thing."""

    distance: NDArray[np.float32]
    """(n,), ascending: of the evidence for their first two guesses."""
    swing: NDArray[np.float32]
    """(n,), ascending: of the odds between the two halves, in nats."""
    limit: float
    """Product of the two shares (`is_apart`) below which an image stands out; NaN where there are not `ENOUGH`."""

    @classmethod
    def of(cls, distance: NDArray[np.float32], swing: NDArray[np.float32]) -> Usual:
        """Learn from the images (n,) that have both measures."""
        usual = cls(np.sort(distance), np.sort(swing), np.nan)
        if len(distance) < ENOUGH:
            return usual
        return cls(usual.distance, usual.swing, float(np.quantile(usual._rarity(distance, swing), 1 - USUAL_SHARE)))

    def is_apart(self, distance: NDArray[np.float32], swing: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which images (m,) show two objects: both measures together are rarer than in all but few usual ones.

        The share of the usual images that reach an image's distance, times the share that reach its swing, below
        the limit, as it is for 1 - `USUAL_SHARE` of the usual images: Fisher's combination of two tests, with the usual
        images in place of its chi-squared, since the two go together. What is as usual as the limit is not apart. Where
        there is no swing (NaN), distance decides alone; where there is no distance, nothing lies apart.

        Source: Fisher, Statistical Methods for Research Workers, 4th ed., 21.1; ranks in place of p-values.
        """
        if np.isnan(self.limit):
            return distance >= USUAL_DISTANCE
        alone = distance > np.quantile(self.distance, USUAL_SHARE)
        return np.where(np.isnan(swing), alone, self._rarity(distance, swing) < self.limit) & ~np.isnan(distance)

    def _rarity(self, distance: NDArray[np.float32], swing: NDArray[np.float32]) -> NDArray[np.float64]:
        return _reached(self.distance, distance) * _reached(self.swing, swing)


def _reached(usual: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of the usual values, ascending, that are at least as large as each; never 0."""
    at_least = len(usual) - np.searchsorted(usual, values, side="left")
    return (at_least + 1) / (len(usual) + 1)
