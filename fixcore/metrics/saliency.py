"""Whether the map covers the object, against masks, pixel by pixel.

N images, H x W pixels. Maps are float (N, H, W) in [0, 1], each scaled to a maximum of 1; masks are bool (N, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fixcore.errors import InputError

BETA_SQUARED = 0.3
"""Weight of recall against precision in the F-measure, as the field has it (Achanta et al.)."""
_LEVELS = 255


@dataclass(frozen=True, slots=True)
class MaskScores:
    """How well maps cover masks; all in [0, 1]."""

    max_f: float
    """Largest F-measure (beta squared 0.3) over thresholds, of precision and recall averaged over images."""
    threshold: float
    """Where it is reached."""
    precision: float
    """There: share of the mask that is object, mean over images."""
    recall: float
    """There: share of the object that is in the mask, mean over images."""
    iou: float
    """There: intersection over union of mask and object, mean over images."""
    accuracy: float
    """There: share of pixels told rightly, mean over images."""
    mean_absolute_error: float
    """Mean distance of the map's values to the mask's 0 and 1, over pixels, then images; low is good."""
    precision_at_equal_error: float
    """Pixel precision where it equals recall, all pixels of all images pooled (Graz-02)."""


def mask_scores(maps: Tensor, masks: Tensor) -> MaskScores:
    """Return MSRA-B's and Graz-02's measures.

    Thresholds are 0/255 to 255/255; a pixel belongs to the mask from the threshold on. An image without object counts
    recall 0, a threshold without a pixel precision 0. Sources: Achanta et al., Frequency-tuned Salient Region
    Detection; Gandikota and Mishra, How You See Me, Table I; Marszalek and Schmid (Graz-02).

    Raises InputError for shapes that differ, maps outside [0, 1] and masks without any object.
    """
    if maps.shape != masks.shape or maps.dim() != 3 or masks.dtype != torch.bool:
        raise InputError(f"maps {tuple(maps.shape)} and bool masks {tuple(masks.shape)} must be (N, H, W) alike")
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise InputError("maps must lie in [0, 1]; divide each by its maximum")
    # A pixel with value v is in the masks of the thresholds 0..level: counting levels once gives all thresholds.
    level = torch.floor(maps.double() * _LEVELS + 1e-6).long()
    inside, outside = _counted(level, masks), _counted(level, ~masks)
    shown = inside + outside
    objects = masks.flatten(1).sum(1, keepdim=True).double()
    pixels = masks[0].numel()
    precision = (inside / shown.clamp(min=1)).mean(0)
    recall = (inside / objects.clamp(min=1)).mean(0)
    weighted = BETA_SQUARED * precision + recall
    f = torch.where(weighted > 0, (1 + BETA_SQUARED) * precision * recall / weighted.clamp(min=1e-12), 0.0)
    best = int(f.argmax())
    iou = (inside / (objects + outside).clamp(min=1)).mean(0)
    wrong = (objects - inside + outside) / pixels
    return MaskScores(
        max_f=float(f[best]),
        threshold=best / _LEVELS,
        precision=float(precision[best]),
        recall=float(recall[best]),
        iou=float(iou[best]),
        accuracy=float(1 - wrong.mean(0)[best]),
        mean_absolute_error=float((maps - masks.to(maps.dtype)).abs().mean()),
        precision_at_equal_error=precision_at_equal_error_rate(maps, masks),
    )


def precision_at_equal_error_rate(maps: Tensor, masks: Tensor) -> float:
    """Return the pixel precision at the threshold where it equals recall, in [0, 1], all pixels pooled.

    Precision equals recall where as many pixels are shown as belong to objects: it is the share of objects among that
    many pixels of the largest values. Pixels of one value that are shown in part count in proportion. Source:
    Marszalek and Schmid, Accurate Object Localization with Shape Masks; CNN Fixations, IV-C (Table II).

    Raises InputError for masks without any object.
    """
    count = int(masks.sum())
    if count == 0:
        raise InputError("no mask holds an object, so precision never equals recall")
    values, truth = maps.flatten(), masks.flatten()
    edge = values.kthvalue(values.numel() - count + 1).values
    above, tied = values > edge, values == edge
    part = (count - int(above.sum())) / int(tied.sum())
    return (int((above & truth).sum()) + part * int((tied & truth).sum())) / count


def _counted(level: Tensor, chosen: Tensor) -> Tensor:
    """Return how many of the chosen pixels are shown at each threshold, float64 (N, 256)."""
    count = torch.zeros(len(level), _LEVELS + 1, dtype=torch.float64, device=level.device)
    count.scatter_add_(1, level.flatten(1), chosen.flatten(1).double())
    return count.flip(1).cumsum(1).flip(1)
