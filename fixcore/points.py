"""Points: where the walk stands in one node's output, how much of the evidence is there, and for which target.

P points, T targets. A point is an index into the node's whole output, the batch included, so points of different
images never meet; points of different targets at the same place are told apart by `trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fixcore.compiled import join as compiled
from fixcore.compiled.threads import is_compiled_for

_ROUNDING = 1e-6
"""A half that is missed by rounding alone is a half."""


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
    low: Tensor | None = None
    """bool (P,): the neuron was followed because it is low, not high; None: because it is high, and no mass is
    below 0. Other than None only among vectors, where the evidence is net (see `Options.vector`)."""

    def __len__(self) -> int:
        """Return the number of points, P."""
        return self.index.numel()

    def moved(self, index: Tensor, *, apart: bool = False) -> Points:
        """Return the same points at other places, `index` int64 (P,); `apart`: no two places became one."""
        return Points(index, self.trace, self.mass, self.distinct and apart, self.low)

    def spread(self, index: Tensor, kept: Tensor, share: Tensor) -> Points:
        """Return every point replaced by several.

        `index`, `kept` and `share` are (P, B): branch b of point p exists where `kept`, lies at `index` and takes
        `share` of the point's mass.
        """
        point, branch = kept.nonzero(as_tuple=True)
        low = None if self.low is None else self.low[point]
        return Points(index[point, branch], self.trace[point], self.mass[point] * share[point, branch], low=low)

    def where(self, kept: Tensor) -> Points:
        """Return the points for which `kept`, bool (P,), holds, or those at the positions `kept`, int64."""
        at = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept
        index, trace, mass = (own.index_select(0, at) for own in (self.index, self.trace, self.mass))
        return Points(index, trace, mass, self.distinct, None if self.low is None else self.low.index_select(0, at))

    def split(self, counts: list[int]) -> list[Points]:
        """Return so many points each, in their order."""
        low = [None] * len(counts) if self.low is None else torch.split_with_sizes(self.low, counts)
        index, trace, mass = (torch.split_with_sizes(values, counts) for values in (self.index, self.trace, self.mass))
        own = zip(index, trace, mass, low, strict=True)
        return [Points(index, trace, mass, self.distinct, part) for index, trace, mass, part in own]

    def part(self, part: slice) -> Points:
        """Return some of the points, as they stand."""
        low = None if self.low is None else self.low[part]
        return Points(self.index[part], self.trace[part], self.mass[part], self.distinct, low)

    def times(self, share: float) -> Points:
        """Return the points with `share` of their mass."""
        return Points(self.index, self.trace, self.mass * share, self.distinct, self.low)

    def driving(self, product: Tensor) -> Tensor:
        """Return products (P, B) of inputs and weights so that those are positive that drove each point's neuron."""
        return product if self.low is None else torch.where(self.low[:, None], -product, product)

    def turned(self, where: Tensor | bool) -> Points:
        """Return the points behind a change of sign `where` it took place, bool (P,): there high was low."""
        return self if self.low is None else replace(self, low=self.low ^ where)

    def as_valued(self, values: Tensor) -> Points:
        """Return the points as neurons of an output with these `values`: one below 0 was followed for being low."""
        return self if self.low is None else replace(self, low=values.reshape(-1)[self.index] < 0)


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
    major, minor, mass, low = join(*keys, points.mass, points.low)
    index, trace = (minor, major) if targets is None else (major, minor)
    return Points(index, trace, mass, distinct=True, low=low)


def joined(
    major: Tensor, minor: Tensor, extent: int, mass: Tensor, low: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the distinct points in order of major, minor (below `extent`) and low, and the sum of the mass of each."""
    place = major * extent + minor
    key, slot = torch.unique(place if low is None else place * 2 + low, return_inverse=True)
    total = torch.zeros(len(key), dtype=mass.dtype, device=key.device).index_add_(0, slot, mass)
    if low is not None:
        low, key = (key % 2).bool(), torch.div(key, 2, rounding_mode="floor")
    major = torch.div(key, extent, rounding_mode="floor")
    return major, key - major * extent, total, low


def settled(points: Points) -> Points:
    """Keep, where vectors end, the strongest of what speaks for each target: half of it, and all of the mass.

    These are the fewest points that together hold at least half, of equal ones the first; they share the whole in
    proportion. What speaks against the target, and which neurons are low, is forgotten. Points must be distinct and
    sorted by target.
    """
    if points.low is None:
        return points
    points = replace(points.where(points.mass > 0), low=None)
    if not len(points):
        return points
    trace, row, count = torch.unique_consecutive(points.trace, return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    column = torch.arange(len(points), device=row.device) - first[row]
    by_target = points.mass.new_zeros(len(trace), int(count.max())).index_put_((row, column), points.mass)
    strongest, order = torch.sort(by_target, dim=1, descending=True, stable=True)
    held = strongest.double().cumsum(1)
    total = held[:, -1:]
    kept = ((held - strongest) * 2 < total * (1 - _ROUNDING)) & (strongest > 0)
    scale = total[:, 0] / held.gather(1, kept.sum(1, keepdim=True) - 1)[:, 0]
    row, rank = kept.nonzero(as_tuple=True)
    place = first[row] + order[row, rank]
    return Points(points.index[place], trace[row], (strongest[row, rank] * scale[row]).float(), distinct=True)


def is_vector(shape: Sequence[int | None]) -> bool:
    """Whether an output has no more than one place: (N, D), or a map of one cell, (N, D, 1, 1) or (N, 1, 1, D)."""
    return all(extent == 1 for extent in shape[2:]) or (len(shape) == 4 and shape[1] == shape[2] == 1)


def by_vector(points: Points, features: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mass of points in vectors (M, `features`), summed for each target in each vector that it reaches.

    Of V such pairs the target and the vector's row, int64 (V,), in this order; the mass, float32 (V, features); and
    the same as what pulls: below 0 where a feature that is lower would speak for the target.
    """
    at = torch.div(points.index, features, rounding_mode="floor")
    feature = points.index - at * features
    key = points.trace * (at.amax() + 1 if len(at) else 1) + at
    pair, row = torch.unique(key, return_inverse=True)
    trace, vector = (torch.empty_like(pair).index_copy_(0, row, own) for own in (points.trace, at))
    mass = points.mass.new_zeros(len(pair), features).index_put_((row, feature), points.mass, accumulate=True)
    if points.low is None:
        return trace, vector, mass, mass
    pulling = torch.where(points.low, -points.mass, points.mass)
    return trace, vector, mass, torch.zeros_like(mass).index_put_((row, feature), pulling, accumulate=True)


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
    low = None
    if any(part.low is not None for part in parts):
        high = [torch.zeros_like(part.trace, dtype=torch.bool) for part in parts]
        low = torch.cat([none if part.low is None else part.low for part, none in zip(parts, high, strict=True)])
    return Points(index, trace, mass, low=low)
