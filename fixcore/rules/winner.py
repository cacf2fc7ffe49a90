"""The searches that take time on the way back: a convolution's winning channel, a maximum pool's winning cell.

P points; images (N, H, W, C); kernels (O, kh, kw, C of a group). On a CPU, in float32, everything from a point's index
in the output to its index in the input is one compiled pass with nothing in between (fixcore/compiled);
elsewhere torch adds the same numbers in the same order, so that the results are the same to the last bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fixcore.compiled import windows as compiled
from fixcore.compiled.threads import is_compiled_for
from fixcore.points import ravel, unravel
from fixcore.window import Window

_CHUNK = 1 << 21
"""Products held at once by torch."""


def winning_inputs(
    images: Tensor, kernels: Tensor, index: Tensor, window: Window, groups: int, *, at_centre: bool
) -> Tensor:
    """Return where a convolution's points go, int64 (P,): row-major positions in the input (N, C, H, W).

    `index` is their position in the output. The channel is the one of the group whose products with the kernel, summed
    over the window, are largest; ties go to the lowest; what lies outside of the image counts as zero. The place is the
    window's centre, or the largest product in that channel, ties to the first in row-major order.
    """
    if not is_compiled_for(images, kernels):
        return _looped_inputs(images, kernels, index, window, groups, at_centre)
    return compiled.winning_inputs(images, kernels, index, window, groups, at_centre or window.kernel == (1, 1))


def winning_cells(images: Tensor, index: Tensor, window: Window, lowest: float = -math.inf) -> Tensor:
    """Return where a maximum pool's points go, as `winning_inputs`: to the largest cell of the window.

    Of equal ones to the first in row-major order, as torch does. What is below `lowest` counts as that.
    """
    if not is_compiled_for(images):
        return _looped_cells(images, index, window, lowest)
    return compiled.winning_cells(images, index, window, lowest)


def _looped_inputs(
    images: Tensor, kernels: Tensor, index: Tensor, window: Window, groups: int, at_centre: bool
) -> Tensor:
    count, (height, width) = len(index), window.extent
    shape = (len(images), len(kernels), *window.out)
    n, out_channel, out_row, out_col = unravel(index, shape)
    group = torch.div(out_channel * groups, len(kernels), rounding_mode="floor")
    first = group * kernels.shape[3]
    top, left = window.first(out_row, 0), window.first(out_col, 1)
    own = torch.arange(kernels.shape[3], device=images.device)
    winner = torch.empty_like(index)
    step = max(1, _CHUNK // kernels.shape[3])
    for start in range(0, count, step):
        part = slice(start, start + step)
        channel = first[part, None] + own
        total = torch.zeros(channel.shape, dtype=torch.float32, device=images.device)
        for i in range(window.kernel[0]):
            row = top[part] + i * window.dilation[0]
            for j in range(window.kernel[1]):
                col = left[part] + j * window.dilation[1]
                inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
                cell = (n[part, None], row.clamp(0, height - 1)[:, None], col.clamp(0, width - 1)[:, None], channel)
                total += images[cell].float() * kernels[out_channel[part], i, j].float() * inside[:, None]
        winner[part] = total.argmax(1)
    if at_centre or window.kernel == (1, 1):
        row, col = window.centre(out_row, 0), window.centre(out_col, 1)
    else:
        rows, row_inside = window.taps(out_row, 0)
        cols, col_inside = window.taps(out_col, 1)
        seen = images[n[:, None, None], rows[:, :, None], cols[:, None, :], (first + winner)[:, None, None]]
        product = (seen.float() * kernels[out_channel, :, :, winner].float()).flatten(1)
        row, col = _largest(product, rows, cols, row_inside, col_inside)
    return ravel((n, first + winner, row, col), (len(images), images.shape[3], height, width))


def _looped_cells(images: Tensor, index: Tensor, window: Window, lowest: float) -> Tensor:
    shape = (len(images), images.shape[3], *window.out)
    n, channel, out_row, out_col = unravel(index, shape)
    rows, row_inside = window.taps(out_row, 0)
    cols, col_inside = window.taps(out_col, 1)
    value = (
        images[n[:, None, None], rows[:, :, None], cols[:, None, :], channel[:, None, None]]
        .flatten(1)
        .clamp(min=lowest)
    )
    row, col = _largest(value, rows, cols, row_inside, col_inside)
    return ravel((n, channel, row, col), (len(images), images.shape[3], *window.extent))


def _largest(
    value: Tensor, rows: Tensor, cols: Tensor, row_inside: Tensor, col_inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Row and column (P,) of the largest of the values (P, kh * kw) that are inside."""
    inside = (row_inside[:, :, None] & col_inside[:, None, :]).flatten(1)
    tap = value.masked_fill(~inside, -torch.inf).argmax(1, keepdim=True)
    tap_row = torch.div(tap, cols.shape[1], rounding_mode="floor")
    return rows.gather(1, tap_row)[:, 0], cols.gather(1, tap - tap_row * cols.shape[1])[:, 0]
