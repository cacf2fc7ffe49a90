"""What the choices behind the evidence box are worth, on data with boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

import fixcore
from fixcore.evidence.boxes import moment_boxes
from fixcore.evidence.fixations import Fixations, drop_outliers
from fixcore.evidence.saliency import density, saliency_maps
from fixcore.metrics import best_iou
from fixcore.metrics.localization import HIT
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import asked_classes, batches
from pipeline.evaluate.localize import coarse_max_sum_boxes
from pipeline.evaluate.request import Request
from pipeline.evaluate.table import Cell, Table

Draw = Callable[[Fixations], Tensor]


def tune(request: Request) -> list[Table]:
    """Draw the evidence box of the true class by many rules, and count.

    Where images have no class: of the predicted one, against the largest object, or all that the mask shows. The
    default stands first; the others change one thing each: how points weigh, how wide a cell is, whether strays are
    dropped, what box is drawn.
    """
    rules = _rules()
    found: dict[str, list[Tensor]] = {name: [] for name in rules}
    ids = asked_classes(request.subject, request.dataset)
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        recording = request.subject.graph.record(batch.images)
        target, truths = batch.asked(request.subject, ids, recording.logits)
        known = ~truths[:, :, 0].isnan().all(1)
        contrast = fixcore.usual_contrast(recording.graph)
        fixations = fixcore.backtrack(recording, target, rules="finer", contrast=contrast)
        for name, draw in rules.items():
            found[name].append(best_iou(draw(fixations).cpu(), truths)[known])
        request.advance(len(batch.shown))
    count = sum(map(len, found["default"]))
    if not count:
        raise DatasetError("no image of the dataset has an object to compare with; tune needs boxes or masks")
    rows: list[tuple[Cell, ...]] = []
    for name, ious in found.items():
        iou = torch.cat(ious)
        share = float((iou >= HIT).float().mean())
        rows.append((name, float(iou.mean()), math.sqrt(share * (1 - share) / count), share))
    notes = request.notes(f"boxes of {count:,} images; share with an intersection over union of at least 0.5")
    return [Table(f"Tuning: {request.subject.name}", ("rule", "mean IoU", "+-", "hits"), tuple(rows), notes)]


def _rules() -> Mapping[str, Draw]:
    def moments(power: float, cells: float, *, strays: bool = True) -> Draw:
        def draw(fixations: Fixations) -> Tensor:
            kept = fixations if strays else drop_outliers(fixations)
            weighed = replace(kept, mass=kept.mass**power)
            return moment_boxes(density(weighed, cells * 2 * fixations.margin))

        return draw

    def of_map(draw: Callable[[Tensor, float], Tensor], setting: float) -> Draw:
        return lambda fixations: draw(saliency_maps(fixations), setting)

    return {
        "default": fixcore.evidence_boxes,
        "points weigh the root of their mass": moments(0.5, 1),
        "points weigh their mass": moments(1, 1),
        "no blur": moments(0, 0),
        "blur of half a cell": moments(0, 0.5),
        "blur of one and a half cells": moments(0, 1.5),
        "strays dropped": moments(0, 1, strays=False),
        "tight box around what is left, half a cell wider (paper)": _tight,
        **{
            f"threshold {share:g} of the map": of_map(fixcore.threshold_boxes, share)
            for share in (0.05, 0.1, 0.15, 0.2)
        },
        **{f"max-sum box, penalty {penalty:g}": of_map(coarse_max_sum_boxes, penalty) for penalty in (0.4, 0.5, 0.6)},
    }


def _tight(fixations: Fixations) -> Tensor:
    """The tightest box around the points that are left without strays (CNN Fixations, IV-A), half a cell wider."""
    kept = drop_outliers(fixations)
    boxes = torch.full((len(kept), 4), torch.nan)
    limit = torch.tensor([kept.width, kept.height])
    for at in range(len(kept)):
        own = kept.image == at
        if bool(own.any()):
            place = torch.stack([kept.col[own], kept.row[own]], 1).float().cpu()
            low = (place.amin(0) - kept.margin).clamp(min=0)
            boxes[at] = torch.cat([low, torch.minimum(place.amax(0) + 1 + kept.margin, limit)])
    return boxes
