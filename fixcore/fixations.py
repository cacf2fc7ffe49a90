"""Fixations: the pixels that excited a neuron, and which of them to keep.

N images (or targets), P points, H x W input pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)  # tensors have no single ==
class Fixations:
    """Pixels that caused a batch of decisions; (0, 0) is the top-left input pixel.

    Points are sorted by image, then row, then column, and unique: a pixel is listed once per image.
    """

    image: Tensor
    """int64 (P,): which of the N explained targets the point belongs to; position in `target`."""
    row: Tensor
    """int64 (P,): 0 <= row < height."""
    col: Tensor
    """int64 (P,): 0 <= col < width."""
    mass: Tensor
    """float32 (P,): share of the evidence, >= 0; sums to 1 over each image that has points."""
    height: int
    """Input height in pixels."""
    width: int
    """Input width in pixels."""
    target: Tensor
    """int64 (N,): class (or neuron) explained; -1 where nothing was asked for, and then there are no points."""
    margin: float = 0.0
    """Input pixels that one start cell reaches beyond its centre (half the stride of the class map); 0 if none."""

    def __len__(self) -> int:
        """Return the number of explained targets, N."""
        return self.target.numel()
