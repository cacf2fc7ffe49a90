"""Convolution: which channel of the window excited the neuron (paper, Alg. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fixcore.points import Points, ravel, unravel
from fixcore.rules.linear import shared_among_inputs
from fixcore.rules.table import Flow, Visit, rule
from fixcore.rules.window import cells, pair
from fixcore.rules.winner import winning_channels

aten = torch.ops.aten


@rule(aten.conv2d.default, aten.conv2d.padding, keeps=("input",))
def winning_channel(visit: Visit, points: Points) -> Flow:
    """Go to the input channel whose products with the kernel, summed over the window, are largest.

    Ties go to the lowest channel. The place is the window's centre (option "same"; for even extents the upper left
    of the middle) or the largest product in that channel ("argmax"; ties to the first in row-major order). It never
    lies on padding: a centre there moves to the nearest pixel. With groups only the neuron's group competes. A
    convolution that sees its whole input at once is a linear layer and follows that rule. Mass: kept whole.
    """
    image, weight = visit.tensor("input"), visit.tensor("weight")
    window = _Window.of(visit)
    group_channels = weight.shape[1]
    n, out_channel, out_row, out_col = unravel(points.index, visit.shape)
    first_channel = torch.div(out_channel * visit.plain("groups"), weight.shape[0], rounding_mode="floor")
    first_channel = first_channel * group_channels

    source = visit.source("input")
    own_place = visit.options.location == "same" or window.kernel == (1, 1)
    if own_place and group_channels == 1 and not window.sees_everything(visit.shape):  # there is no other channel
        row, col = window.centre(out_row, 0), window.centre(out_col, 1)
        return [(source, points.moved(ravel((n, first_channel, row, col), image.shape)))]

    by_place = image.permute(0, 2, 3, 1)  # for channels_last a view whose rows are contiguous
    by_tap = weight.permute(0, 2, 3, 1)
    if window.sees_everything(visit.shape):
        return _as_linear_layer(visit, points, window)
    place = (n, window.first(out_row, 0), window.first(out_col, 1))
    winner = winning_channels(by_place, by_tap, place, (first_channel, out_channel), window.dilation)
    channel = first_channel + winner
    if own_place:
        row, col = window.centre(out_row, 0), window.centre(out_col, 1)
    else:
        rows, row_inside = window.taps(out_row, 0)
        cols, col_inside = window.taps(out_col, 1)
        seen = by_place[n[:, None, None], rows[:, :, None], cols[:, None, :], channel[:, None, None]]
        product = (seen * by_tap[out_channel, :, :, winner]).flatten(1)
        inside = (row_inside[:, :, None] & col_inside[:, None, :]).flatten(1)
        tap = product.masked_fill(~inside, -torch.inf).argmax(1)
        tap_row = torch.div(tap, window.kernel[1], rounding_mode="floor")
        row = rows.gather(1, tap_row[:, None])[:, 0]
        col = cols.gather(1, (tap - tap_row * window.kernel[1])[:, None])[:, 0]
    return [(source, points.moved(ravel((n, channel, row, col), image.shape)))]


def _as_linear_layer(visit: Visit, points: Points, window: _Window) -> Flow:
    """Follow a convolution whose one output place sees every input place by the rule of linear layers."""
    image, weight, groups = visit.tensor("input"), visit.tensor("weight"), visit.plain("groups")
    rows, cols = window.tap_of_every_cell(0), window.tap_of_every_cell(1)
    seen = weight[:, :, rows[:, None].to(weight.device), cols.to(weight.device)].flatten(1)
    n, out_channel, _, _ = unravel(points.index, visit.shape)
    group = torch.div(out_channel * groups, weight.shape[0], rounding_mode="floor")
    by_group = image.reshape(len(image) * groups, -1)
    return [(visit.source("input"), shared_among_inputs(by_group, seen, n * groups + group, out_channel, points))]


@dataclass(frozen=True, slots=True)
class _Window:
    """Geometry of a convolution, (vertical, horizontal)."""

    extent: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, visit: Visit) -> _Window:
        kernel = pair(visit.tensor("weight").shape[2:])
        dilation = pair(visit.plain("dilation"))
        padding = visit.plain("padding")
        if padding == "valid":
            before = (0, 0)
        elif padding == "same":  # torch pads the odd one at the end
            before = (dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2)
        else:
            before = pair(padding)
        extent = pair(visit.tensor("input").shape[2:])
        return cls(extent, kernel, pair(visit.plain("stride")), before, dilation)

    def first(self, out: Tensor, axis: int) -> Tensor:
        """Input coordinate (P,) of the kernel's first cell, possibly before the image."""
        return out * self.stride[axis] - self.padding[axis]

    def taps(self, out: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Input coordinates (P, k) under the kernel, moved onto the image, and whether they were inside."""
        return cells(self.first(out, axis), self.kernel[axis], self.dilation[axis], self.extent[axis])

    def centre(self, out: Tensor, axis: int) -> Tensor:
        """Input coordinate (P,) of the window's centre, moved onto the image."""
        middle = self.dilation[axis] * (self.kernel[axis] - 1) // 2 - self.padding[axis]
        return (out * self.stride[axis] + middle).clamp(0, self.extent[axis] - 1)

    def sees_everything(self, shape: torch.Size) -> bool:
        """Whether the one output place sees every input place: then the convolution is a linear layer."""
        if tuple(shape[2:]) != (1, 1):
            return False
        return all(len(self.tap_of_every_cell(axis)) == self.extent[axis] for axis in (0, 1))

    def tap_of_every_cell(self, axis: int) -> Tensor:
        """For the one output place: which cell of the kernel, int64, lies on each input cell that it sees, in order."""
        taps = range(self.kernel[axis])
        inside = (0 <= tap * self.dilation[axis] - self.padding[axis] < self.extent[axis] for tap in taps)
        return torch.tensor([tap for tap, sees in zip(taps, inside, strict=True) if sees])
