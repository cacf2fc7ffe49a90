"""The searches on the way back (fixcore/rules/winner.py) as plain loops.

P points; images (N, H, W, C); kernels (O, kh, kw, C of a group).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone, on_all, on_threads
from fixcore.window import Window

# Floats as integers of the same order.
_SIGN, _REST = np.int32(31), np.int32(0x7FFFFFFF)
_LOWEST, _NONE = np.int32(-0x80000000), np.int32(0x7FFFFFFF)


def winning_inputs(
    images: Tensor, kernels: Tensor, index: Tensor, window: Window, groups: int, at_centre: bool
) -> Tensor:
    """As `winner.winning_inputs`, for float32 on a CPU."""
    found = torch.empty_like(index)
    loops = (images.numpy(), kernels.numpy(), geometry(window), len(kernels), groups, at_centre)
    given = (*loops, index.numpy(), found.numpy())
    on_threads(_find_inputs, _find_inputs_on_threads, given, len(index), len(index) * kernels.shape[1:].numel())
    return found


def winning_cells(images: Tensor, index: Tensor, window: Window, lowest: float) -> Tensor:
    """As `winner.winning_cells`, for float32 on a CPU."""
    found = torch.empty_like(index)
    given = (images.numpy(), geometry(window), np.float32(lowest), index.numpy(), found.numpy())
    on_threads(_find_cells, _find_cells_on_threads, given, len(index), len(index) * math.prod(window.kernel))
    return found


@lru_cache(maxsize=1024)
def geometry(window: Window) -> Any:
    """Return the window as the loops read it."""
    shape = (*window.out, *window.kernel, *window.stride, *window.padding, *window.dilation)
    return np.array((*shape, window.middle(0), window.middle(1)), dtype=np.int64)


@alone
def first_largest(values: Any) -> int:
    """Return where the largest of float32 values is, of equal ones the first.

    As integers of the same order, since of those alone a maximum is vectorised.
    """
    bits = values.view(np.int32)
    largest = _LOWEST
    for place in range(bits.shape[0]):
        largest = max(largest, bits[place] ^ ((bits[place] >> _SIGN) & _REST))
    first = _NONE
    for place in range(np.int32(bits.shape[0])):
        as_ordered = bits[place] ^ ((bits[place] >> _SIGN) & _REST)
        first = min(first, np.int32(place) if as_ordered == largest else _NONE)
    return int(first)


@alone
def _find_inputs(
    images: Any,
    kernels: Any,
    geometry: Any,
    outs: int,
    groups: int,
    at_centre: bool,
    index: Any,
    found: Any,
    begin: int,
    end: int,
) -> None:
    """Write where each point goes."""
    height, width = images.shape[1], images.shape[2]
    channels, own = images.shape[3], kernels.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, row_mid, col_mid = geometry
    total = np.empty(own, dtype=np.float32)
    for point in range(begin, end):
        if point > begin and index[point] == index[point - 1]:  # another target's, at the same place
            found[point] = found[point - 1]
            continue
        rest, out_col = divmod(index[point], out_width)
        rest, out_row = divmod(rest, out_height)
        image, out = divmod(rest, outs)
        group = out * groups // outs * own
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
                    values = images[image, row, col, group : group + own]
                    weights = kernels[out, i, j]
                    for channel in range(own):
                        total[channel] += values[channel] * weights[channel]
            best = first_largest(total)
        winner = group + best
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


@alone
def _find_cells(images: Any, geometry: Any, lowest: Any, index: Any, found: Any, begin: int, end: int) -> None:
    """Write where each point goes."""
    height, width, channels = images.shape[1], images.shape[2], images.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, _, _ = geometry
    for point in range(begin, end):
        if point > begin and index[point] == index[point - 1]:
            found[point] = found[point - 1]
            continue
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
                value = max(images[image, row, col, channel], lowest)
                if at_row < 0 or value > largest:
                    at_row, at_col, largest = row, col, value
        found[point] = ((image * channels + channel) * height + at_row) * width + at_col


@on_all
def _find_inputs_on_threads(
    parts: int,
    images: Any,
    kernels: Any,
    geometry: Any,
    outs: int,
    groups: int,
    at_centre: bool,
    index: Any,
    found: Any,
    count: int,
) -> None:
    for part in numba.prange(parts):
        begin, end = count * part // parts, count * (part + 1) // parts
        _find_inputs(images, kernels, geometry, outs, groups, at_centre, index, found, begin, end)


@on_all
def _find_cells_on_threads(
    parts: int, images: Any, geometry: Any, lowest: Any, index: Any, found: Any, count: int
) -> None:
    for part in numba.prange(parts):
        _find_cells(images, geometry, lowest, index, found, count * part // parts, count * (part + 1) // parts)
