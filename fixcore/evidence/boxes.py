"""Boxes: where the evidence lies, as rectangles.

N images (or targets), H x W input pixels. Boxes are float32 (N, 4): x0, y0, x1, y1 in input pixels, measured at the
pixels' edges, so x1 and y1 are exclusive and a box around one pixel is one pixel wide.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.evidence.fixations import Fixations
from fixcore.evidence.regions import region_boxes
from fixcore.evidence.saliency import density

_CHUNK = 1 << 23
"""Values that `max_sum_boxes` holds at once, about 64 MB in float64."""


def evidence_boxes(fixations: Fixations) -> Tensor:
    """Return the box around each target's evidence, float32 (N, 4) xyxy in input pixels, within the image.

    It is the `moment_boxes` of where the fixations lie: each counts once, whatever its mass, as the paper counts them,
    blurred by one cell of the class map where the walk began at one (a walk from a class map arrives at the middle of
    each cell's receptive field). Without strays there is nothing to drop: a lone point moves the box by its share.
    A target without points has a row of NaN; the box around a single point is one pixel wide.

    Source: in place of CNN Fixations, IV-A, the tightest box around what is left without outliers, which hits about
    three of a hundred objects fewer (`fixaudit evaluate tune`).
    """
    once = replace(fixations, mass=torch.ones_like(fixations.mass))
    return moment_boxes(density(once, 2 * fixations.margin))


def moment_boxes(maps: Tensor) -> Tensor:
    """Return per map the box whose evenly spread evidence would have the same mean and variance, float32 (N, 4) xyxy.

    Along each axis it reaches sqrt(3) standard deviations to both sides of the mean, and is cut at the map's edges;
    there is nothing to tune. `maps` is (N, H, W), >= 0, any scale. A map whose sum is 0 or not finite has a row of NaN.

    Raises InputError for maps that are not three-dimensional or empty.
    """
    _check_maps(maps)
    total = maps.sum((1, 2), dtype=torch.float64)
    usable = (total > 0) & total.isfinite()
    low, high = [], []
    for dim in (2, 1):  # x, then y
        along = maps.sum(3 - dim, dtype=torch.float64) / torch.where(usable, total, 1.0)[:, None]
        extent = along.shape[1]
        edge = torch.arange(extent, dtype=torch.float64, device=maps.device)
        mean = (along * (edge + 0.5)).sum(1)
        variance = (along * (edge + 0.5 - mean[:, None]).square()).sum(1) + 1 / 12  # a pixel is spread over itself
        reach = (3 * variance).sqrt()
        low.append((mean - reach).clamp(min=0))
        high.append((mean + reach).clamp(max=extent))
    boxes = torch.stack([*low, *high], 1).float()
    return torch.where(usable[:, None], boxes, torch.nan)


def threshold_boxes(maps: Tensor, share: float) -> Tensor:
    """Return per map the box around the largest region of values that are at least `share` of the maximum.

    float32 (N, 4) xyxy. `maps` is (N, H, W), >= 0, any scale; `share` lies in (0, 1]. Cells that touch, also at a
    corner, are one region; of equal ones the one that comes first counts. A map whose maximum is 0 or not finite has a
    row of NaN. Source: Zhou et al., Learning Deep Features for Discriminative Localization, 3.2 (with 0.2).

    Raises InputError for maps that are not three-dimensional or empty, and a share outside (0, 1].
    """
    return threshold_region_boxes(maps, share)[:, 0]


def threshold_region_boxes(maps: Tensor, share: float) -> Tensor:
    """Return per map the boxes around all regions of such values, float32 (N, R, 4), the largest region's first.

    As `threshold_boxes`; rows of NaN where a map has fewer regions than another.
    """
    _check_maps(maps)
    if not 0 < share <= 1:
        raise InputError(f"share must lie in (0, 1], not {share}")
    peak = maps.amax((1, 2), keepdim=True)
    usable = (peak > 0) & peak.isfinite()
    return region_boxes((maps >= share * peak) & usable)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return how far each box of `a` coincides with its partner in `b`: intersection over union, in [0, 1].

    `a` and `b` are (..., 4) xyxy with exclusive x1 and y1, and broadcast; the result has their shape without the last
    dimension. NaN where either box is NaN (no evidence), so that a comparison with a threshold counts as a miss; 0
    where both are empty.
    """
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    union = _areas(a) + _areas(b) - shared
    # `union > 0` is false for NaN too: NaN - NaN in place of 0 keeps it.
    return torch.where(union > 0, shared / union, union - union)


def max_sum_boxes(maps: Tensor, penalty: float) -> Tensor:
    """Return per map the box that holds the most evidence on the least area, float32 (N, 4) xyxy.

    Of all boxes of whole pixels it is the one with the largest (share of the map's sum) - `penalty` * (share of the
    map's area); found exactly. `maps` is (N, H, W), >= 0, any scale; `penalty` > 0: a larger one makes smaller boxes,
    and below 1 the whole map already scores above 0. Ties go to the highest top edge, then the highest bottom edge,
    then the leftmost right edge, then the leftmost left edge, up to float64 rounding. A map whose sum is 0 or not
    finite has a row of NaN.

    Time is H * H * W per map, all in float64: for each pair of rows the best run of columns (Kadane's rule, as the
    largest rise of a prefix sum).

    Raises InputError for maps that are not three-dimensional or empty, and for a penalty that is not positive.
    """
    _check_maps(maps)
    if not penalty > 0:
        raise InputError(f"penalty must be above 0, not {penalty}")
    _, height, width = maps.shape
    step = max(1, _CHUNK // (height * (width + 1)))
    starts = range(0, max(len(maps), 1), step)
    return torch.cat([_max_sum_boxes(maps[start : start + step], penalty) for start in starts])


def _max_sum_boxes(maps: Tensor, penalty: float) -> Tensor:
    count, height, width = maps.shape
    total = maps.sum((1, 2), dtype=torch.float64)
    usable = (total > 0) & total.isfinite()
    gain = maps.double() / torch.where(usable, total, 1.0)[:, None, None] - penalty / (height * width)
    gain = torch.where(usable[:, None, None], gain, 0.0)
    integral = gain.new_zeros(count, height + 1, width + 1)
    integral[:, 1:, 1:] = gain.cumsum(1).cumsum(2)
    best = gain.new_full((count,), -torch.inf)
    place = torch.zeros(count, dtype=torch.int64, device=maps.device)  # position in (top, bottom, right edge)
    for top in range(height):
        prefix = integral[:, top + 1 :] - integral[:, top : top + 1]  # (N, bottom edges, W + 1): sums left of an edge
        rise = prefix[..., 1:] - prefix[..., :-1].cummin(2).values
        found, where = rise.flatten(1).max(1)
        better = found > best
        best = torch.where(better, found, best)
        place = torch.where(better, where + (top * height + top) * width, place)
    right = place % width + 1
    bottom = place // width % height + 1
    top_edge = place // (width * height)
    each = torch.arange(count, device=maps.device)
    prefix = integral[each, bottom] - integral[each, top_edge]  # (N, W + 1)
    beyond = torch.arange(width + 1, device=maps.device) >= right[:, None]
    left = prefix.masked_fill(beyond, torch.inf).argmin(1)
    boxes = torch.stack([left, top_edge, right, bottom], 1).float()
    return torch.where(usable[:, None], boxes, torch.nan)


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise InputError(f"maps must be (N, H, W) with H and W above 0, not {tuple(maps.shape)}")


def _areas(boxes: Tensor) -> Tensor:
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]
