"""Whether the box hits the object.

N images, B true boxes of an image at most, T thresholds. True boxes are float (N, B, 4) xyxy with exclusive x1 and y1,
rows of NaN where an image has fewer. Integer boxes whose last pixel is included have x1 + 1 and y1 + 1; their
intersection over union is then the one that counts pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fixcore.errors import InputError
from fixcore.evidence.boxes import box_iou

HIT = 0.5
"""Intersection over union from which a box hits."""
V2 = (0.3, 0.5, 0.7)
"""Those over which MaxBoxAccV2 takes the mean."""


@dataclass(frozen=True, slots=True)
class Localization:
    """Shares of the images, in [0, 1]; NaN where there is none to count."""

    top1_error: float
    """The most probable class is not the true one, or its box hits none (ILSVRC)."""
    top5_error: float
    """None of the five most probable classes is the true one with a box that hits (ILSVRC)."""
    classification_error: float
    """The most probable class is not the true one."""
    accuracy_if_correct: float
    """Of the images whose most probable class is the true one: the box hits."""
    gt_known: float
    """The box for the true class hits, whatever was predicted."""


def best_iou(boxes: Tensor, truths: Tensor) -> Tensor:
    """Return the largest intersection over union of each image's box with a true one, float32 (N,); 0 for no box.

    `boxes` is (N, 4), or (N, R, 4) where any of R boxes may hit; `truths` (N, B, 4). Raises InputError where they
    disagree.
    """
    counted = boxes.dim() in (2, 3) and truths.dim() == 3 and len(boxes) == len(truths)
    if not counted or boxes.shape[-1] != 4 or truths.shape[-1] != 4:
        raise InputError(
            f"boxes are (N, 4) or (N, R, 4) and true boxes (N, B, 4), not {tuple(boxes.shape)}, {tuple(truths.shape)}"
        )
    by_box = boxes.float().reshape(len(boxes), boxes.shape[1] if boxes.dim() == 3 else 1, 1, 4)
    if by_box.shape[1] == 0 or truths.shape[1] == 0:
        return torch.zeros(len(boxes))
    return torch.nan_to_num(box_iou(by_box, truths[:, None].float()), nan=0.0).amax((1, 2))


def localization(hit: Tensor, rank: Tensor) -> Localization:
    """Return ILSVRC's localisation errors, and how often the true class's box hits.

    `hit` is bool (N,): whether the box for the true class hits, that is, has an intersection over union of at least
    `HIT` with any true box; `rank` int64 (N,): how many classes the network holds more probable than the true one. No
    other class's box matters, since a wrong class counts as an error wherever its box lies. Source: Russakovsky et al.,
    ImageNet Large Scale Visual Recognition Challenge, 4.2; GT-known: Choe et al.
    """
    correct = rank == 0
    return Localization(
        top1_error=1 - _share(hit & correct),
        top5_error=1 - _share(hit & (rank < 5)),
        classification_error=1 - _share(correct),
        accuracy_if_correct=_share(hit[correct]),
        gt_known=_share(hit),
    )


def max_box_accuracy(largest: Tensor, best: Tensor) -> tuple[float, float]:
    """Return MaxBoxAcc and MaxBoxAccV2 of boxes at T thresholds: the share of images hit at the dataset's best one.

    `largest` and `best` are (N, T): each image's intersection over union at each threshold, of the largest region's
    box (`best_iou` of `threshold_boxes`), and the best of all regions' (of `threshold_region_boxes`). The first figure
    is of the largest regions and hits from 0.5; the second of the best, the mean over 0.3, 0.5 and 0.7, each at its own
    best threshold. Source: Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, 3.3, and its
    journal version, 3.4.
    """

    def at(iou: Tensor, least: float) -> float:
        return float((iou >= least).float().mean(0).max())

    return at(largest, HIT), sum(at(best, least) for least in V2) / len(V2)


def whole_and_centred(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return what knows nothing: the box of the whole image, and the centred one of 75 % of each side, (N, 4) each."""
    whole = torch.tensor([0.0, 0.0, width, height])
    centred = torch.tensor([width / 8, height / 8, width * 7 / 8, height * 7 / 8])
    return whole.expand(count, 4), centred.expand(count, 4)


def class_proposals(boxes: Tensor, truths: Tensor, owner: Tensor) -> dict[int, tuple[float, float]]:
    """Return each class's recall and precision of one proposed box per image, class -> (recall, precision).

    `boxes` is (N, 4); `truths` (N, B, 4) all objects and `owner` int64 (N, B) their classes, -1 for none. Recall: of
    the class's objects, the share that their image's box hits. Precision: of the images that hold an object of the
    class, the share whose box hits one of the class. A hit is an intersection over union of at least 0.5. Source: CNN
    Fixations, IV-B (Table III), which leaves the precision's base open.
    """
    hit = torch.nan_to_num(box_iou(boxes[:, None].float(), truths.float()), nan=0.0) >= HIT
    found = {}
    for label in sorted(set(owner.flatten().tolist()) - {-1}):
        own = owner == label
        images = own.any(1)
        found[label] = (_share(hit[own]), _share((hit & own).any(1)[images]))
    return found


def _share(of: Tensor) -> float:
    return float(of.float().mean()) if of.numel() else float("nan")
