"""Fixations: the pixels that excited a neuron, and which of them to keep.

N images (or targets), P points, H x W input pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.points import Points, merged, ravel, unravel


@dataclass(frozen=True, slots=True, eq=False)  # tensors have no single ==
class Fixations:
    """Pixels that caused a batch of decisions; (0, 0) is the top-left input pixel.

    Points are sorted by image, then row, then column, and unique: a pixel is listed once per image.
    """

    image: Tensor
    """int64 (P,): which of the N explained targets the point belongs to; position in `target`."""
    row: Tensor
    """int64 (P,): 0 <= row < height."""
    col: Tensor
    """int64 (P,): 0 <= col < width."""
    mass: Tensor
    """float32 (P,): share of the evidence, >= 0; sums to 1 over each image that has points."""
    height: int
    """Input height in pixels."""
    width: int
    """Input width in pixels."""
    target: Tensor
    """int64 (N,): class (or neuron) explained; -1 where nothing was asked for, and then there are no points."""
    margin: float = 0.0
    """Input pixels that one start cell reaches beyond its centre (half the stride of the class map); 0 if none."""

    def __len__(self) -> int:
        """Return the number of explained targets, N."""
        return self.target.numel()


@dataclass(frozen=True, slots=True, eq=False)
class LayerPoints:
    """Neurons of an inner layer that caused a batch of decisions, sorted by target."""

    image: Tensor
    """int64 (P,): which of the N explained targets the point belongs to; position in `target`."""
    place: Tensor
    """int64 (P, D): the neuron's coordinates in the layer's output for one image, (channel, row, column) of a map."""
    mass: Tensor
    """float32 (P,): share of the evidence; sums to at most 1 over a target."""
    row: Tensor
    """float32 (P,): row of the input pixel at the middle of the neuron's cell of the map; NaN if it is no map."""
    col: Tensor
    """float32 (P,): its column."""
    target: Tensor
    """int64 (N,): what was explained."""


def join_targets(fixations: Fixations, group: Tensor) -> Fixations:
    """Return the fixations of groups of targets, such as of all words of a caption: a point's mass is their mean.

    `group` is int64 (N,), 0 to G - 1: which group each target belongs to, -1 for none; all of a group lie in one
    image. The result has G targets, numbered by group; its masses sum to 1 where a target of the group has points.

    Raises InputError for another length.
    """
    if group.shape != fixations.target.shape:
        raise InputError(f"group is {tuple(group.shape)}; one group per target is ({len(fixations)},)")
    own = group.to(fixations.image.device)[fixations.image]
    count = int(group.max().clamp(min=-1)) + 1 if len(group) else 0
    shape = (fixations.height, fixations.width)
    points = Points(ravel((fixations.row, fixations.col), shape), own, fixations.mass)
    joined = merged([points.where(own >= 0)], fixations.height * fixations.width)
    row, col = unravel(joined.index, shape)
    total = _per_image(joined.mass, joined.trace, count)
    return replace(
        fixations,
        image=joined.trace,
        row=row,
        col=col,
        mass=joined.mass / total[joined.trace],
        target=torch.arange(count, device=own.device),
    )


def drop_outliers(
    fixations: Fixations, *, radius: float = 0.10, share: float = 0.05, by_mass: bool = False
) -> Fixations:
    """Return the fixations without the stray points: those with too few other points around them.

    A point goes when the circle around it holds less than `share` (in [0, 1]) of its image's points. The circle's
    radius is `radius` (>= 0) times the image's diagonal; what lies on the circle is inside, and the point itself is
    counted. The masses that stay are scaled to sum to 1 again. Where everything would go, all points stay: then
    the evidence is spread so evenly that no point is more of a stray than another.

    With `by_mass` a point counts as much as it weighs, and the circle must hold `share` of the image's mass; for
    points of equal mass that is the same. The default counts heads as the paper does (CNN Fixations, III: fewer than
    5 % of all points), because few and unequal points, which a walk from a class map leaves, lose their faint outer
    ones by mass, and with them half of the object.

    Time is proportional to P times the circle's height, memory to N x H x W; no pairs of points are formed.

    Raises InputError for a negative `radius` and a `share` outside [0, 1].
    """
    if not radius >= 0:
        raise InputError(f"radius must be 0 or more (a share of the image's diagonal), not {radius}")
    if not 0 <= share <= 1:
        raise InputError(f"share must lie in [0, 1], not {share}")
    count, image, mass = len(fixations), fixations.image, fixations.mass.double()
    weight = mass if by_mass else torch.ones_like(mass)
    # Counts and equal masses add up exactly in float64, so only the product with `share` can be off by a rounding.
    enough = _per_image(weight, image, count) * (share * (1 - 1e-12))
    keep = _around(fixations, weight, radius) >= enough[image]
    keep |= (_per_image(mass * keep, image, count) <= 0)[image]
    chosen = keep.nonzero().squeeze(1)
    image, mass = image[chosen], mass[chosen]
    total = _per_image(mass, image, count)
    return replace(
        fixations,
        image=image,
        row=fixations.row[chosen],
        col=fixations.col[chosen],
        mass=(mass / torch.where(total > 0, total, 1.0)[image]).to(fixations.mass.dtype),
    )


def _per_image(values: Tensor, image: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add_(0, image, values)


def _around(fixations: Fixations, weight: Tensor, radius: float) -> Tensor:
    """Return float64 (P,): the sum of `weight`, float64 (P,), within the circle around each point.

    The circle is cut into rows; along each row the weight is a difference of two prefix sums.
    """
    height, width = fixations.height, fixations.width
    reach_squared = min(radius, 1.0) ** 2 * (height**2 + width**2) * (1 + 1e-12)
    reach = min(math.isqrt(int(reach_squared)), height - 1)
    # `reach` empty rows above, between and below the images: a circle that leaves its image finds nothing there.
    lines = len(fixations) * (height + reach) + reach
    line = fixations.image * (height + reach) + fixations.row + reach
    before = weight.new_zeros(lines, width + 1)
    before.view(-1).index_add_(0, line * (width + 1) + fixations.col + 1, weight)
    torch.cumsum(before, dim=1, out=before)
    before = before.view(-1)
    found = torch.zeros_like(weight)
    for up in range(reach + 1):
        half = math.isqrt(int(reach_squared - up * up))
        start = (fixations.col - half).clamp_(min=0)
        end = (fixations.col + half + 1).clamp_(max=width)
        for offset in {up, -up}:
            at = (line + offset) * (width + 1)
            found += before[at + end] - before[at + start]
    return found
