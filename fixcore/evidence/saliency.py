"""Saliency: fixations blurred into maps and masks.

N images (or targets), P points, H x W input pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.evidence.fixations import Fixations
from fixcore.evidence.guided_filter import guided_filter

SIGMA = 20 / 625
"""Width of the Gaussian as a share of the image's diagonal: the released code's 20 pixels on a 500 x 375 photograph."""

THRESHOLD = 0.4
"""Share of a map's maximum from which a pixel belongs to the mask. Of 0.3 to 0.8 it gave the best F (beta^2 = 0.3)
against the 200 object masks of ECSSD at hand for a fire-module network, and within 0.01 of it for an
inverted-residual one."""


_LEAST_ACTIVITY = 1e-3
"""Of its mean, added to activity: where the network responds to nothing, a point has its surroundings all the same."""


def saliency_maps(
    fixations: Fixations, *, sigma: float | None = None, activity: Tensor | None = None, pictures: Tensor | None = None
) -> Tensor:
    """Return how much evidence lies around each pixel, float32 (N, H, W), scaled so that each map's maximum is 1.

    The density of the points under a Gaussian of `sigma` input pixels (> 0), not cut off at any distance; a point
    counts the root of its mass: masses span orders of magnitude, and their density shows little but the largest.
    Default: `SIGMA` of the image's diagonal; a walk that began at a class map is blurred by one of its cells besides
    (the variances add), since its points stand for cells. What would fall outside the image is lost, not folded back.
    All points count; drop strays first (`drop_outliers`) if they must not. A target without points has a map of zeros.

    With `activity`, float (N, H, W), >= 0, any scale, one per target (`activity_maps`), each point shares what it
    counts among the pixels around it in proportion to that, so that the map follows the object. No point gains or loses
    by it: where a network responds most says nothing about a class.

    With `pictures`, float or uint8 (N, C, H, W), any scale, one per target, the map is then drawn along the picture's
    edges (`guided_filter`), to show the object rather than what the network answers to: masks of objects are better by
    it, and what is taken from the image by such a map hurts the network a little less.

    Source: CNN Fixations, III-E and IV-C; the code's fixed 20 pixels are made proportional to the image. The cell, the
    root, the activity and the edges are ours; `python -m benchmarks.saliency_rules` counts what the last three are
    worth.

    Raises InputError for a `sigma` that is not positive, and for activity or pictures of another shape.
    """
    if sigma is None:
        sigma = math.hypot(SIGMA * math.hypot(fixations.height, fixations.width), 2 * fixations.margin)
    counted = replace(fixations, mass=fixations.mass.clamp(min=0).sqrt())
    spread = blurred_density(counted, sigma) if activity is None else _shared_around(counted, sigma, activity)
    peak = spread.amax((1, 2), keepdim=True)
    maps = spread / torch.where(peak > 0, peak, 1.0)
    return maps if pictures is None else guided_filter(maps, pictures)


def saliency_masks(
    fixations: Fixations,
    *,
    threshold: float = THRESHOLD,
    sigma: float | None = None,
    activity: Tensor | None = None,
    pictures: Tensor | None = None,
) -> Tensor:
    """Return the pixels around which the evidence lies, bool (N, H, W).

    True where the saliency map is at least `threshold` (in (0, 1]: a share of its maximum). A target without points
    has an empty mask.

    Source: CNN Fixations, IV-C; Gandikota and Mishra, 4.

    Raises InputError for a `threshold` outside (0, 1], and as `saliency_maps`.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"threshold must lie in (0, 1], not {threshold}")
    return saliency_maps(fixations, sigma=sigma, activity=activity, pictures=pictures) >= threshold


def _shared_around(fixations: Fixations, sigma: float, activity: Tensor) -> Tensor:
    """Share each point's mass among the pixels around it in proportion to Gaussian times activity, (N, H, W)."""
    expected = (len(fixations), fixations.height, fixations.width)
    if activity.shape != expected:
        raise InputError(f"activity is {tuple(activity.shape)}; for these fixations it is {expected}")
    responds = mean_one(activity) + _LEAST_ACTIVITY
    around = blurred(responds, sigma)[fixations.image, fixations.row, fixations.col]
    return blurred_density(replace(fixations, mass=fixations.mass / around), sigma) * responds


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


def blurred_density(fixations: Fixations, sigma: float | None) -> Tensor:
    """Return the density under the Gaussian of `sigma` > 0 pixels; None: `SIGMA` of the image's diagonal."""
    if sigma is None:
        sigma = SIGMA * math.hypot(fixations.height, fixations.width)
    if not sigma > 0:
        raise InputError(f"sigma must be above 0 pixels, not {sigma}")
    return density(fixations, sigma)


def mean_one(maps: Tensor) -> Tensor:
    """Return maps (N, H, W), >= 0, each scaled to a mean of 1; ones for a map of zeros."""
    mean = maps.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, maps / mean, 1.0)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Return maps (N, H, W) under a Gaussian of `sigma` > 0 pixels, 1 at its middle; what leaves the map is lost."""
    # As products with two small matrices the blur has no edge cases and runs at the speed of a matrix product.
    return _gaussian(maps.shape[1], sigma, maps) @ maps @ _gaussian(maps.shape[2], sigma, maps)


def _gaussian(length: int, sigma: float, like: Tensor) -> Tensor:
    """Return the (length, length) matrix of weights between positions, symmetric, 1 on the diagonal."""
    place = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.exp(((place[:, None] - place) / sigma).square() * -0.5)
