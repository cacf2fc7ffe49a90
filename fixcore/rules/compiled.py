"""The searches of winner.py as plain loops, which numba compiles, on as many threads as torch uses.

P points; images (N, H, W, C); kernels (O, kh, kw, C of a group).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.rules.window import Window

_SMALL = 1 << 12
"""Products below which one thread is as fast."""
_LARGE = 1 << 20
"""Products below which handing parts to Python's threads costs more than it brings."""

# The largest of many floats: as integers of the same order, since of those alone a maximum is vectorised.
_SIGN, _REST = np.int32(31), np.int32(0x7FFFFFFF)
_LOWEST, _NONE = np.int32(-0x80000000), np.int32(0x7FFFFFFF)

_numba: Any = numba  # whose own types are incomplete
_Loop = TypeVar("_Loop", bound=Callable[..., None])
_alone: Callable[[_Loop], _Loop] = _numba.njit(nogil=True, cache=True)
_on_all: Callable[[_Loop], _Loop] = _numba.njit(nogil=True, cache=True, parallel=True)


def winning_inputs(
    images: Tensor, kernels: Tensor, index: Tensor, window: Window, groups: int, at_centre: bool
) -> Tensor:
    """As `winner.winning_inputs`, for float32 on a CPU."""
    given = (images.numpy(), kernels.numpy(), _geometry(window), len(kernels), groups, at_centre)
    return _on_threads(_find_inputs, _find_inputs_on_threads, given, index, len(index) * kernels.shape[1:].numel())


def winning_cells(images: Tensor, index: Tensor, window: Window) -> Tensor:
    """As `winner.winning_cells`, for float32 on a CPU."""
    work = len(index) * window.kernel[0] * window.kernel[1]
    return _on_threads(_find_cells, _find_cells_on_threads, (images.numpy(), _geometry(window)), index, work)


def _geometry(window: Window) -> Any:
    """Return the window as the loops read it."""
    shape = (*window.out, *window.kernel, *window.stride, *window.padding, *window.dilation)
    return np.array((*shape, window.middle(0), window.middle(1)), dtype=np.int64)


def _on_threads(
    find: Callable[..., None], find_on_threads: Callable[..., None], given: tuple[Any, ...], index: Tensor, work: int
) -> Tensor:
    """Run a loop over the points, on as many threads as torch uses if there is enough to do."""
    found = torch.empty_like(index)
    threads = min(torch.get_num_threads(), _numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or work < (_SMALL if _has_openmp() else _LARGE):
        find(*given, index.numpy(), found.numpy())
    elif _has_openmp():
        with _numba_threads(threads):
            find_on_threads(threads, *given, index.numpy(), found.numpy())
    else:
        parts = zip(*(np.array_split(array.numpy(), threads) for array in (index, found)), strict=True)  # views
        list(_pool(threads).map(lambda own: find(*given, *own), parts))
    return found


@contextmanager
def _numba_threads(threads: int) -> Iterator[None]:
    """Let numba use so many threads, and afterwards as many as before."""
    before = numba.get_num_threads()
    if before == threads:
        yield
        return
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)


@cache
def _has_openmp() -> bool:
    """Whether numba's threads are OpenMP's, which wait for work awake: handing it out takes microseconds.

    So it is where the system has the library, unless somebody chose other threads for numba.
    """
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    if _numba.config.THREADING_LAYER == "default":
        _numba.config.THREADING_LAYER = "omp"
    try:
        return bool(_numba.threading_layer() == "omp")
    except ValueError:  # nothing ran on threads before
        return bool(_numba.config.THREADING_LAYER == "omp")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fixcore")


@_alone
def _find_inputs(
    images: Any, kernels: Any, geometry: Any, outs: int, groups: int, at_centre: bool, index: Any, found: Any
) -> None:
    """Write where each point goes."""
    height, width = images.shape[1], images.shape[2]
    channels, own = images.shape[3], kernels.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, row_mid, col_mid = geometry
    total = np.empty(own, dtype=np.float32)
    bits = total.view(np.int32)
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
            largest = _LOWEST
            for channel in range(own):
                largest = max(largest, bits[channel] ^ ((bits[channel] >> _SIGN) & _REST))
            first = _NONE
            for channel in range(np.int32(own)):
                as_ordered = bits[channel] ^ ((bits[channel] >> _SIGN) & _REST)
                first = min(first, np.int32(channel) if as_ordered == largest else _NONE)
            best = int(first)
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


@_alone
def _find_cells(images: Any, geometry: Any, index: Any, found: Any) -> None:
    """Write where each point goes."""
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


@_on_all
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
) -> None:
    for part in numba.prange(parts):
        own = slice(len(index) * part // parts, len(index) * (part + 1) // parts)
        _find_inputs(images, kernels, geometry, outs, groups, at_centre, index[own], found[own])


@_on_all
def _find_cells_on_threads(parts: int, images: Any, geometry: Any, index: Any, found: Any) -> None:
    for part in numba.prange(parts):
        own = slice(len(index) * part // parts, len(index) * (part + 1) // parts)
        _find_cells(images, geometry, index[own], found[own])
