"""Feature squeezing: a copy of the image in which a person sees no difference and an attack loses its hold.

Source: Xu, Evans, Qi, "Feature Squeezing", NDSS 2018 (median smoothing, the squeezer they use for natural images).
"""

from __future__ import annotations

import torch
from torch import Tensor


def median_smoothed(pixels: Tensor) -> Tensor:
    """Return images smoothed by a 2x2 median, uint8 (N, C, H, W) of the same shape.

    Each pixel becomes the mean, rounded up, of the two middle values of itself and its right, lower and lower right
    neighbours; the last row and column are repeated at the border.
    """
    wide = torch.cat([pixels, pixels[..., :, -1:]], -1)
    padded = torch.cat([wide, wide[..., -1:, :]], -2)
    a, b = padded[..., :-1, :-1], padded[..., :-1, 1:]
    c, d = padded[..., 1:, :-1], padded[..., 1:, 1:]
    low = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    # Of four sorted values these two are the middle ones, in either order.
    return (low.to(torch.int16) + high + 1).div(2, rounding_mode="floor").to(pixels.dtype)
