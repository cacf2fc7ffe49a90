"""The channel that excited a convolution's neuron most: the one piece of arithmetic that takes time on the way back.

P points; images (N, H, W, C); kernels (O, kh, kw, C of a group). On a CPU in float32 the window, the products and their
sum are one compiled pass with nothing in between; elsewhere a loop over the kernel's cells adds the same numbers in
the same order, so that the results are the same to the last bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_SMALL = 1 << 20
"""Products below which threads cost more than they bring."""
_CHUNK = 1 << 21
"""Products held at once by the loop."""


def winning_channels(
    images: Tensor,
    kernels: Tensor,
    place: tuple[Tensor, Tensor, Tensor],
    channels: tuple[Tensor, Tensor],
    dilation: tuple[int, int],
) -> Tensor:
    """Return, int64 (P,), the channel of the group whose products with the kernel, summed over the window, are largest.

    Ties go to the lowest channel; what lies outside of the image counts as zero. `place` is the image and the row and
    column of the window's first cell, each (P,); `channels` the first input channel of the group, and the output
    channel.
    """
    if images.device.type == "cpu" and images.dtype == kernels.dtype == torch.float32:
        return _compiled(images, kernels, place, channels, dilation)
    return _looped(images, kernels, place, channels, dilation)


def _looped(
    images: Tensor,
    kernels: Tensor,
    place: tuple[Tensor, Tensor, Tensor],
    channels: tuple[Tensor, Tensor],
    dilation: tuple[int, int],
) -> Tensor:
    count, (height, width), (rows, cols) = len(place[0]), images.shape[1:3], kernels.shape[1:3]
    winner = torch.empty_like(place[0])
    own = torch.arange(kernels.shape[3], device=images.device)
    step = max(1, _CHUNK // kernels.shape[3])
    for start in range(0, count, step):
        part = slice(start, start + step)
        image, top, left = (at[part] for at in place)
        first, out = (channel[part] for channel in channels)
        channel = first[:, None] + own
        total = torch.zeros(len(image), len(own), dtype=torch.float32, device=images.device)
        for i in range(rows):
            row = top + i * dilation[0]
            for j in range(cols):
                col = left + j * dilation[1]
                inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
                cell = (image[:, None], row.clamp(0, height - 1)[:, None], col.clamp(0, width - 1)[:, None], channel)
                total += images[cell].float() * kernels[out, i, j].float() * inside[:, None]
        winner[part] = total.argmax(1)
    return winner


def _compiled(
    images: Tensor,
    kernels: Tensor,
    place: tuple[Tensor, Tensor, Tensor],
    channels: tuple[Tensor, Tensor],
    dilation: tuple[int, int],
) -> Tensor:
    count = len(place[0])
    winner = torch.empty_like(place[0])
    arrays: list[Any] = [at.numpy() for at in (*place, *channels, winner)]
    threads = torch.get_num_threads()
    if threads == 1 or count * kernels[0].numel() < _SMALL:
        _find(images.numpy(), kernels.numpy(), *arrays, *dilation)
        return winner
    parts = zip(*(np.array_split(array, threads) for array in arrays), strict=True)  # views: winner is written through
    list(_pool(threads).map(lambda own: _find(images.numpy(), kernels.numpy(), *own, *dilation), parts))
    return winner


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fixcore")


def _find_winners(
    images: Any, kernels: Any, image: Any, top: Any, left: Any, first: Any, out: Any, winner: Any, down: int, right: int
) -> None:
    """Write the winner of each point; plain loops, which numba compiles."""
    height, width = images.shape[1], images.shape[2]
    rows, cols, channels = kernels.shape[1], kernels.shape[2], kernels.shape[3]
    total = np.empty(channels, dtype=np.float32)
    for point in range(image.shape[0]):
        begin = first[point]
        total[:] = 0
        for i in range(rows):
            row = top[point] + i * down
            if row < 0 or row >= height:
                continue
            for j in range(cols):
                col = left[point] + j * right
                if col < 0 or col >= width:
                    continue
                values = images[image[point], row, col, begin : begin + channels]
                weights = kernels[out[point], i, j]
                for channel in range(channels):
                    total[channel] += values[channel] * weights[channel]
        best = 0
        for channel in range(1, channels):
            if total[channel] > total[best]:
                best = channel
        winner[point] = best


_find: Any = numba.njit(nogil=True, cache=True)(_find_winners)
