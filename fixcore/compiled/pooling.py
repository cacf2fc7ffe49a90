"""Maximum pooling for a recording: torch's also writes where every maximum was, which nobody reads."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone, on_all, on_threads
from fixcore.compiled.windows import geometry
from fixcore.window import Window


def max_pool(images: Tensor, window: Window, lowest: float) -> Tensor:
    """Return the largest of every window and of `lowest`, (N, C, H', W') as `images` (N, C, H, W) is laid out.

    For float32, channels last, on a CPU. Padding counts for nothing, and what is not a number is larger than any, as
    in torch, whose results are the same to the last bit.
    """
    count, channels = images.shape[:2]
    pooled = torch.empty(count, channels, *window.out, memory_format=torch.channels_last)
    given = (images.permute(0, 2, 3, 1).numpy(), geometry(window), np.float32(lowest))
    rows = count * window.out[0]
    work = pooled.numel() * math.prod(window.kernel)
    on_threads(_pool, _pool_on_threads, (*given, pooled.permute(0, 2, 3, 1).numpy()), rows, work)
    return pooled


@alone
def _pool(images: Any, geometry: Any, lowest: Any, pooled: Any, begin: int, end: int) -> None:
    """Write some rows of the result; rows of all images are counted on."""
    height, width, channels = images.shape[1], images.shape[2], images.shape[3]
    out_height, out_width, rows, cols, down, right, above, before, row_step, col_step, _, _ = geometry
    for out in range(begin, end):
        image, out_row = divmod(out, out_height)
        for out_col in range(out_width):
            largest = pooled[image, out_row, out_col]
            largest[:] = lowest
            for i in range(rows):
                row = out_row * down - above + i * row_step
                if row < 0 or row >= height:
                    continue
                for j in range(cols):
                    col = out_col * right - before + j * col_step
                    if col < 0 or col >= width:
                        continue
                    values = images[image, row, col]
                    for channel in range(channels):
                        value = values[channel]
                        above_all = value > largest[channel] or value != value
                        largest[channel] = value if above_all else largest[channel]


@on_all
def _pool_on_threads(parts: int, images: Any, geometry: Any, lowest: Any, pooled: Any, count: int) -> None:
    for part in numba.prange(parts):
        _pool(images, geometry, lowest, pooled, count * part // parts, count * (part + 1) // parts)
