"""Sorting points by the part of a concatenation that they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import alone


def by_part(index: Tensor, owners: Tensor, inner: int, parts: int) -> tuple[Tensor, Tensor, list[int]]:
    """As `rules.layout.by_part`, on a CPU."""
    place, order, counts = torch.empty_like(index), torch.empty_like(index), np.zeros(parts, dtype=np.int64)
    _sort_by_part(index.numpy(), owners.numpy(), inner, place.numpy(), order.numpy(), counts)
    return place, order, counts.tolist()


@alone
def _sort_by_part(index: Any, owners: Any, inner: int, place: Any, order: Any, counts: Any) -> None:
    """Write where each point came from, in the order of the parts."""
    points, whole = index.shape[0], owners.shape[1]
    number, moved = np.empty(points, dtype=np.int64), np.empty(points, dtype=np.int64)
    for point in range(points):
        rest = index[point] // inner
        outer = rest // whole
        at = rest - outer * whole
        number[point] = owners[0, at]
        moved[point] = index[point] - (outer * owners[2, at] + owners[1, at]) * inner
        counts[owners[0, at]] += 1
    begins = np.cumsum(counts) - counts
    for point in range(points):
        to = begins[number[point]]
        begins[number[point]] += 1
        place[to] = moved[point]
        order[to] = point
