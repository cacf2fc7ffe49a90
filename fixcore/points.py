"""Points: where the walk stands in one node's output, how much of the evidence is there, and for which target.

P points, T targets. A point is an index into the node's whole output, the batch included, so points of different
images never meet; points of different targets at the same place are told apart by `trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Weighted places in one node's output."""

    index: Tensor
    """int64 (P,): position in the output, row-major over its logical shape whatever its memory format."""
    trace: Tensor
    """int64 (P,): which of the T explained targets the point belongs to."""
    mass: Tensor
    """float32 (P,): share of the target's evidence, >= 0."""
    distinct: bool = False
    """Whether no two points of one target are known to lie at one place, so that nothing is left to be joined."""

    def __len__(self) -> int:
        """Return the number of points, P."""
        return self.index.numel()

    def moved(self, index: Tensor, *, apart: bool = False) -> Points:
        """Return the same points at other places, `index` int64 (P,); `apart`: no two places became one."""
        return Points(index, self.trace, self.mass, self.distinct and apart)

    def spread(self, index: Tensor, kept: Tensor, share: Tensor) -> Points:
        """Return every point replaced by several.

        `index`, `kept` and `share` are (P, B): branch b of point p exists where `kept`, lies at `index` and takes
        `share` of the point's mass.
        """
        point, branch = kept.nonzero(as_tuple=True)
        return Points(
            index[point, branch],
            self.trace[point],
            self.mass[point] * share[point, branch],
        )

    def where(self, kept: Tensor) -> Points:
        """Return the points for which `kept`, bool (P,), holds."""
        return Points(self.index[kept], self.trace[kept], self.mass[kept], self.distinct)


def merged(parts: Sequence[Points], size: int) -> Points:
    """Join what meets at one node: points of one target at one place become one, their masses add up.

    `size` is the number of elements of the node's output. What had to be joined is sorted by target, then place.
    """
    if len(parts) == 1 and parts[0].distinct:
        return parts[0]
    joined = parts[0] if len(parts) == 1 else _joined(parts)
    key, slot = torch.unique(joined.trace * size + joined.index, return_inverse=True)
    mass = torch.zeros(key.numel(), dtype=joined.mass.dtype, device=key.device)
    mass.index_add_(0, slot, joined.mass)
    trace = torch.div(key, size, rounding_mode="floor")
    return Points(key - trace * size, trace, mass, distinct=True)


def unravel(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the coordinates, one int64 (P,) per dimension of `shape`, of row-major positions."""
    coordinates: list[Tensor] = []
    for length in reversed(shape[1:]):
        rest = torch.div(index, length, rounding_mode="floor")
        coordinates.append(index - rest * length)
        index = rest
    coordinates.append(index)
    return tuple(reversed(coordinates))


def ravel(coordinates: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Return row-major positions of coordinates; the inverse of `unravel`. Coordinates broadcast."""
    index = coordinates[0]
    for coordinate, length in zip(coordinates[1:], shape[1:], strict=True):
        index = index * length + coordinate
    return index


def _joined(parts: Sequence[Points]) -> Points:
    return Points(
        torch.cat([part.index for part in parts]),
        torch.cat([part.trace for part in parts]),
        torch.cat([part.mass for part in parts]),
    )
