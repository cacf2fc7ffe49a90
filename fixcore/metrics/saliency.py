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
_FINE = 257
"""Steps of a level that are told apart where values are ordered: 16 bits in all."""


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


class MaskTally:
    """Scores of maps against masks, gathered batch by batch; neither is kept.

    Thresholds are 0/255 to 255/255; a pixel belongs to the mask from the threshold on. An image without object counts
    recall 0, a threshold without a pixel precision 0. Precision equals recall, over all pixels pooled, where as many
    pixels are shown as belong to objects: it is the share of objects among that many pixels of the largest values, and
    pixels of one value (to 1/65,535) that are shown in part count in proportion. Sources: Achanta et al.,
    Frequency-tuned Salient Region Detection; Gandikota and Mishra, How You See Me, Table I; Marszalek and Schmid,
    Accurate Object Localization with Shape Masks (Graz-02); CNN Fixations, IV-C (Table II).
    """

    def __init__(self) -> None:
        self._images = 0
        self._sums = torch.zeros(4, _LEVELS + 1, dtype=torch.float64)
        """Precision, recall, intersection over union and share of wrong pixels at each threshold, over images."""
        self._error = 0.0
        self._pixels = torch.zeros(2, _FINE * _LEVELS + 1, dtype=torch.int64)
        """How many pixels have each value: of the ground, of objects."""

    def add(self, maps: Tensor, masks: Tensor) -> None:
        """Count maps, float (N, H, W) in [0, 1], against masks, bool (N, H, W); sizes may differ between batches.

        Raises InputError for shapes that differ and maps outside [0, 1].
        """
        if maps.shape != masks.shape or maps.dim() != 3 or masks.dtype != torch.bool:
            raise InputError(f"maps {tuple(maps.shape)} and bool masks {tuple(masks.shape)} must be (N, H, W) alike")
        if not bool(((maps >= 0) & (maps <= 1)).all()):
            raise InputError("maps must lie in [0, 1]; divide each by its maximum")
        value = torch.floor((maps.double() * _LEVELS + 1e-6) * _FINE).long()
        # A pixel with value v is in the masks of the thresholds 0..level: counting levels once gives all thresholds.
        level = value // _FINE
        inside, outside = _counted(level, masks), _counted(level, ~masks)
        objects = masks.flatten(1).sum(1, keepdim=True).double()
        precision = inside / (inside + outside).clamp(min=1)
        recall = inside / objects.clamp(min=1)
        iou = inside / (objects + outside).clamp(min=1)
        wrong = (objects - inside + outside) / masks.shape[1:].numel()
        self._images += len(maps)
        self._sums += torch.stack([precision, recall, iou, wrong]).sum(1).cpu()
        self._error += float((maps.double() - masks.double()).abs().mean((1, 2)).sum())
        for kind, chosen in enumerate((~masks, masks)):
            self._pixels[kind] += torch.bincount(value[chosen], minlength=self._pixels.shape[1]).cpu()

    def scores(self) -> MaskScores:
        """Return the scores of all that was added; InputError for masks without any object."""
        if not int(self._pixels[1].sum()):
            raise InputError("no mask holds an object, so precision never equals recall")
        precision, recall, iou, wrong = self._sums / self._images
        weighted = BETA_SQUARED * precision + recall
        f = torch.where(weighted > 0, (1 + BETA_SQUARED) * precision * recall / weighted.clamp(min=1e-12), 0.0)
        best = int(f.argmax())
        return MaskScores(
            max_f=float(f[best]),
            threshold=best / _LEVELS,
            precision=float(precision[best]),
            recall=float(recall[best]),
            iou=float(iou[best]),
            accuracy=float(1 - wrong[best]),
            mean_absolute_error=self._error / self._images,
            precision_at_equal_error=self._precision_at_equal_error(),
        )

    def _precision_at_equal_error(self) -> float:
        count = int(self._pixels[1].sum())
        from_above = self._pixels.flip(1)
        shown = from_above.sum(0).cumsum(0)
        edge = int(torch.searchsorted(shown, count))
        tied, objects = int(from_above[:, edge].sum()), int(from_above[1, edge])
        part = (count - (int(shown[edge]) - tied)) / tied
        return (int(from_above[1, :edge].sum()) + part * objects) / count


def mask_scores(maps: Tensor, masks: Tensor) -> MaskScores:
    """Return MSRA-B's and Graz-02's measures of maps, float (N, H, W) in [0, 1], against bool masks (N, H, W).

    What each is stands at `MaskTally`. Raises InputError for shapes that differ, maps outside [0, 1] and masks without
    any object.
    """
    tally = MaskTally()
    tally.add(maps, masks)
    return tally.scores()


def _counted(level: Tensor, chosen: Tensor) -> Tensor:
    """Return how many of the chosen pixels are shown at each threshold, float64 (N, 256)."""
    count = torch.zeros(len(level), _LEVELS + 1, dtype=torch.float64, device=level.device)
    count.scatter_add_(1, level.flatten(1), chosen.flatten(1).double())
    return count.flip(1).cumsum(1).flip(1)
