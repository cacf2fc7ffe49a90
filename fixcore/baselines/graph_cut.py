"""The object that a map points at, cut out of the picture by its colours.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional

from fixcore.errors import InputError
from fixcore.evidence.regions import largest_regions

_RASTER = 112
"""Cells of a side on which the cut is sought: half as many take a third of the time."""
_SURE, _UNLIKELY = 0.95, 0.30
"""Quantiles of the map from which, and up to which, colours are learned (Simonyan et al.)."""
_COLOURS = 5
"""Gaussians of each colour model (GrabCut)."""
_LEAST_VARIANCE = 1e-4
"""Of a Gaussian, so that pictures of few colours have likelihoods too: a hundredth of the range, squared."""
_BORDER = 50.0
"""Cost of parting two neighbours of one colour (GrabCut)."""
_UNIT = 100
"""Integer capacity of a cost of 1."""
_DECIDED = 8 * _BORDER
"""More than all borders of a cell together: what costs so much more is decided alone."""
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def graph_cut_masks(maps: Tensor, pictures: Tensor) -> Tensor:
    """Return the object that each map points at, bool (N, H, W), following the borders in the picture.

    `maps` is (N, H, W), >= 0, any scale; `pictures` float (N, C, H, W), colours in [0, 1]. Two mixtures of Gaussians
    learn the colours where the map is largest (upper 5 % of the pixels) and smallest (lower 30 %). Those are object
    and ground; every other cell of a raster of at most 112 x 112 goes to one or the other at the least cost, exactly:
    minus the log-likelihood of its colour, and for each border between neighbours the more, the more alike they are. Of
    what is cut out the largest region is kept. A map that points nowhere has an empty mask: one value everywhere, or
    values that are not finite.

    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 3.2; seeds and costs are those of Boykov
    and Jolly, Interactive Graph Cuts, weighted as in Rother et al., GrabCut, 2. On the CPU, one image after the other.

    Raises InputError where maps and pictures disagree.
    """
    if maps.dim() != 3 or pictures.dim() != 4 or maps.shape != (len(pictures), *pictures.shape[2:]):
        raise InputError(
            f"maps are (N, H, W) and pictures (N, C, H, W), not {tuple(maps.shape)} and {tuple(pictures.shape)}"
        )
    _, height, width = maps.shape
    extent = (min(_RASTER, height), min(_RASTER, width))
    coarse = functional.adaptive_avg_pool2d(maps[:, None].float(), extent)[:, 0].cpu().numpy()
    colours = functional.adaptive_avg_pool2d(pictures.float(), extent).permute(0, 2, 3, 1).cpu().numpy()
    cut = [_cut(one, own) for one, own in zip(coarse, colours, strict=True)]
    regions = largest_regions(torch.from_numpy(np.array(cut, dtype=bool).reshape(len(maps), *extent)))
    enlarged = functional.interpolate(regions[:, None].float(), (height, width), mode="bilinear", align_corners=False)
    return (enlarged[:, 0] >= 0.5).to(maps.device)


def _cut(evidence: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.bool_]:
    if not np.isfinite(evidence).all() or evidence.max() == evidence.min():
        return np.zeros(evidence.shape, dtype=bool)
    low, high = np.quantile(evidence, (_UNLIKELY, _SURE))
    ground = (evidence <= low) & (evidence < evidence.max())  # quantiles may be one: of many zeros, of many ones
    object_ = (evidence >= high) & ~ground
    flat = colours.reshape(-1, colours.shape[2])
    inside, outside = (_colour_cost(flat, flat[seed.ravel()]).reshape(evidence.shape) for seed in (object_, ground))
    inside[ground] = outside[ground] + _DECIDED
    outside[object_] = inside[object_] + _DECIDED
    return _cheapest(inside, outside, *_borders(colours))


def _colour_cost(colours: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float64]:
    """Minus the log-likelihood of each colour under what was learned of the known ones."""
    parts = min(_COLOURS, len(np.unique(known, axis=0)))
    known = known if len(known) > 1 else known.repeat(2, axis=0)  # scikit-learn learns from two samples or more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what was learned until then serves as well
        model = GaussianMixture(parts, reg_covar=_LEAST_VARIANCE, init_params="k-means++", random_state=0).fit(known)
    cost: NDArray[np.float64] = -model.score_samples(colours)
    return cost


def _borders(colours: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of neighbouring cells, and what it costs to part them: less where the colour changes."""
    height, width, _ = colours.shape
    cell = np.arange(height * width).reshape(height, width)
    first, second, change, distance = [], [], [], []
    for down, right in _NEIGHBOURS:
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width - max(0, -right)))
        first.append(cell[here].ravel())
        second.append(cell[there].ravel())
        change.append(np.square(colours[here] - colours[there]).sum(2, dtype=np.float64).ravel())
        distance.append(np.full(first[-1].shape, np.hypot(down, right)))
    changes = np.concatenate(change)
    mean = changes.mean() if len(changes) else 0.0
    alike = np.exp(-changes / (2 * mean)) if mean > 0 else np.ones_like(changes)
    return np.concatenate(first), np.concatenate(second), _BORDER * alike / np.concatenate(distance)


def _cheapest(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    border: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which cells (H, W) lie inside where the sum of the cells' costs and of the borders' is least.

    A minimum cut: what it costs to put a cell inside is the capacity from it to the sink, outside from the source.
    """
    cells = inside.size
    source, sink = cells, cells + 1
    each = np.arange(cells)
    least = np.minimum(inside, outside).ravel()
    begins = [np.full(cells, source), each, first, second]
    ends = [each, np.full(cells, sink), second, first]
    excess = [np.minimum(cost.ravel() - least, _DECIDED) for cost in (outside, inside)]
    capacity = np.concatenate([*excess, border, border])
    graph = sparse.csr_array(
        (np.round(capacity * _UNIT).astype(np.int32), (np.concatenate(begins), np.concatenate(ends))),
        shape=(cells + 2, cells + 2),
    )
    flow = csgraph.maximum_flow(graph, source, sink).flow
    rest = sparse.csr_array(graph - flow)
    rest.eliminate_zeros()
    reached = csgraph.breadth_first_order(rest, source, return_predecessors=False)
    found = np.zeros(cells + 2, dtype=bool)
    found[reached] = True
    return found[:cells].reshape(inside.shape)
