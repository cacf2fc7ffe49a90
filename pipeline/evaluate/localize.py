"""Localization: whether the box for the true class hits, for every method and box rule.

N images, T settings of a box rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fixcore.baselines import graph_cut_masks
from fixcore.evidence.boxes import max_sum_boxes, threshold_boxes, threshold_region_boxes
from fixcore.evidence.regions import region_boxes
from fixcore.methods import Explained, Method, explain
from fixcore.metrics import best_iou, localization, max_box_accuracy, whole_and_centred
from fixcore.metrics.localization import HIT
from pipeline.annotated import AnnotatedImage
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import Batch, batches, halves
from pipeline.evaluate.request import Request
from pipeline.evaluate.table import Cell, Table

THRESHOLDS = tuple(at / 100 for at in (2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60))
PENALTIES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
_COARSE = 56
"""Cells of the raster on which the max-sum box is sought: its time grows with the cube of the side."""

BOXES = ("method", "box rule", "setting")


@dataclass(slots=True)
class _Measured:
    """Intersections over union of one method, gathered batch by batch."""

    published: list[Tensor] = field(default_factory=list)
    threshold: list[Tensor] = field(default_factory=list)
    any_region: list[Tensor] = field(default_factory=list)
    max_sum: list[Tensor] = field(default_factory=list)
    moment: list[Tensor] = field(default_factory=list)
    cut: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


def localize(request: Request) -> list[Table]:
    """ILSVRC's localisation errors, GT-known accuracy, MaxBoxAcc and MaxBoxAccV2 of each method and box rule.

    Settings of a rule are chosen on one half of the images and counted on the other, both ways; the halves are told by
    the images' names. Needs a class and boxes per image.
    """
    labels = [image.label for image in request.dataset.images]
    if any(label is None for label in labels):
        raise DatasetError(
            "localization needs one class per image (ILSVRC, or a table with labels); for several objects per image "
            "use pointing or proposals"
        )
    ids = request.subject.class_ids(request.dataset.labels)
    measured = {method: _Measured() for method in request.methods}
    ranks: list[Tensor] = []
    plain: dict[str, list[Tensor]] = {"whole image": [], "centred 75 %": []}
    shown: list[AnnotatedImage] = []
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        label = torch.tensor([ids[str(image.label)] for image in batch.shown])
        shown += batch.shown
        logits = request.subject.graph.classify(batch.images).float().cpu()
        ranks.append((logits > logits.gather(1, label[:, None])).sum(1))
        truths = batch.boxes_of([image.label for image in batch.shown])
        for method, found in measured.items():
            _gather(request, method, found, batch, label, truths)
        _, _, side = batch.pixels.shape[:3]
        for name, boxes in zip(plain, whole_and_centred(len(label), side, side), strict=True):
            plain[name].append(best_iou(boxes, truths))
        request.advance(len(batch.shown))
    if not shown:
        return [Table("Localization", (*BOXES,), (), request.notes("nothing could be read"))]
    rank, half = torch.cat(ranks), halves(shown)
    rows: list[tuple[Cell, ...]] = []
    for method, found in measured.items():
        rows += _rows(method, found, rank, half, len(shown))
    rows += [_row((name, "-", None), torch.cat(ious), rank) for name, ious in plain.items()]
    fastest = min((found.seconds for found in measured.values()), default=math.nan)
    notes = request.notes(
        "errors and accuracies are shares of the images; setting: share of the map's maximum, or the max-sum box's "
        "penalty, chosen on the other half of the images"
    )
    costs = tuple(
        (method.name, 1000 * found.seconds / len(shown), found.seconds / fastest) for method, found in measured.items()
    )
    return [
        Table(
            f"Localization: {request.subject.name}",
            (*BOXES, "top-1 error", "top-5 error", "if correct", "MaxBoxAcc", "MaxBoxAccV2", "GT-known", "+-"),
            tuple(rows),
            notes,
            plotted="GT-known",
        ),
        Table(
            "Time",
            ("method", "ms per image", "times the fastest"),
            costs,
            ("batch by batch, the forward pass included",),
        ),
    ]


def coarse_max_sum_boxes(maps: Tensor, penalty: float) -> Tensor:
    """Return `max_sum_boxes` sought on a raster of at most 56 x 56 cells, in the maps' pixels."""
    _, height, width = maps.shape
    rows, cols = min(_COARSE, height), min(_COARSE, width)
    coarse = functional.adaptive_avg_pool2d(maps[:, None], (rows, cols))[:, 0]
    return max_sum_boxes(coarse, penalty) * torch.tensor([width / cols, height / rows] * 2, device=maps.device)


