"""Pooling: the winner of a maximum, the strong cells of a mean."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fixcore.points import Points, ravel, unravel
from fixcore.rules.table import Flow, Visit, rule
from fixcore.rules.winner import winning_cells
from fixcore.window import POOLING_SIZES, Window, cells, pair, pooling_window

aten = torch.ops.aten

MIXES = frozenset(
    {
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.mean.dim,
        aten.sum.dim_IntList,
        aten.var.dim,
        aten.var.correction,
        aten.std.dim,
        aten.std.correction,
        aten.linalg_vector_norm.default,
    }
)
"""Operations that make one value of several places: behind them vectors end."""

CHOOSES = frozenset({aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.gather.default})
"""Operations that take one element of several, wherever it stands."""


@rule(aten.max_pool2d.default, keeps=("self",))
def recorded_winner(visit: Visit, points: Points) -> Flow:
    """Go to the cell that the maximum took; ties to the first in row-major order, as torch does. Mass: kept whole.

    Where the ReLU before it is applied after it (`fixcore.network.graph`), cells below 0 count as 0, as they would.
    """
    image = visit.tensor("self")
    lowest = 0.0 if visit.node.meta.get("rectifies") else -math.inf
    window = visit.once(_sliding_window, image.shape[2:])
    index = winning_cells(image.permute(0, 2, 3, 1), points.index, window, lowest)
    return [(visit.source("self"), points.moved(index))]


def _sliding_window(visit: Visit, extent: torch.Size) -> Window:
    return pooling_window([visit.plain(name) for name in POOLING_SIZES], extent, visit.shape[2:])


@rule(aten.avg_pool2d.default, keeps=("self",))
def strong_cells(visit: Visit, points: Points) -> Flow:
    """Go to the cells above their window's mean, mass in proportion to the excess; or to the strongest ("argmax").

    The mean is over the window's cells inside the image. A window without a cell above its mean (all equal) keeps
    every cell in equal parts. Ties of "argmax" go to the first in row-major order.
    """
    image = visit.tensor("self")
    kernel = pair(visit.plain("kernel_size"))
    stride = pair(visit.plain("stride") or kernel)
    padding = pair(visit.plain("padding"))
    n, channel, out_row, out_col = unravel(points.index, visit.shape)
    rows = cells(out_row * stride[0] - padding[0], kernel[0], 1, image.shape[2])
    cols = cells(out_col * stride[1] - padding[1], kernel[1], 1, image.shape[3])
    return _mean_window(visit, points, (n, channel), rows, cols)


@rule(aten.adaptive_avg_pool2d.default, keeps=("self",))
def strong_adaptive_cells(visit: Visit, points: Points) -> Flow:
    """As `strong_cells`, over the adaptive window from floor(i * in / out) to ceil((i + 1) * in / out)."""
    image = visit.tensor("self")
    if image.dim() != 4:
        raise ValueError(f"{visit.node.name}: images without a batch dimension are not traced")
    n, channel, out_row, out_col = unravel(points.index, visit.shape)
    rows = _adaptive_cells(out_row, image.shape[2], visit.shape[2])
    cols = _adaptive_cells(out_col, image.shape[3], visit.shape[3])
    return _mean_window(visit, points, (n, channel), rows, cols)


@rule(aten.amax.default, aten.logsumexp.default, keeps=("self",))
def largest_member(visit: Visit, points: Points) -> Flow:
    """Go to the largest of all places, or what is most of a smooth maximum; ties to the first in row-major order.

    Mass: kept whole.
    """
    return _members(visit, points, visit.tensor("self"), "argmax")


@rule(aten.amin.default, keeps=("self",))
def smallest_member(visit: Visit, points: Points) -> Flow:
    """Go to the smallest of all places; ties to the first in row-major order. Mass: kept whole."""
    return _members(visit, points, -visit.tensor("self"), "argmax")


@rule(aten.mean.dim, aten.sum.dim_IntList, keeps=("self",))
def strong_members(visit: Visit, points: Points) -> Flow:
    """As `strong_cells`, over all places that were averaged, or summed, into one, whatever the dimensions."""
    return _members(visit, points, visit.tensor("self"), visit.options.average_pool)


@rule(aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction, keeps=("self",))
def far_members(visit: Visit, points: Points) -> Flow:
    """Variance or deviation: as `strong_members`, of the squared distances from the mean that it is the mean of."""
    values = visit.tensor("self").float()
    count = values.numel() // visit.shape.numel()
    sums = values.sum(visit.plain("dim"), keepdim=True)
    distances = count * values - sums  # so many times as far: ties of whole numbers are exact
    return _members(visit, points, distances.square(), visit.options.average_pool)


@rule(aten.linalg_vector_norm.default, keeps=("self",))
def strong_powers(visit: Visit, points: Points) -> Flow:
    """Norm: as `strong_members`, of the powers whose sum it is the root of; of a maximum norm the largest."""
    sizes, power = visit.tensor("self").abs(), float(visit.plain("ord"))
    if math.isinf(power):
        return _members(visit, points, sizes * math.copysign(1.0, power), "argmax")
    return _members(visit, points, sizes**power, visit.options.average_pool)


def _members(visit: Visit, points: Points, values: Tensor, average_pool: Literal["above_mean", "argmax"]) -> Flow:
    reduced = sorted(d % values.dim() for d in (visit.plain("dim") or range(values.dim())))
    kept = [d for d in range(values.dim()) if d not in reduced]
    by_output = values.permute(*kept, *reduced)  # the output's elements first, then what each averages
    place = unravel(points.index, [values.shape[d] for d in kept])
    chosen = by_output[place].flatten(1)
    share = _excess(chosen, torch.ones_like(chosen, dtype=torch.bool), average_pool)
    member = unravel(torch.arange(chosen.shape[1], device=values.device), [values.shape[d] for d in reduced])
    coordinates: list[Tensor] = [torch.empty(0)] * values.dim()
    for d, at in zip(kept, place, strict=True):
        coordinates[d] = at[:, None]
    for d, at in zip(reduced, member, strict=True):
        coordinates[d] = at[None, :]
    index = ravel(coordinates, values.shape).expand_as(chosen)
    return [(visit.source("self"), points.spread(index, share > 0, share))]


def _mean_window(
    visit: Visit,
    points: Points,
    fixed: tuple[Tensor, Tensor],
    rows: tuple[Tensor, Tensor],
    cols: tuple[Tensor, Tensor],
) -> Flow:
    image = visit.tensor("self")
    n, channel = fixed
    value, inside = _window(image, n, channel, (rows[0], cols[0]), (rows[1], cols[1]))
    share = _excess(value, inside, visit.options.average_pool)
    place = (n[:, None, None], channel[:, None, None], rows[0][:, :, None], cols[0][:, None, :])
    return [(visit.source("self"), points.spread(ravel(place, image.shape).flatten(1), share > 0, share))]


def _excess(value: Tensor, inside: Tensor, average_pool: str) -> Tensor:
    """Share (P, B) of each cell of a mean; zero where not followed."""
    value = value.float()
    if average_pool == "argmax":
        winner = value.masked_fill(~inside, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(value).scatter_(1, winner, 1.0)
    count = inside.sum(1, keepdim=True)
    mean = (value * inside).sum(1, keepdim=True) / count
    above = (value - mean).clamp(min=0) * inside
    total = above.sum(1, keepdim=True)
    return torch.where(total > 0, above / total, inside / count)


def _window(
    image: Tensor, n: Tensor, channel: Tensor, at: tuple[Tensor, Tensor], inside: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Values (P, B) of the cells in each window, and which of them are inside the image."""
    value = image[n[:, None, None], channel[:, None, None], at[0][:, :, None], at[1][:, None, :]]
    return value.flatten(1), (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)


def _adaptive_cells(out: Tensor, extent: int, out_extent: int) -> tuple[Tensor, Tensor]:
    first = torch.div(out * extent, out_extent, rounding_mode="floor")
    last = torch.div((out + 1) * extent + out_extent - 1, out_extent, rounding_mode="floor")  # exclusive
    longest = -(-extent // out_extent) + 1
    at = first[:, None] + torch.arange(min(longest, extent), device=out.device)
    return at.clamp(max=extent - 1), at < last[:, None]
