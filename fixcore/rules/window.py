"""Where a sliding window lies; shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pair(value: Sequence[int]) -> tuple[int, int]:
    """Return (vertical, horizontal) of an argument given once or twice."""
    first, second = (*value, *value)[:2]
    return int(first), int(second)


def cells(first: Tensor, kernel: int, dilation: int, extent: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates (P, kernel) of windows along one axis, and which lie inside the image.

    `first` is where each window begins, possibly before the image; coordinates outside are moved onto its border.
    """
    at = first[:, None] + torch.arange(kernel, device=first.device) * dilation
    return at.clamp(0, extent - 1), (at >= 0) & (at < extent)