def _gather(request: Request, method: Method, found: _Measured, batch: Batch, label: Tensor, truths: Tensor) -> None:
    if not found.moment:  # the first call compiles and allocates, which is not the method's cost
        explain(method, request.subject.graph, batch.images[:1], label[:1].to(batch.images.device))
    start = time.perf_counter()
    told: Explained = explain(method, request.subject.graph, batch.images, label.to(batch.images.device))
    maps, boxes = told.maps.cpu(), told.boxes.cpu()
    found.seconds += time.perf_counter() - start

    def ious(draw: Callable[[Tensor, float], Tensor], settings: tuple[float, ...]) -> Tensor:
        return torch.stack([best_iou(draw(maps, setting), truths) for setting in settings], 1)

    found.moment.append(best_iou(boxes, truths))
    by_region = [threshold_region_boxes(maps, setting) for setting in THRESHOLDS]
    found.threshold.append(torch.stack([best_iou(boxes[:, 0], truths) for boxes in by_region], 1))
    found.any_region.append(torch.stack([best_iou(boxes, truths) for boxes in by_region], 1))
    found.max_sum.append(ious(coarse_max_sum_boxes, PENALTIES))
    if request.cut:
        found.cut.append(best_iou(region_boxes(graph_cut_masks(maps, batch.pictures))[:, 0], truths))
    if method.threshold is not None:
        found.published.append(best_iou(threshold_boxes(maps, method.threshold), truths))


def _rows(method: Method, found: _Measured, rank: Tensor, half: Tensor, count: int) -> list[tuple[Cell, ...]]:
    rows = []
    if method.threshold is not None:
        rows.append(_row((method.name, "published threshold", method.threshold), torch.cat(found.published), rank))
    for rule, gathered, settings in (
        ("threshold", found.threshold, THRESHOLDS),
        ("max-sum", found.max_sum, PENALTIES),
    ):
        iou, told = _chosen(torch.cat(gathered), half, settings)
        best = (None, None) if rule != "threshold" else max_box_accuracy(*map(torch.cat, (gathered, found.any_region)))
        rows.append(_row((method.name, rule, told), iou, rank, best))
    rule = "moments (default)" if method.name == "fixations" else "moments"
    rows.append(_row((method.name, rule, None), torch.cat(found.moment), rank))
    if found.cut:
        rows.append(_row((method.name, "graph cut", None), torch.cat(found.cut), rank))
    return rows


def _chosen(iou: Tensor, half: Tensor, settings: tuple[float, ...]) -> tuple[Tensor, str]:
    """Take of (N, T) each half's column that hits most often in the other half, ties to the first."""
    hit = (iou >= HIT).float()
    at = [int(hit[half == side].mean(0).argmax()) if bool((half == side).any()) else 0 for side in (False, True)]
    taken = torch.where(half, iou[:, at[0]], iou[:, at[1]])
    told = sorted({settings[at[0]], settings[at[1]]})
    return taken, ", ".join(f"{setting:g}" for setting in told)


def _row(
    what: tuple[str, str, Cell],
    iou: Tensor,
    rank: Tensor,
    best: tuple[float | None, float | None] = (None, None),
) -> tuple[Cell, ...]:
    told = localization(iou >= HIT, rank)
    share = told.gt_known
    setting = None if what[2] is None else str(what[2])
    error = math.sqrt(share * (1 - share) / len(iou))
    return (*what[:2], setting, told.top1_error, told.top5_error, told.accuracy_if_correct, *best, share, error)
