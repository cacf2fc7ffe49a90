"""Regions of a mask: cells that touch. The labelling is SciPy's, one mask after the other, on the CPU.

N masks of H x W cells.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_TOUCHING = np.ones((3, 3), dtype=np.int8)


def largest_regions(masks: Tensor) -> Tensor:
    """Return of each mask, bool (N, H, W), the largest region alone; of equal ones the first in row-major order."""
    found = np.zeros(masks.shape, dtype=bool)
    for mask, kept in zip(masks.cpu().numpy(), found, strict=True):
        regions, count = ndimage.label(mask, structure=_TOUCHING)
        if count:
            kept[:] = regions == 1 + np.bincount(regions.ravel())[1:].argmax()
    return torch.from_numpy(found).to(masks.device)


def region_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around the regions of each mask, float32 (N, R, 4) xyxy, the largest region's first.

    `masks` is bool (N, H, W); R is the most regions of any, at least 1. Cells that touch, also at a corner, are one
    region; of equal ones the first in row-major order comes first. Rows of NaN where a mask has fewer.
    """
    found = []
    for mask in masks.cpu().numpy():
        regions, count = ndimage.label(mask, structure=_TOUCHING)
        places = ndimage.find_objects(regions)
        boxes = np.array([(cols.start, rows.start, cols.stop, rows.stop) for rows, cols in places], dtype=np.float32)
        size = np.bincount(regions.ravel(), minlength=count + 1)[1:]
        found.append(torch.from_numpy(boxes.reshape(count, 4)[np.argsort(-size, kind="stable")]))
    padded = torch.full((len(found), max([1, *map(len, found)]), 4), torch.nan)
    for row, own in zip(padded, found, strict=True):
        row[: len(own)] = own
    return padded.to(masks.device)
