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
    """Return the box around the largest region of each mask, float32 (N, 4) xyxy; NaN for an empty mask.

    `masks` is bool (N, H, W). Cells that touch, also at a corner, are one region; of equal ones the first in row-major
    order counts.
    """
    boxes = torch.full((len(masks), 4), torch.nan)
    for at, mask in enumerate(masks.cpu().numpy()):
        regions, count = ndimage.label(mask, structure=_TOUCHING)
        if count:
            largest = 1 + int(np.bincount(regions.ravel())[1:].argmax())
            rows, cols = ndimage.find_objects((regions == largest).astype(np.int8))[0]
            boxes[at] = torch.tensor([cols.start, rows.start, cols.stop, rows.stop])
    return boxes.to(masks.device)
