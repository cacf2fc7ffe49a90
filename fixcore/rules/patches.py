"""Patches: a map cut into windows that may overlap, and put together again."""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.points import Points, ravel, unravel
from fixcore.rules.table import Flow, Visit, rule
from fixcore.window import Window, pair

aten = torch.ops.aten


@rule(aten.im2col.default)
def own_pixel(visit: Visit, points: Points) -> Flow:
    """Patches: go to the pixel that the patch holds there; from padding to the nearest one. Mass: kept whole."""
    source = visit.source("self")
    shape = visit.shapes[source]
    window = _sliding_patch(visit, shape)
    image, element, patch = unravel(points.index, visit.shape)
    channel, *tap = unravel(element, (-1, *window.kernel))
    place = unravel(patch, window.out)
    cell = [
        (window.first(out, axis) + own * window.dilation[axis]).clamp(0, window.extent[axis] - 1)
        for axis, (out, own) in enumerate(zip(place, tap, strict=True))
    ]
    return [(source, points.moved(ravel([image, channel, *cell], shape)))]


@rule(aten.col2im.default, keeps=("self",))
def strongest_patch(visit: Visit, points: Points) -> Flow:
    """Patches put together: go to the patch that adds most to the pixel; ties to the first in the kernel's order.

    Mass: kept whole. A pixel that no patch covers, and that is 0 whatever the image shows, goes to the nearest.
    """
    patches = visit.tensor("self")
    window = _sliding_patch(visit, visit.shape)
    image, channel, *pixel = unravel(points.index, visit.shape)
    taps = torch.arange(window.kernel[0] * window.kernel[1], device=points.index.device)
    tap = unravel(taps, window.kernel)
    inside = torch.ones(len(points), len(taps), dtype=torch.bool, device=taps.device)
    patch = []
    for axis, (cell, own) in enumerate(zip(pixel, tap, strict=True)):
        first = cell[:, None] + window.padding[axis] - own * window.dilation[axis]
        at = torch.div(first, window.stride[axis], rounding_mode="floor")
        inside &= (at * window.stride[axis] == first) & (at >= 0) & (at < window.out[axis])
        patch.append(at.clamp(0, window.out[axis] - 1))
    element = channel[:, None] * len(taps) + taps
    place = ravel([image[:, None], element, ravel(patch, window.out)], patches.shape)
    added: Tensor = patches.reshape(-1)[place].masked_fill(~inside, -torch.inf)
    winner = added.argmax(1, keepdim=True)
    return [(visit.source("self"), points.moved(place.gather(1, winner)[:, 0]))]


def _sliding_patch(visit: Visit, whole: torch.Size) -> Window:
    """Return where the patches of a map of shape `whole`, (N, C, H, W), lie."""
    kernel, dilation, padding, stride = (
        pair(visit.plain(name)) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    rows, cols = (
        (extent + 2 * around - step * (side - 1) - 1) // apart + 1
        for extent, around, step, side, apart in zip(whole[2:], padding, dilation, kernel, stride, strict=True)
    )
    return Window(
        extent=pair(whole[2:]), out=(rows, cols), kernel=kernel, stride=stride, padding=padding, dilation=dilation
    )
