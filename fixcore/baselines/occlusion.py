"""Occlusion: what a network loses when a part of the image is covered.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.network.graph import Graph
from fixcore.start import scores_of


def occlusion(
    graph: Graph, images: Tensor, target: Tensor, *, patch: float = 0.2, stride: float = 0.05, fill: float = 0.0
) -> Tensor:
    """Return how much the class's probability falls when what surrounds a pixel is covered, float32 (N, H, W).

    A square of `patch` times the smaller side is moved in steps of `stride` times it, and painted with `fill` (in
    normalised values; 0 is the mean colour). A pixel's value is the mean fall over the squares that cover it, and 0
    where that is a rise. One forward pass per position: about 320 by default.

    Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 4.2. Raises InputError for a
    patch or stride outside (0, 1].
    """
    if not (0 < patch <= 1 and 0 < stride <= 1):
        raise InputError(f"patch and stride are shares of the image's side in (0, 1], not {patch} and {stride}")
    height, width = images.shape[2:]
    side, step = (max(1, round(share * min(height, width))) for share in (patch, stride))
    whole = scores_of(graph.classify(images).float().softmax(1), target)
    fall = torch.zeros(len(images), height, width, device=images.device)
    times = torch.zeros(height, width, device=images.device)
    for row in _positions(height, side, step):
        for col in _positions(width, side, step):
            covered = images.clone()
            covered[:, :, row : row + side, col : col + side] = fill
            left = scores_of(graph.classify(covered).float().softmax(1), target)
            fall[:, row : row + side, col : col + side] += (whole - left)[:, None, None]
            times[row : row + side, col : col + side] += 1
    return (fall / times).clamp(min=0)


def _positions(length: int, side: int, step: int) -> list[int]:
    """Where the square begins along one axis, so that every pixel is covered at least once."""
    return sorted({*range(0, length - side, step), length - side})
