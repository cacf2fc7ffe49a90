"""Convolution: which channel of the window excited the neuron (paper, Alg. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fixcore.points import Points, ravel, unravel
from fixcore.rules.linear import excitation
from fixcore.rules.table import Flow, Visit, rule
from fixcore.rules.window import cells, pair

aten = torch.ops.aten

_CHUNK = 1 << 21
"""Elements of the (points, taps, channels) product held at once: a few MB, so that it stays in cache."""


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

    rows, row_inside = window.taps(out_row, 0)
    cols, col_inside = window.taps(out_col, 1)
    by_place = image.permute(0, 2, 3, 1)  # for channels_last a view whose rows are contiguous
    by_tap = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1, group_channels)
    taps = by_tap.shape[1]
    own_channels = torch.arange(group_channels, device=image.device)
    grouped = group_channels < image.shape[1]

    def products(part: slice) -> tuple[Tensor, Tensor]:
        """Activation times weight (p, taps, group channels), zero on padding; and which taps are inside (p, taps)."""
        place = (n[part, None, None], rows[part, :, None], cols[part, None, :])
        if grouped:
            channel = first_channel[part, None] + own_channels
            field = by_place[(*(at[..., None] for at in place), channel[:, None, None, :])]
        else:
            field = by_place[place]
        inside = (row_inside[part, :, None] & col_inside[part, None, :]).flatten(1)
        product = field.reshape(-1, taps, group_channels) * by_tap[out_channel[part]]
        return (product if taps == 1 else product * inside[:, :, None]), inside

    step = max(1, _CHUNK // (taps * group_channels))
    parts = [slice(start, start + step) for start in range(0, len(points), step)]

    if window.sees_everything(visit.shape):
        spreads = []
        for part in parts:
            product, inside = products(part)
            seen = product.masked_fill(~inside[:, :, None], -torch.inf)  # padding excites nothing, not even as last
            kept, share = excitation(seen.flatten(1), visit.options.vector)
            row = rows[part, :, None].expand(-1, -1, cols.shape[1]).flatten(1)[:, :, None]
            col = cols[part, None, :].expand(-1, rows.shape[1], -1).flatten(1)[:, :, None]
            channel = (first_channel[part, None] + own_channels)[:, None, :]
            index = ravel((n[part, None, None], channel, row, col), image.shape).flatten(1)
            piece = Points(points.index[part], points.trace[part], points.mass[part])
            spreads.append((source, piece.spread(index, kept, share)))
        return spreads

    winner = torch.empty_like(n)
    if own_place:
        for part in parts:
            winner[part] = products(part)[0].sum(1).argmax(1)
        row, col = window.centre(out_row, 0), window.centre(out_col, 1)
    else:
        tap = torch.empty_like(n)
        for part in parts:
            product, inside = products(part)
            winner[part] = product.sum(1).argmax(1)
            chosen = product.gather(2, winner[part, None, None].expand(-1, taps, 1))[:, :, 0]
            tap[part] = chosen.masked_fill(~inside, -torch.inf).argmax(1)
        tap_row = torch.div(tap, cols.shape[1], rounding_mode="floor")
        row = rows.gather(1, tap_row[:, None])[:, 0]
        col = cols.gather(1, (tap - tap_row * cols.shape[1])[:, None])[:, 0]
    return [(source, points.moved(ravel((n, first_channel + winner, row, col), image.shape)))]


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

    def taps(self, out: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Input coordinates (P, k) under the kernel, moved onto the image, and whether they were inside."""
        return cells(
            out * self.stride[axis] - self.padding[axis], self.kernel[axis], self.dilation[axis], self.extent[axis]
        )

    def centre(self, out: Tensor, axis: int) -> Tensor:
        """Input coordinate (P,) of the window's centre, moved onto the image."""
        middle = self.dilation[axis] * (self.kernel[axis] - 1) // 2 - self.padding[axis]
        return (out * self.stride[axis] + middle).clamp(0, self.extent[axis] - 1)

    def sees_everything(self, shape: torch.Size) -> bool:
        """Whether the one output place sees every input place: then the convolution is a linear layer."""
        if tuple(shape[2:]) != (1, 1):
            return False
        seen = [{tap * self.dilation[axis] - self.padding[axis] for tap in range(self.kernel[axis])} for axis in (0, 1)]
        return all(seen[axis].issuperset(range(self.extent[axis])) for axis in (0, 1))
