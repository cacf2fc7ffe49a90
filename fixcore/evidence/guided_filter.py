"""The guided filter: maps drawn along the edges of the picture.

N maps, C colours, H x W pixels; R x S cells of a raster.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fixcore.errors import InputError

RADIUS = 60 / 625
"""Half the side of a window as a share of the image's diagonal: three of the widths (`SIGMA`) that a fixation has."""

SMOOTHNESS = 0.01
"""Share of the picture's variance below which a window's colours count as one."""

_CELLS = 56
"""Cells of the raster along each side at most: He and Sun's subsampling. A window is some fifteen of them wide."""

_LEAST_VARIANCE = 1e-12


def guided_filter(maps: Tensor, pictures: Tensor) -> Tensor:
    """Return maps that say the same and change where the picture does, float32 (N, H, W), >= 0, each of the same peak.

    Around each pixel a map, float (N, H, W), >= 0, is taken to be a linear function of the colours of its picture,
    float (N, C, H, W) on any scale; what all windows over a pixel say of it is averaged. So a blob over an animal
    comes to have the animal's outline; in a window of one colour the map is blurred. Windows end at the image's edge.
    The map is not evidence of its own: what a network answers to is not asked anew. Works with maps of any method.

    Source: He, Sun and Tang, Guided Image Filtering, TPAMI 2013, equations 14 to 16 and 19; on a raster as in He and
    Sun, Fast Guided Filter, 2015. `RADIUS` and `SMOOTHNESS` are the same for all images (docs/algorithm.md).

    Raises InputError for pictures of another number or size than the maps.
    """
    if pictures.dim() != 4 or (len(pictures), *pictures.shape[2:]) != tuple(maps.shape):
        raise InputError(f"pictures are {tuple(pictures.shape)}; for maps {tuple(maps.shape)} they are (N, C, H, W)")
    maps, pictures = maps.float(), pictures.float()
    _, height, width = maps.shape
    size = (min(_CELLS, height), min(_CELLS, width))
    reach = RADIUS * math.hypot(height, width)
    radii = (max(1, round(reach * size[0] / height)), max(1, round(reach * size[1] / width)))
    colours = functional.adaptive_avg_pool2d(pictures, size)
    told = functional.adaptive_avg_pool2d(maps[:, None], size)
    slopes, offset = _linear_in_colours(told, colours, radii)
    lines = functional.interpolate(torch.cat([slopes, offset], 1), (height, width), mode="bilinear")
    found = lines[:, -1]
    for slope, colour in zip(lines[:, :-1].unbind(1), pictures.unbind(1), strict=True):
        found = torch.addcmul(found, slope, colour)
    found = found.clamp(min=0)
    peak, before = found.amax((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(peak > 0, found * (before / peak), maps)


def _linear_in_colours(told: Tensor, colours: Tensor, radii: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return slopes (N, C, R, S) and offset (N, 1, R, S) of the maps (N, 1, R, S) in the colours, over all windows."""
    middle = colours.mean((2, 3), keepdim=True)  # of each image, since variances are differences of squares
    colours = colours - middle
    count = colours.shape[1]
    centre, level = _window_means(colours, radii), _window_means(told, radii)
    products = (colours[:, :, None] * colours[:, None]).flatten(1, 2)
    squares = _window_means(products, radii).view(len(products), count, count, *products.shape[2:])
    variances = squares - centre[:, :, None] * centre[:, None]
    together = _window_means(colours * told, radii) - centre * level
    least = (SMOOTHNESS * colours.square().mean((1, 2, 3))).clamp(min=_LEAST_VARIANCE)
    ridge = least[:, None, None, None, None] * torch.eye(count, device=colours.device)
    systems = variances.permute(0, 3, 4, 1, 2) + ridge
    solved, _ = torch.linalg.solve_ex(systems, together.permute(0, 2, 3, 1)[..., None])  # which does not wait for a GPU
    slopes = solved[..., 0].permute(0, 3, 1, 2)
    offset = level - (slopes * centre).sum(1, keepdim=True)
    slopes, offset = _window_means(slopes, radii), _window_means(offset, radii)
    return slopes, offset - (slopes * middle).sum(1, keepdim=True)


def _window_means(planes: Tensor, radii: tuple[int, int]) -> Tensor:
    """Return the means over windows of 2 r + 1 cells a side, of those cells that lie in the image."""
    rows, cols = (_window(length, radius, planes) for length, radius in zip(planes.shape[2:], radii, strict=True))
    return rows @ planes @ cols.mT


def _window(length: int, radius: int, like: Tensor) -> Tensor:
    """Return the (length, length) matrix that takes the mean of the positions within `radius` of each."""
    place = torch.arange(length, device=like.device)
    within = ((place[:, None] - place).abs() <= radius).to(like.dtype)
    return within / within.sum(1, keepdim=True)
