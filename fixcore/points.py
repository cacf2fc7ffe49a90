"""Points: where the walk stands in one node's output, how much of the evidence is there, and for which target.

P points, T targets. A point is an index into the node's whole output, the batch included, so points of different
images never meet; points of different targets at the same place are told apart by `trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fixcore.compiled import join as compiled
from fixcore.compiled.threads import is_compiled_for


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Weighted places in one node's output."""

    index: Tensor
    """int64 (P,): position in the output, row-major over its logical shape whatever its memory format."""
    trace: Tensor
    """int64 (P,): which of the T explained targets the point belongs to."""
    mass: Tensor
    """float32 (P,): share of the target's evidence; below 0 where it speaks against the target."""
    distinct: bool = False
    """Whether no two points of one target are known to lie at one place, so that nothing is left to be joined."""
    signed: bool = False
    """Whether the mass is what each neuron adds to the target, or below 0 takes away: so among vectors, where the
    evidence is net (see `Options.vector`). Else it is a share of the evidence for the target, and never below 0."""

    def __len__(self) -> int:
        """Return the number of points, P."""
        return self.index.numel()

    def moved(self, index: Tensor, *, apart: bool = False) -> Points:
        """Return the same points at other places, `index` int64 (P,); `apart`: no two places became one."""
        return Points(index, self.trace, self.mass, self.distinct and apart, self.signed)

    def spread(self, index: Tensor, kept: Tensor, share: Tensor) -> Points:
        """Return every point replaced by several.

        `index`, `kept` and `share` are (P, B): branch b of point p exists where `kept`, lies at `index` and takes
        `share` of the point's mass.
        """
        point, branch = kept.nonzero(as_tuple=True)
        mass = self.mass[point] * share[point, branch]
        return Points(index[point, branch], self.trace[point], mass, signed=self.signed)

    def where(self, kept: Tensor) -> Points:
        """Return the points for which `kept`, bool (P,), holds, or those at the positions `kept`, int64."""
        at = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept
        index, trace, mass = (own.index_select(0, at) for own in (self.index, self.trace, self.mass))
        return Points(index, trace, mass, self.distinct, self.signed)

    def split(self, counts: list[int]) -> list[Points]:
        """Return so many points each, in their order."""
        index, trace, mass = (torch.split_with_sizes(values, counts) for values in (self.index, self.trace, self.mass))
        return [Points(*own, self.distinct, self.signed) for own in zip(index, trace, mass, strict=True)]

    def part(self, part: slice) -> Points:
        """Return some of the points, as they stand."""
        return Points(self.index[part], self.trace[part], self.mass[part], self.distinct, self.signed)

    def times(self, share: float | Tensor) -> Points:
        """Return the points with `share` of their mass, one number for all or float32 (P,)."""
        return Points(self.index, self.trace, self.mass * share, self.distinct, self.signed)


def merged(parts: Sequence[Points], size: int, targets: int | None = None) -> Points:
    """Join what meets at one node: points of one target at one place become one, their masses add up (or cancel).

    `size` is the number of elements of the node's output. What had to be joined is sorted by target, then place; given
    the number of `targets` by place, then target, so that points of several targets at one place follow each other.
    """
    if len(parts) == 1 and parts[0].distinct:
        return parts[0]
    points = parts[0] if len(parts) == 1 else _together(parts)
    keys = (points.trace, points.index, size) if targets is None else (points.index, points.trace, targets)
    join = compiled.joined if is_compiled_for(points.mass) else joined
    major, minor, mass = join(*keys, points.mass)
    index, trace = (minor, major) if targets is None else (major, minor)
    return Points(index, trace, mass, distinct=True, signed=points.signed)


def joined(major: Tensor, minor: Tensor, extent: int, mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct points in order of major and minor (below `extent`), and the sum of the mass of each."""
    key, slot = torch.unique(major * extent + minor, return_inverse=True)
    total = torch.zeros(len(key), dtype=mass.dtype, device=key.device).index_add_(0, slot, mass)
    major = torch.div(key, extent, rounding_mode="floor")
    return major, key - major * extent, total


def numbered(values: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """Return the distinct values in order, and which of them each is: as torch.unique, for values below `extent`.

    Nothing is sorted.
    """
    is_there = torch.zeros(extent, dtype=torch.bool, device=values.device).index_fill_(0, values, True)
    return is_there.nonzero()[:, 0], (is_there.cumsum(0) - 1)[values]


def is_vector(shape: Sequence[int | None]) -> bool:
    """Whether an output has no more than one place: (N, D), or a map of one cell, (N, D, 1, 1) or (N, 1, 1, D).

    So, too, with more dimensions of one element, as einsum adds them; (N, 1, D) is a single token.
    """
    return all(extent == 1 for extent in shape[2:]) or (len(shape) > 3 and sum(one != 1 for one in shape[1:]) < 2)


def by_vector(points: Points, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mass of points in vectors (M, `features`), summed for each target in each vector that it reaches.

    Of V such pairs the target and the vector's row, int64 (V,), in this order, and the mass, float32 (V, features).
    """
    at = torch.div(points.index, features, rounding_mode="floor")
    feature = points.index - at * features
    key = points.trace * (at.amax() + 1 if len(at) else 1) + at
    pair, row = torch.unique(key, return_inverse=True)
    trace, vector = (torch.empty_like(pair).index_copy_(0, row, own) for own in (points.trace, at))
    mass = points.mass.new_zeros(len(pair), features).index_put_((row, feature), points.mass, accumulate=True)
    return trace, vector, mass


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


def _together(parts: Sequence[Points]) -> Points:
    index, trace, mass = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "trace", "mass"))
    return Points(index, trace, mass, signed=any(part.signed for part in parts))
