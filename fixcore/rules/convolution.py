"""Convolution: which channel of the window excited the neuron (paper, Alg. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.points import Points, ravel, unravel
from fixcore.rules.linear import behind_vectors
from fixcore.rules.table import Flow, Visit, rule
from fixcore.rules.winner import winning_inputs
from fixcore.window import Pair, Window, pair

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)


@rule(*CONVOLUTIONS, keeps=("input",), keeps_of_vectors=("result",))
def winning_channel(visit: Visit, points: Points) -> Flow:
    """Go to the input channel whose products with the kernel, summed over the window, are largest.

    Ties go to the lowest channel. The place is the window's centre (option "same"; for even extents the upper left
    of the middle) or the largest product in that channel ("argmax"; ties to the first in row-major order). It never
    lies on padding: a centre there moves to the nearest pixel. With groups only the neuron's group competes. A
    convolution that sees its whole input at once is a linear layer and follows that rule; where evidence is net, every
    one whose output is a vector. Mass: kept whole.
    """
    image = visit.tensor("input")
    window, kernels, groups = visit.once(_sliding_kernels, image.shape[2:])
    if points.signed or window.sees_everything():
        return _as_linear_layer(visit, points, window)
    index = winning_inputs(
        image.permute(0, 2, 3, 1),  # for channels_last a view whose rows are contiguous
        kernels,
        points.index,
        window,
        groups,
        at_centre=visit.options.location == "same",
    )
    return [(visit.source("input"), points.moved(index))]


@rule(aten.conv_transpose2d.input, keeps=("input",))
def winning_channel_spread(visit: Visit, points: Points) -> Flow:
    """Transposed convolution: as a convolution over the map with zeros between its cells, the kernel mirrored.

    From a zero the point goes to the nearest cell, from half-way to the lower right one. Mass: kept whole.
    """
    image, source = visit.tensor("input"), visit.source("input")
    stride = pair(visit.plain("stride"))
    window, kernels, groups = visit.once(_mirrored_kernels, image.shape[2:])
    spread = image.new_zeros(*image.shape[:2], *window.extent)
    spread[:, :, :: stride[0], :: stride[1]] = image
    at_centre = visit.options.location == "same"
    index = winning_inputs(spread.permute(0, 2, 3, 1), kernels, points.index, window, groups, at_centre=at_centre)
    *channel, row, col = unravel(index, spread.shape)
    cell = [
        torch.div(at + step // 2, step, rounding_mode="floor").clamp(max=extent - 1)
        for at, step, extent in zip((row, col), stride, image.shape[2:], strict=True)
    ]
    return [(source, points.moved(ravel([*channel, *cell], image.shape)))]


def _as_linear_layer(visit: Visit, points: Points, window: Window) -> Flow:
    """Follow a convolution that has one output place by the rule of linear layers, to the input places it sees."""
    image, weight, groups = visit.tensor("input"), visit.tensor("weight"), visit.plain("groups")
    (rows, row_taps), (cols, col_taps) = ([part.to(weight.device) for part in window.cells_seen(at)] for at in (0, 1))
    seen = weight[:, :, row_taps[:, None], col_taps].flatten(1)
    n, out_channel, _, _ = unravel(points.index, visit.shape)
    group = torch.div(out_channel * groups, weight.shape[0], rounding_mode="floor")
    region = image if window.sees_everything() else image[:, :, rows[:, None], cols]
    by_group = region.reshape(len(image) * groups, -1)
    moved = behind_vectors(visit, by_group, seen, n * groups + group, out_channel, points)
    if region is not image:
        *channel, row, col = unravel(moved.index, region.shape)
        moved = moved.moved(ravel([*channel, rows[row], cols[col]], image.shape), apart=True)
    return [(visit.source("input"), moved)]


def _sliding_kernels(visit: Visit, extent: torch.Size) -> tuple[Window, Tensor, int]:
    """Return the window, the kernels that slide, (O, kh, kw, C), and the number of groups."""
    weight = visit.tensor("weight")
    kernel, dilation = pair(weight.shape[2:]), pair(visit.plain("dilation"))
    window = Window(
        extent=pair(extent),
        out=pair(visit.shape[2:]),
        kernel=kernel,
        stride=pair(visit.plain("stride")),
        padding=_padding(visit, kernel, dilation),
        dilation=dilation,
    )
    return window, weight.permute(0, 2, 3, 1), visit.plain("groups")


def _mirrored_kernels(visit: Visit, extent: torch.Size) -> tuple[Window, Tensor, int]:
    """Return the same of a transposed convolution, over its input with zeros between the cells."""
    weight, groups = visit.tensor("weight"), visit.plain("groups")
    kernel, dilation = pair(weight.shape[2:]), pair(visit.plain("dilation"))
    stride, padding = pair(visit.plain("stride")), pair(visit.plain("padding"))
    rows, cols = ((side - 1) * step + 1 for side, step in zip(extent, stride, strict=True))
    above, left = (step * (side - 1) - cut for step, side, cut in zip(dilation, kernel, padding, strict=True))
    window = Window(
        extent=(rows, cols),
        out=pair(visit.shape[2:]),
        kernel=kernel,
        stride=(1, 1),
        padding=(above, left),
        dilation=dilation,
    )
    by_group = weight.view(groups, -1, *weight.shape[1:]).flip(3, 4)  # (G, C of a group, O of a group, kh, kw)
    return window, by_group.permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous(), groups


def _padding(visit: Visit, kernel: Pair, dilation: Pair) -> Pair:
    """Cells before the image, (vertical, horizontal)."""
    padding = visit.plain("padding")
    if padding == "valid":
        return 0, 0
    if padding == "same":  # torch pads the odd one at the end
        return dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
    return pair(padding)
