"""Joining points that meet at one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone

_DIGIT = 11
"""Bits of a key sorted at once: their counts fit in the fastest cache."""


def summed_by_key(key: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """As `points.summed_by_key`, for float32 on a CPU."""
    distinct, total = torch.empty_like(key), torch.empty_like(mass)
    count = _sum_by_key(key.numpy(), mass.numpy(), distinct.numpy(), total.numpy())
    return distinct[:count], total[:count]


@alone
def _sum_by_key(key: Any, mass: Any, distinct: Any, total: Any) -> int:
    """Write the distinct keys and the sums, and return how many: sorted digit by digit, the lowest first."""
    points = key.shape[0]
    largest = 0
    for point in range(points):
        largest = max(largest, key[point])
    keys, order = key.copy(), np.arange(points)
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
    for point in range(points):
        if last < 0 or keys[point] != distinct[last]:
            last += 1
            distinct[last] = keys[point]
            total[last] = mass[order[point]]
        else:
            total[last] += mass[order[point]]
    return last + 1
