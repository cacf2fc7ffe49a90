"""Concatenating maps for a recording, with the ReLUs before it: one pass over memory instead of one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone, on_all, on_threads


def concatenated(parts: Sequence[Tensor], lowest: Sequence[float]) -> Tensor:
    """Return maps (N, C_i, H, W) side by side along their channels, where less than `lowest[i]` raised to that.

    For float32, channels last, on a CPU. What is not a number stays so, as in torch, whose results are the same to the
    last bit.
    """
    count, _, height, width = parts[0].shape
    rows, channels = count * height * width, sum(part.shape[1] for part in parts)
    whole = torch.empty(count, channels, height, width, memory_format=torch.channels_last)
    into, begins = _by_place(whole, rows), 0
    if len(parts) % 2:
        parts, lowest = [*parts, parts[0][:, :0]], [*lowest, 0.0]
    # Two at a time: most concatenations have two parts, and a row that is written at once is written faster.
    for at in range(0, len(parts), 2):
        left, right = (_by_place(part, rows) for part in parts[at : at + 2])
        given = (left, right, np.array(lowest[at : at + 2], dtype=np.float32), into, begins)
        written = left.shape[1] + right.shape[1]
        on_threads(_write, _write_on_threads, given, rows, rows * written)
        begins += written
    return whole


def _by_place(maps: Tensor, rows: int) -> Any:
    """Return the same memory as (N * H * W, C)."""
    return maps.permute(0, 2, 3, 1).reshape(rows, maps.shape[1]).numpy()


@alone
def _write(left: Any, right: Any, lowest: Any, into: Any, first: int, begin: int, end: int) -> None:
    """Write some rows of two parts that follow each other, from channel `first` on."""
    middle, last = first + left.shape[1], first + left.shape[1] + right.shape[1]
    for row in range(begin, end):
        _raise(left[row], lowest[0], into[row, first:middle])
        _raise(right[row], lowest[1], into[row, middle:last])


@alone
def _raise(values: Any, lowest: Any, into: Any) -> None:
    for channel in range(values.shape[0]):
        value = values[channel]
        into[channel] = lowest if value < lowest else value


@on_all
def _write_on_threads(parts: int, left: Any, right: Any, lowest: Any, into: Any, first: int, count: int) -> None:
    for part in numba.prange(parts):
        _write(left, right, lowest, into, first, count * part // parts, count * (part + 1) // parts)
