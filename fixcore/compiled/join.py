"""Joining points that meet at one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone

_DIGIT = 11
"""Bits of a key sorted at once: their counts fit in the fastest cache."""


def joined(
    index: Tensor, trace: Tensor, mass: Tensor, low: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `points.joined`, for float32 on a CPU."""
    found_index, found_trace, total = (torch.empty_like(values) for values in (index, trace, mass))
    lows = np.zeros(0, dtype=np.bool_) if low is None else low.numpy()
    found_low = np.empty_like(lows)
    given = (index.numpy(), trace.numpy(), mass.numpy(), lows, size)
    count = _join(*given, found_index.numpy(), found_trace.numpy(), total.numpy(), found_low)
    of_low = None if low is None else torch.from_numpy(found_low[:count])
    return found_index[:count], found_trace[:count], total[:count], of_low


@alone
def _join(
    index: Any,
    trace: Any,
    mass: Any,
    low: Any,
    size: int,
    found_index: Any,
    found_trace: Any,
    total: Any,
    found_low: Any,
) -> int:
    """Write the distinct points and their mass, and return how many: sorted digit by digit, the lowest first."""
    points = index.shape[0]
    knows_low = low.shape[0] > 0
    keys, largest = np.empty(points, dtype=np.int64), 0
    for point in range(points):
        key = trace[point] * size + index[point]
        keys[point] = key * 2 + low[point] if knows_low else key
        largest = max(largest, keys[point])
    order = np.arange(points)
    next_keys, next_order = np.empty_like(keys), np.empty_like(order)
    begins = np.empty(1 << _DIGIT, dtype=np.int64)
    shift = 0
    while largest >> shift:
        begins[:] = 0
        for point in range(points):
            begins[(keys[point] >> shift) & (1 << _DIGIT) - 1] += 1
        begun = 0
        for digit in range(1 << _DIGIT):
            count = begins[digit]
            begins[digit] = begun
            begun += count
        for point in range(points):
            digit = (keys[point] >> shift) & (1 << _DIGIT) - 1
            next_keys[begins[digit]] = keys[point]
            next_order[begins[digit]] = order[point]
            begins[digit] += 1
        keys, next_keys = next_keys, keys
        order, next_order = next_order, order
        shift += _DIGIT
    last = -1
    for place in range(points):
        if place and keys[place] == keys[place - 1]:
            total[last] += mass[order[place]]
            continue
        last += 1
        point = order[place]
        found_index[last], found_trace[last], total[last] = index[point], trace[point], mass[point]
        if knows_low:
            found_low[last] = low[point]
    return last + 1
