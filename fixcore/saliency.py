"""Saliency: fixations blurred into maps, masks, and how far two of them coincide.

N images (or targets), P points, H x W input pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.fixations import Fixations

SIGMA = 20 / 625
"""Width of the Gaussian as a share of the image's diagonal: the released code's 20 pixels on a 500 x 375 photograph."""

THRESHOLD = 0.4
"""Share of a map's maximum from which a pixel belongs to the mask. Of 0.3 to 0.8 it gave the best F (beta^2 = 0.3)
against the 200 object masks of ECSSD at hand for a fire-module network; an inverted-residual one would have more."""


_LEAST_ACTIVITY = 1e-3
"""Of its mean, added to activity: where the network responds to nothing, a point has its surroundings all the same."""


def saliency_maps(fixations: Fixations, *, sigma: float | None = None, activity: Tensor | None = None) -> Tensor:
    """Return how much evidence lies around each pixel, float32 (N, H, W), scaled so that each map's maximum is 1.

    The density of the points under a Gaussian of `sigma` input pixels (> 0), not cut off at any distance; a point
    counts the root of its mass: masses span orders of magnitude, and their density shows little but the largest.
    Default: `SIGMA` of the image's diagonal; a walk that began at a class map is blurred by one of its cells besides
    (the variances add), since its points stand for cells. What would fall outside the image is lost, not folded back.
    All points count; drop strays first (`drop_outliers`) if they must not. A target without points has a map of zeros.

    With `activity`, float (N, H, W), >= 0, any scale, one per target (`activity_maps`), each point shares what it
    counts among the pixels around it in proportion to that, so that the map follows the object. No point gains or loses
    by it: where a network responds most says nothing about a class.

    Source: CNN Fixations, III-E and IV-C; the code's fixed 20 pixels are made proportional to the image. The
    cell, the root and the activity are ours; `python -m benchmarks.saliency_rules` counts what the last two are worth.

    Raises InputError for a `sigma` that is not positive, and activity of another shape.
    """
    if sigma is None:
        sigma = math.hypot(SIGMA * math.hypot(fixations.height, fixations.width), 2 * fixations.margin)
    counted = replace(fixations, mass=fixations.mass.clamp(min=0).sqrt())
    spread = _density(counted, sigma) if activity is None else _shared_around(counted, sigma, activity)
    peak = spread.amax((1, 2), keepdim=True)
    return spread / torch.where(peak > 0, peak, 1.0)


def saliency_masks(
    fixations: Fixations,
    *,
    threshold: float = THRESHOLD,
    sigma: float | None = None,
    activity: Tensor | None = None,
) -> Tensor:
    """Return the pixels around which the evidence lies, bool (N, H, W).

    True where the saliency map is at least `threshold` (in (0, 1]: a share of its maximum). A target without points
    has an empty mask.

    Source: CNN Fixations, IV-C; Gandikota and Mishra, 4.

    Raises InputError for a `threshold` outside (0, 1], and as `saliency_maps`.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must lie in (0, 1], not {threshold}")
    return saliency_maps(fixations, sigma=sigma, activity=activity) >= threshold


def evidence_overlap(a: Fixations, b: Fixations, *, sigma: float | None = None) -> Tensor:
    """Return how far two classes' evidence lies in the same place, float32 (N,) in [0, 1].

    The sum over pixels of the smaller of the two saliency densities, each scaled to sum to 1: 1 for the same
    evidence, near 0 for evidence several `sigma` apart. Row i compares target i of `a` with target i of `b`; NaN where
    either has no points.

    Raises InputError where `a` and `b` differ in number of targets or image size, and for a `sigma` not above 0.
    """
    _check_alike(a, b)
    first, second = (_density(one, sigma) for one in (a, b))
    first_total, second_total = first.sum((1, 2)), second.sum((1, 2))
    # 0 / 0 of a target without points is the NaN that is promised.
    first, second = first / first_total[:, None, None], second / second_total[:, None, None]
    return torch.minimum(first, second).sum((1, 2)).clamp(max=1)


def evidence_distance(a: Fixations, b: Fixations) -> Tensor:
    """Return how far apart two classes' evidence lies, in units of its own spread, float32 (N,), >= 0.

    The distance of the two middles, by the mean distance of the mass from its own middle. The middle is the median of
    the mass on each axis, which strays do not move. 0 for the same evidence; of two clouds of one shape about 1.6 where
    they become two peaks (for Gaussians, two standard deviations). Half a cell of the last map is added to the spread:
    finer than that, evidence has no place. Row i compares target i of `a` with target i of `b`; NaN where either has no
    points. Unlike `evidence_overlap` it needs no blur, whose width decides where maps are coarse.

    Raises InputError where `a` and `b` differ in number of targets or image size.
    """
    _check_alike(a, b)
    (first, first_spread), (second, second_spread) = _middle_and_spread(a), _middle_and_spread(b)
    spread = (first_spread + second_spread + a.margin + b.margin) / 2
    apart: Tensor = (first - second).square().sum(1).sqrt()
    return apart / spread.clamp(min=0.5)


