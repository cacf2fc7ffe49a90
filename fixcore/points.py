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

    def strongest_half(self, size: int) -> Points:
        """Return, of distinct points sorted by target, the fewest of each target that hold half of its mass.

        Of equal ones those at the lowest place; the mass of the others is shared among them in proportion. `size` is an
        upper bound of the number of targets.
        """
        order = torch.argsort(self.mass, descending=True, stable=True)
        order = order[torch.argsort(self.trace[order], stable=True)]
        trace, mass = self.trace[order], self.mass[order].double()
        total = torch.zeros(size, dtype=torch.float64, device=mass.device).index_add_(0, trace, mass)
        until = total.cumsum(0) - total  # mass of all targets before
        before = mass.cumsum(0) - mass - until[trace]
        kept = (before * 2 < total[trace] * (1 - _SLACK)) & (mass > 0)
        chosen = order[kept]
        held = torch.zeros_like(total).index_add_(0, trace[kept], mass[kept])
        share = (mass * total[trace] / held.clamp(min=torch.finfo(torch.float64).tiny)[trace])[kept]
        return Points(self.index[chosen], trace[kept], share.to(self.mass.dtype), distinct=True)


_SLACK = 1e-6
"""A half that is missed by rounding alone is a half."""


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
