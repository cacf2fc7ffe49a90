"""Points: where the walk stands in one node's output, how much of the evidence is there, and for which target.

P points, T targets. A point is an index into the node's whole output, the batch included, so points of different
images never meet; points of different targets at the same place are told apart by `trace`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fixcore.compiled import join as compiled
from fixcore.compiled.threads import is_compiled_for

ROUNDING = 1e-6
"""A half that is missed by rounding alone is a half; what lies so little above a mean lies at it."""


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


def settled(points: Points, shape: torch.Size) -> tuple[Points, tuple[int, ...]]:
    """Return, where vectors end and a map begins, what of the evidence goes on, without a sign; `shape` is the map's.

    What a place of the map adds to the target, over all its channels, is a class map: the places that lie above its
    mean go on, each at the channel that adds most (ties: the lowest), with what they have beyond the mean. A target
    whose evidence lies at one place alone (a class token) keeps the fewest neurons that together hold at least half of
    what speaks for it, of equal ones the first. Mass: what speaks for the target, divided among what goes on; a target
    for which nothing speaks ends here.

    Points must be distinct. Also returned are the dimensions of the map's places, none if nothing is told by them.
    """
    targets = int(points.trace.max()) + 1 if len(points) else 0
    speaks = points.mass.new_zeros(targets).index_add_(0, points.trace, points.mass.clamp(min=0))
    largest = points.mass.new_zeros(targets).scatter_reduce(0, points.trace, points.mass.abs(), "amax")
    is_left = points.mass.abs() > largest[points.trace] * ROUNDING  # not what has cancelled
    points = points.where(is_left & (speaks[points.trace] > 0))
    points = points.where(torch.argsort(points.trace * shape.numel() + points.index))
    places = {3: (1,), 4: (2, 3)}.get(len(shape), ())
    extents = [shape[0], *(shape[dim] for dim in places)]
    at = unravel(points.index, shape)
    place = ravel([at[0], *(at[dim] for dim in places)], extents)
    by_line = math.prod(extents[1:])
    line, row = torch.unique(points.trace * shape[0] + at[0], return_inverse=True)  # a target, and a row of the map
    trace = torch.div(line, shape[0], rounding_mode="floor")
    cell = row * by_line + place % by_line
    added = points.mass.new_zeros(len(line) * by_line).index_add_(0, cell, points.mass).view(-1, by_line)
    reached = torch.zeros_like(added).view(-1).index_fill_(0, cell, 1.0).view_as(added).sum(1)
    has_places = torch.zeros(targets, dtype=torch.bool, device=cell.device).index_fill_(0, trace[reached > 1], True)
    excess = added - added.mean(1, keepdim=True)
    least = added.abs().mean(1, keepdim=True) * ROUNDING
    excess = torch.where((excess > least) & has_places[trace][:, None], excess, 0.0)
    total = excess.new_zeros(targets).index_add_(0, trace, excess.sum(1))
    row, column = (excess > 0).nonzero(as_tuple=True)
    coordinates = [torch.zeros_like(row)] * len(shape)  # where all channels add nothing, the first of them
    for dim, own in zip((0, *places), unravel((line % shape[0])[row] * by_line + column, extents), strict=True):
        coordinates[dim] = own
    first = ravel(coordinates, shape)
    strongest = _strongest(points, cell, added.numel())[row * by_line + column]
    index = torch.where(strongest < len(points), points.index[strongest.clamp(max=len(points) - 1)], first)
    share = (excess / total[trace][:, None])[row, column]
    found = Points(index, trace[row], speaks[trace[row]] * share, distinct=True)
    halves = _strongest_half(points.where(~has_places[points.trace]))
    return (_together([halves, found]) if len(halves) else found), (places if len(found) else ())


def _strongest(points: Points, cell: Tensor, cells: int) -> Tensor:
    """Return int64 (cells,): of the points in a cell, int64 (P,), the first with the largest mass; P: there is none."""
    largest = points.mass.new_full((cells,), -torch.inf).scatter_reduce(0, cell, points.mass, "amax")
    number = torch.where(points.mass == largest[cell], torch.arange(len(cell), device=cell.device), len(cell))
    return torch.full((cells,), len(cell), device=cell.device).scatter_reduce(0, cell, number, "amin")


def _strongest_half(points: Points) -> Points:
    """Keep the fewest points that together hold at least half of what speaks for each target, and all of its mass."""
    points = replace(points.where(points.mass > 0), signed=False)
    if not len(points):
        return points
    trace, row, count = torch.unique_consecutive(points.trace, return_inverse=True, return_counts=True)
    first = count.cumsum(0) - count
    column = torch.arange(len(points), device=row.device) - first[row]
    by_target = points.mass.new_zeros(len(trace), int(count.max())).index_put_((row, column), points.mass)
    strongest, order = torch.sort(by_target, dim=1, descending=True, stable=True)
    held = strongest.double().cumsum(1)
    total = held[:, -1:]
    kept = ((held - strongest) * 2 < total * (1 - ROUNDING)) & (strongest > 0)
    scale = total[:, 0] / held.gather(1, kept.sum(1, keepdim=True) - 1)[:, 0]
    row, rank = kept.nonzero(as_tuple=True)
    place = first[row] + order[row, rank]
    return Points(points.index[place], trace[row], (strongest[row, rank] * scale[row]).float(), distinct=True)


def is_vector(shape: Sequence[int | None]) -> bool:
    """Whether an output has no more than one place: (N, D), or a map of one cell, (N, D, 1, 1) or (N, 1, 1, D)."""
    return all(extent == 1 for extent in shape[2:]) or (len(shape) == 4 and shape[1] == shape[2] == 1)


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
