"""Comparison: where the evidence of one class lies, beside that of another.

N targets, H x W input pixels. Row i compares target i of `a` with target i of `b`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.evidence.fixations import Fixations
from fixcore.evidence.saliency import blurred_density


def evidence_overlap(a: Fixations, b: Fixations, *, sigma: float | None = None) -> Tensor:
    """Return how far two classes' evidence lies in the same place, float32 (N,) in [0, 1].

    The sum over pixels of the smaller of the two saliency densities, each scaled to sum to 1: 1 for the same
    evidence, near 0 for evidence several `sigma` apart. Row i compares target i of `a` with target i of `b`; NaN where
    either has no points.

    Raises InputError where `a` and `b` differ in number of targets or image size, and for a `sigma` not above 0.
    """
    _check_alike(a, b)
    first, second = (blurred_density(one, sigma) for one in (a, b))
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


def evidence_halves(a: Fixations, b: Fixations) -> Tensor:
    """Return which pixels lie on the side of the first class's evidence, bool (N, H, W).

    True where a pixel is nearer to the centre of mass of `a` than to that of `b`: the line half-way between the two
    parts the image. Pixels as near to the one as to the other belong to `b`, and so do all where either has no points.
    What a network says of each half alone tells two objects from two readings of one.

    Raises InputError where `a` and `b` differ in number of targets or image size.
    """
    _check_alike(a, b)
    first, second = _centre(a), _centre(b)
    way, middle = second - first, (first + second) / 2
    row, col = (torch.arange(length, dtype=way.dtype, device=way.device) for length in (a.height, a.width))
    down = (row - middle[:, :1]) * way[:, :1]
    right = (col - middle[:, 1:]) * way[:, 1:]
    return down[:, :, None] + right[:, None, :] < 0


def _centre(fixations: Fixations) -> Tensor:
    """Return the mean place of each target's mass, float64 (N, 2); NaN for a target without points."""
    mass = fixations.mass.double()
    weighted = torch.stack([mass * fixations.row, mass * fixations.col, mass], 1)
    sums = mass.new_zeros(len(fixations), 3).index_add_(0, fixations.image, weighted)
    return sums[:, :2] / sums[:, 2:]


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
