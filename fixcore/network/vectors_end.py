"""Where vectors end and a map begins: of what all channels add to a target, the places that add more than the mean.

N images, T targets, D features, L places, P points.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fixcore.network.class_map import by_place, class_map_points
from fixcore.points import Points, by_vector, numbered, ravel, unravel

_ROUNDING = 1e-6
"""Of the largest: what is left of evidence that cancelled. Of the mean: what lies so little above it lies at it."""
PLACES = {3: (1,), 4: (2, 3)}
"""By the number of a map's dimensions those of its places: tokens (N, L, D), or (N, D, H, W)."""


def pooled_points(value: Tensor, places: tuple[int, ...], points: Points) -> Points:
    """Return, of points in the average of a map over all of its places, those in the map: on their common class map.

    What a target's evidence in a pooled feature is per unit of that feature weighs the feature at each place, and the
    walk goes on as from a class map (`class_map_points`). Behind a linear layer alone these are the layer's weights;
    hidden layers make weights of their own for each image.
    Followed one by one to the places above its own mean, the features of a target would together reach every place.
    A target without evidence for it, in any feature, ends here. Mass: what speaks for the target.
    """
    per_image = value[0].numel()
    features = per_image // math.prod(value.shape[d] for d in places)
    trace, image, mass = by_vector(points, features)
    total = mass.clamp(min=0).sum(1)
    speaks = (total > 0).nonzero()[:, 0]
    trace, image, mass, total = trace[speaks], image[speaks], mass[speaks], total[speaks]
    pooled = by_place(value, places, features).mean(1, dtype=torch.float32)[image]
    weight = torch.where(pooled != 0, mass / pooled, 0.0).to(value.dtype)
    begun = class_map_points(value, places, image, weight, torch.arange(len(trace), device=trace.device))
    return Points(begun.index, trace[begun.trace], begun.mass * total[begun.trace])


def settled(points: Points, shape: torch.Size) -> tuple[list[Points], tuple[int, ...]]:
    """Return what goes on, without a sign, of points with one that arrived at a map of this shape.

    What a place of the map adds to the target, over all its channels, is a class map: the places that lie above its
    mean go on, each at the channel that adds most (ties: the lowest), with what they have beyond the mean. A target
    whose evidence lies at one place alone (a class token) keeps the fewest neurons that together hold at least half of
    what speaks for it, of equal ones the first. Mass: what speaks for the target, divided among what goes on; a target
    for which nothing speaks ends here.

    Points must be distinct. Also returned are the dimensions of the map's places, none if nothing is told by them.
    """
    points = _left(points)
    places = PLACES.get(len(shape), ())
    line, cell = _lines(points, shape, places)
    count = _count(shape, places)
    reached = torch.bincount(numbered(cell, len(line) * count)[0] // count, minlength=len(line)) > 1
    told = torch.isin(points.trace, line[reached] // shape[0])
    found = _above_mean(points.where(told), shape, places)
    return [found, _strongest_half(points.where(~told))], places if len(found) else ()


def _left(points: Points) -> Points:
    """Leave out what has cancelled, and targets for which nothing speaks."""
    targets = int(points.trace.max()) + 1 if len(points) else 0
    speaks = _by_target(points, points.mass.clamp(min=0), targets)
    largest = points.mass.new_zeros(targets).scatter_reduce(0, points.trace, points.mass.abs(), "amax")
    is_left = (points.mass.abs() > largest[points.trace] * _ROUNDING) & (speaks[points.trace] > 0)
    return points.where(is_left)


def _above_mean(points: Points, shape: torch.Size, places: tuple[int, ...]) -> Points:
    """Keep of every target the places above the mean of its class map, each at the channel that adds most."""
    if not len(points):
        return replace(points, signed=False)
    line, cell = _lines(points, shape, places)
    trace, count = line // shape[0], _count(shape, places)
    added = points.mass.new_zeros(len(line) * count).index_add_(0, cell, points.mass).view(-1, count)
    excess = added - added.mean(1, keepdim=True)
    excess = torch.where(excess > added.abs().mean(1, keepdim=True) * _ROUNDING, excess, 0.0)
    row, place = (excess > 0).nonzero(as_tuple=True)
    found = Points(_strongest(points, cell, shape, places, line)[row, place], trace[row], excess[row, place])
    targets = int(trace.max()) + 1
    speaks = _by_target(points, points.mass.clamp(min=0), targets)
    return replace(found.times((speaks / _by_target(found, found.mass, targets))[found.trace]), distinct=True)


def _strongest(points: Points, cell: Tensor, shape: torch.Size, places: tuple[int, ...], line: Tensor) -> Tensor:
    """Return for each line and place, (lines, L), the position of its point with the largest mass; ties to the first.

    Where there is none all channels add nothing, and the first of them is as good as any.
    """
    count = _count(shape, places)
    row = torch.arange(len(line) * count, device=cell.device)
    coordinates = [torch.zeros_like(row)] * len(shape)
    coordinates[0] = (line % shape[0])[row // count]
    for dim, own in zip(places, unravel(row % count, [shape[dim] for dim in places]), strict=True):
        coordinates[dim] = own
    largest = points.mass.new_full(row.shape, -torch.inf).scatter_reduce(0, cell, points.mass, "amax")
    index = torch.where(points.mass == largest[cell], points.index, shape.numel())
    found = torch.full_like(row, shape.numel()).scatter_reduce(0, cell, index, "amin")
    return torch.where(found < shape.numel(), found, ravel(coordinates, shape)).view(-1, count)


def _strongest_half(points: Points) -> Points:
    """Keep the fewest points that together hold at least half of what speaks for each target, and all of its mass."""
    points = replace(points.where(points.mass > 0), signed=False)
    if not len(points):
        return points
    points = points.where(torch.argsort(points.trace * (points.index.max() + 1) + points.index))
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


def _lines(points: Points, shape: torch.Size, places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the lines, one for each target in each row of the map, int64, and in which of their cells points lie.

    A line is `target * rows + row`; a point's cell is its line's number times the places, and its place.
    """
    row, *rest = unravel(points.index, shape)
    targets = int(points.trace.max()) + 1 if len(points) else 0
    line, number = numbered(points.trace * shape[0] + row, targets * shape[0])
    place = ravel([torch.zeros_like(row), *(rest[dim - 1] for dim in places)], [1, *(shape[dim] for dim in places)])
    return line, number * _count(shape, places) + place


def _count(shape: torch.Size, places: tuple[int, ...]) -> int:
    return math.prod(shape[dim] for dim in places)


def _by_target(points: Points, mass: Tensor, targets: int) -> Tensor:
    return mass.new_zeros(targets).index_add_(0, points.trace, mass)