def _middle_and_spread(fixations: Fixations) -> tuple[Tensor, Tensor]:
    """Return the median place of each target's mass, (N, 2), and the mean distance of the mass from it, (N,)."""
    count = len(fixations)
    mass = fixations.mass.double()
    total = mass.new_zeros(count).index_add_(0, fixations.image, mass)
    half = (total / 2)[fixations.image]
    middles = []
    for place in (fixations.row, fixations.col):
        # By target, then by place: sums within a target are differences of one running sum.
        order = torch.argsort(fixations.image * (max(fixations.height, fixations.width) + 1) + place, stable=True)
        image = fixations.image[order]
        running = mass[order].cumsum(0)
        before = torch.cat([total.new_zeros(1), total.cumsum(0)])[image]
        reached = running - before >= half[order] * (1 - 1e-6)  # float32 masses
        places = torch.where(reached, place[order].double(), torch.inf)
        middles.append(mass.new_full((count,), torch.inf).scatter_reduce(0, image, places, "amin"))
    middle = torch.stack(middles, 1)
    off = torch.stack([fixations.row, fixations.col], 1).double() - middle[fixations.image]
    reach = mass * torch.linalg.vector_norm(off, dim=1)
    spread = mass.new_zeros(count).index_add_(0, fixations.image, reach) / total
    return torch.where((total > 0)[:, None], middle, torch.nan).float(), spread.float()


def _check_alike(a: Fixations, b: Fixations) -> None:
    shapes = [(len(one), one.height, one.width) for one in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError(f"fixations to compare must agree in targets, height and width: {shapes[0]} and {shapes[1]}")


def _shared_around(fixations: Fixations, sigma: float, activity: Tensor) -> Tensor:
    """Share each point's mass among the pixels around it in proportion to Gaussian times activity, (N, H, W)."""
    expected = (len(fixations), fixations.height, fixations.width)
    if activity.shape != expected:
        raise InputError(f"activity is {tuple(activity.shape)}; for these fixations it is {expected}")
    responds = mean_one(activity) + _LEAST_ACTIVITY
    around = blurred(responds, sigma)[fixations.image, fixations.row, fixations.col]
    return _density(replace(fixations, mass=fixations.mass / around), sigma) * responds


def density(fixations: Fixations, sigma: float) -> Tensor:
    """Return the mass around each pixel, float32 (N, H, W), on no particular scale.

    Blurred by a Gaussian of `sigma` input pixels, which is not cut off; 0 leaves each point's mass on its pixel.
    Raises InputError for a negative `sigma`.
    """
    height, width = fixations.height, fixations.width
    if not sigma >= 0:
        raise InputError(f"sigma must be 0 pixels or more, not {sigma}")
    mass = fixations.mass.new_zeros(len(fixations) * height * width)
    place = (fixations.image * height + fixations.row) * width + fixations.col
    mass.index_add_(0, place, fixations.mass)
    mass = mass.view(len(fixations), height, width)
    return mass if sigma == 0 else blurred(mass, sigma)


def mean_one(maps: Tensor) -> Tensor:
    """Return maps (N, H, W), >= 0, each scaled to a mean of 1; ones for a map of zeros."""
    mean = maps.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, maps / mean, 1.0)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (N, H, W) under a Gaussian of `sigma` > 0 pixels, 1 at its middle; what leaves the map is lost."""
    # As products with two small matrices the blur has no edge cases and runs at the speed of a matrix product.
    return _gaussian(maps.shape[1], sigma, maps) @ maps @ _gaussian(maps.shape[2], sigma, maps)


def _density(fixations: Fixations, sigma: float | None) -> Tensor:
    if sigma is None:
        sigma = SIGMA * math.hypot(fixations.height, fixations.width)
    if not sigma > 0:
        raise InputError(f"sigma must be above 0 pixels, not {sigma}")
    return density(fixations, sigma)


def _gaussian(length: int, sigma: float, like: Tensor) -> Tensor:
    """Return the (length, length) matrix of weights between positions, symmetric, 1 on the diagonal."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.exp(((place[:, None] - place) / sigma).square() * -0.5)
