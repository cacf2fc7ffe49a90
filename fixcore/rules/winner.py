"""The searches that take time on the way back: a convolution's winning channel, a maximum pool's winning cell.

P points; images (N, H, W, C); kernels (O, kh, kw, C of a group). On a CPU, in float32, everything from a point's index
in the output to its index in the input is one compiled pass with nothing in between; elsewhere torch adds the same
numbers in the same order, so that the results are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.points import ravel, unravel
from fixcore.rules.window import Window

_SMALL = 1 << 20
"""Products below which threads cost more than they bring."""
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
    if not _is_compiled(images) or kernels.dtype != torch.float32:
        return _looped_inputs(images, kernels, index, window, groups, at_centre)
    geometry = _geometry(window)
    rest = (len(kernels), groups, at_centre or window.kernel == (1, 1))
    work = len(index) * kernels[0].numel()
    return _compiled(_find_inputs, (images.numpy(), kernels.numpy(), geometry, *rest), index, work)


def winning_cells(images: Tensor, index: Tensor, window: Window) -> Tensor:
    """Return where a maximum pool's points go, as `winning_inputs`: to the largest cell of the window.

    Of equal ones to the first in row-major order, as torch does.
    """
    if not _is_compiled(images):
        return _looped_cells(images, index, window)
    work = len(index) * window.kernel[0] * window.kernel[1]
    return _compiled(_find_cells, (images.numpy(), _geometry(window)), index, work)


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


def _looped_cells(images: Tensor, index: Tensor, window: Window) -> Tensor:
    shape = (len(images), images.shape[3], *window.out)
    n, channel, out_row, out_col = unravel(index, shape)
    rows, row_inside = window.taps(out_row, 0)
    cols, col_inside = window.taps(out_col, 1)
    value = images[n[:, None, None], rows[:, :, None], cols[:, None, :], channel[:, None, None]].flatten(1)
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


def _is_compiled(images: Tensor) -> bool:
    return images.device.type == "cpu" and images.dtype == torch.float32


def _geometry(window: Window) -> Any:
    """Return the window as the compiled loops read it."""
    shape = (*window.out, *window.kernel, *window.stride, *window.padding, *window.dilation)
    return np.array((*shape, window.middle(0), window.middle(1)), dtype=np.int64)


def _compiled(find: Callable[..., None], given: tuple[Any, ...], index: Tensor, work: int) -> Tensor:
    """Run a compiled loop over the points, on as many threads as torch uses if there is enough to do."""
    found = torch.empty_like(index)
    threads = torch.get_num_threads()
    if threads == 1 or work < _SMALL:
        find(*given, index.numpy(), found.numpy())
        return found
    parts = zip(*(np.array_split(array.numpy(), threads) for array in (index, found)), strict=True)  # views
    list(_pool(threads).map(lambda own: find(*given, *own), parts))
    return found


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fixcore")


_numba: Any = numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})  # flags under which a maximum is vectorised


def _loop_inputs(
    images: Any, kernels: Any, geometry: Any, outs: int, groups: int, at_centre: bool, index: Any, found: Any
) -> None:
    """Write where each point goes; plain loops, which numba compiles."""
    height, width = images.shape[1], images.shape[2]
    channels, own = images.shape[3], kernels.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, row_mid, col_mid = geometry
    total = np.empty(own, dtype=np.float32)
    for point in range(index.shape[0]):
        rest, out_col = divmod(index[point], out_width)
        rest, out_row = divmod(rest, out_height)
        image, out = divmod(rest, outs)
        begin = out * groups // outs * own
        top, left = out_row * down - above, out_col * right - before
        best = 0
        if own > 1:
            total[:] = 0
            for i in range(rows):
                row = top + i * row_step
                if row < 0 or row >= height:
                    continue
                for j in range(cols):
                    col = left + j * col_step
                    if col < 0 or col >= width:
                        continue
                    values = images[image, row, col, begin : begin + own]
                    weights = kernels[out, i, j]
                    for channel in range(own):
                        total[channel] += values[channel] * weights[channel]
            largest = total[0]
            for channel in range(own):
                largest = max(largest, total[channel])
            while total[best] != largest:
                best += 1
        winner = begin + best
        if at_centre:
            at_row = min(max(out_row * down + row_mid, 0), height - 1)
            at_col = min(max(out_col * right + col_mid, 0), width - 1)
        else:
            at_row, at_col = min(max(top, 0), height - 1), min(max(left, 0), width - 1)  # if all lies on padding
            strongest, is_first = np.float32(0), True
            for i in range(rows):
                row = top + i * row_step
                if row < 0 or row >= height:
                    continue
                for j in range(cols):
                    col = left + j * col_step
                    if col < 0 or col >= width:
                        continue
                    product = images[image, row, col, winner] * kernels[out, i, j, best]
                    if is_first or product > strongest:
                        at_row, at_col, strongest, is_first = row, col, product, False
        found[point] = ((image * channels + winner) * height + at_row) * width + at_col


def _loop_cells(images: Any, geometry: Any, index: Any, found: Any) -> None:
    """Write where each point goes; plain loops, which numba compiles."""
    height, width, channels = images.shape[1], images.shape[2], images.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, _, _ = geometry
    for point in range(index.shape[0]):
        rest, out_col = divmod(index[point], out_width)
        rest, out_row = divmod(rest, out_height)
        image, channel = divmod(rest, channels)
        at_row, at_col, largest = -1, -1, np.float32(0)
        for i in range(rows):
            row = out_row * down - above + i * row_step
            if row < 0 or row >= height:
                continue
            for j in range(cols):
                col = out_col * right - before + j * col_step
                if col < 0 or col >= width:
                    continue
                value = images[image, row, col, channel]
                if at_row < 0 or value > largest:
                    at_row, at_col, largest = row, col, value
        found[point] = ((image * channels + channel) * height + at_row) * width + at_col


_find_inputs = _numba(_loop_inputs)
_find_cells = _numba(_loop_cells)
