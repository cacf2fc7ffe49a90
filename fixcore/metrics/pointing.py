"""Whether the peak lies on the object: the pointing game.

N images, B true boxes of an image at most, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.evidence.saliency import blurred

TOLERANCE = 15
"""Pixels by which a peak may miss the object."""
_BLUR = 0.02


def peaks(maps: Tensor, *, blur: bool = False) -> Tensor:
    """Return the row and column of each map's maximum, int64 (N, 2); ties to the first in row-major order.

    With `blur`, of the map blurred by a Gaussian of 2 % of its diagonal, as pointwise maps need.
    """
    _, height, width = maps.shape
    if blur:
        maps = blurred(maps.float(), _BLUR * math.hypot(height, width))
    place = maps.flatten(1).argmax(1)
    return torch.stack([place // width, place % width], 1)


def pointing_hits(maps: Tensor, truths: Tensor, *, tolerance: float = TOLERANCE, blur: bool = False) -> Tensor:
    """Return whether each map's maximum lies in a true box, or within `tolerance` pixels of one, bool (N,).

    `truths` is (N, B, 4) xyxy, exclusive, NaN where there is none; a map of zeros misses. A pixel is as far as its
    middle. Source: Zhang et al., Excitation Backprop, 4.1, with the 15 pixels of TorchRay (Fong et al.).

    Raises InputError for another number of images and a negative tolerance.
    """
    if len(maps) != len(truths) or tolerance < 0:
        raise InputError(f"{len(maps)} maps and {len(truths)} images with true boxes; tolerance {tolerance}")
    at = peaks(maps, blur=blur).flip(1) + 0.5  # x, y
    low, high = truths[..., :2], truths[..., 2:]
    away = torch.maximum(low - at[:, None], at[:, None] - high).clamp(min=0)
    near = away.square().sum(-1) <= tolerance**2  # false for NaN
    return near.any(1) & (maps.amax((1, 2)) > 0)
