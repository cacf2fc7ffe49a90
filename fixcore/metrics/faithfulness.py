"""Whether the network needs what the map shows.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fixcore.errors import InputError
from fixcore.network.graph import Graph
from fixcore.start import scores_of


@dataclass(frozen=True, slots=True, eq=False)
class Faithfulness:
    """Areas under the curves of the class's probability, float32 (N,) each, in [0, 1]."""

    insertion: Tensor
    """While the most important pixels appear first in a blurred image; high is good."""
    deletion: Tensor
    """While the most important pixels vanish first; low is good."""


def insertion_and_deletion(
    graph: Graph, images: Tensor, target: Tensor, maps: Tensor, *, steps: int = 28, grid: int = 28
) -> Faithfulness:
    """Return how fast the class's probability rises and falls with the pixels that a map holds important.

    Pixels go in `steps` equal parts, in the order of the map's mean over the cells of a `grid` x `grid` raster, ties
    to the first: many maps have no finer order than that. Insertion begins with the image blurred by a Gaussian of 5
    pixels out of 224, deletion ends with the mean colour (0). The area is the trapezoids'. Source: Petsiuk et al.,
    RISE, 4.2, which orders single pixels and takes as many as a row has at a time.

    Raises InputError for maps of another size, and for fewer than one step or cell; TargetError for targets that are
    not one class per image.
    """
    if maps.shape != (len(images), *images.shape[2:]) or steps < 1 or grid < 1:
        raise InputError(f"maps are {tuple(maps.shape)} for images {tuple(images.shape)}; steps {steps}, grid {grid}")
    height, width = images.shape[2:]
    coarse = functional.adaptive_avg_pool2d(maps[:, None].float(), (min(grid, height), min(grid, width)))[:, 0]
    cells = coarse[0].numel()
    order = coarse.flatten(1).argsort(stable=True, dim=1, descending=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(cells, device=order.device).expand_as(order))
    rows = torch.arange(height, device=images.device) * coarse.shape[1] // height
    cols = torch.arange(width, device=images.device) * coarse.shape[2] // width
    by_pixel = rank.view_as(coarse)[:, rows[:, None], cols]
    faint = _blurred(images)
    inserted, deleted = [], []
    for step in range(steps + 1):
        shown = (by_pixel < round(cells * step / steps))[:, None]
        inserted.append(_probability(graph, torch.where(shown, images, faint), target))
        deleted.append(_probability(graph, images.masked_fill(shown, 0.0), target))
    return Faithfulness(_area(inserted), _area(deleted))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each pair of maps (N, H, W), float32 (N,) in [-1, 1]; ties share ranks.

    NaN where a map has one value everywhere. Source: Grad-CAM, 5.3, where `b` is the occlusion map.
    """
    if a.shape != b.shape:
        raise InputError(f"maps to compare differ: {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = (_centred_ranks(one.flatten(1)) for one in (a, b))
    size = first.square().sum(1).sqrt() * second.square().sum(1).sqrt()
    return ((first * second).sum(1) / size).float()


def _centred_ranks(values: Tensor) -> Tensor:
    ranks = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    for row, value in enumerate(values):
        _, which, count = value.unique(return_inverse=True, return_counts=True)
        ranks[row] = (count.cumsum(0).double() - (count + 1) / 2)[which]
    return ranks - ranks.mean(1, keepdim=True)


def _blurred(images: Tensor) -> Tensor:
    sigma = 5 * min(images.shape[2:]) / 224
    reach = min(math.ceil(3 * sigma), min(images.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma).square())
    kernel = (kernel / kernel.sum()).to(images.dtype).expand(images.shape[1], 1, -1)
    wide = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    wide = functional.conv2d(wide, kernel[:, :, :, None], groups=images.shape[1])
    blurred: Tensor = functional.conv2d(wide, kernel[:, :, None, :], groups=images.shape[1])
    return blurred


def _probability(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    return scores_of(graph.classify(images).float().softmax(1), target)


def _area(values: list[Tensor]) -> Tensor:
    curve = torch.stack(values, 1)
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2
