"""Where a sliding window lies; shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[int, int]


def pair(value: Sequence[int]) -> Pair:
    """Return (vertical, horizontal) of an argument given once or twice."""
    first, second = (*value, *value)[:2]
    return int(first), int(second)


def cells(first: Tensor, kernel: int, dilation: int, extent: int) -> tuple[Tensor, Tensor]:
    """Return the coordinates (P, kernel) of windows along one axis, and which lie inside the image.

    `first` is where each window begins, possibly before the image; coordinates outside are moved onto its border.
    """
    at = first[:, None] + torch.arange(kernel, device=first.device) * dilation
    return at.clamp(0, extent - 1), (at >= 0) & (at < extent)


@dataclass(frozen=True, slots=True, eq=False)  # told apart by which it is: what is derived from it is looked up often
class Window:
    """Geometry of a window that slides over a map, (vertical, horizontal)."""

    extent: Pair
    """Of the input, in cells."""
    out: Pair
    """Of the output."""
    kernel: Pair
    stride: Pair
    padding: Pair
    """Cells before the input's first."""
    dilation: Pair

    def first(self, out: Tensor, axis: int) -> Tensor:
        """Input coordinate (P,) of the window's first cell, possibly before the image."""
        return out * self.stride[axis] - self.padding[axis]

    def taps(self, out: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Input coordinates (P, k) under the window, moved onto the image, and whether they were inside."""
        return cells(self.first(out, axis), self.kernel[axis], self.dilation[axis], self.extent[axis])

    def middle(self, axis: int) -> int:
        """How far the window's centre lies from `out * stride`; for even extents the upper left of the middle."""
        return self.dilation[axis] * (self.kernel[axis] - 1) // 2 - self.padding[axis]

    def centre(self, out: Tensor, axis: int) -> Tensor:
        """Input coordinate (P,) of the window's centre, moved onto the image."""
        return (out * self.stride[axis] + self.middle(axis)).clamp(0, self.extent[axis] - 1)

    def sees_everything(self) -> bool:
        """Whether the one output place sees every input place: then a convolution is a linear layer."""
        if self.out != (1, 1):
            return False
        return all(len(self.cells_seen(axis)[0]) == self.extent[axis] for axis in (0, 1))

    def cells_seen(self, axis: int) -> tuple[Tensor, Tensor]:
        """For the one output place: the input cells that it sees, in order, and which of the kernel lies on each."""
        taps = [(tap * self.dilation[axis] - self.padding[axis], tap) for tap in range(self.kernel[axis])]
        seen = torch.tensor([own for own in taps if 0 <= own[0] < self.extent[axis]], dtype=torch.int64).view(-1, 2)
        return seen[:, 0], seen[:, 1]


POOLING_SIZES = ("kernel_size", "stride", "padding", "dilation")
"""Arguments of a maximum pool that say where its window lies."""


def pooling_window(sizes: Sequence[Sequence[int]], extent: Sequence[int], out: Sequence[int]) -> Window:
    """Return the window of a maximum pool; `sizes` are its POOLING_SIZES: without a stride, that is the kernel's."""
    kernel, stride, padding, dilation = sizes
    return Window(
        extent=pair(extent),
        out=pair(out),
        kernel=pair(kernel),
        stride=pair(stride or kernel),
        padding=pair(padding),
        dilation=pair(dilation),
    )
