"""Localization: whether the box for a class hits, for every method and box rule.

N images, B true boxes of an image at most, T settings of a box rule, S splits of the images into halves.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
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
from fixcore.metrics.localization import HIT, Localization
from pipeline.annotated import AnnotatedImage
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import Batch, asked_classes, batches, halves
from pipeline.evaluate.request import Request
from pipeline.evaluate.table import Cell, Table

THRESHOLDS = tuple(at / 100 for at in (2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60))
PENALTIES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
SPLITS = 64
"""How often the images are halved to choose a setting on the one half and count it on the other."""
_COARSE = 56
"""Cells of the raster on which the max-sum box is sought: its time grows with the cube of the side."""

BOXES = ("method", "box rule", "setting")


@dataclass(slots=True)
class _Measured:
    """What one method's boxes came to, gathered batch by batch."""

    ious: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    """By box rule, (N,) or (N, T)."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """What one way to draw a box came to."""

    method: str
    rule: str
    setting: str | None
    iou: Tensor
    """float (S, N): with the setting that was chosen on the other half; (1, N) where there is nothing to choose."""
    best: tuple[float | None, float | None] = (None, None)
    """MaxBoxAcc and MaxBoxAccV2, of thresholds."""

    @property
    def hits(self) -> Tensor:
        """Share of splits in which each image's box hits, float (N,)."""
        return (self.iou >= HIT).float().mean(0)


def localize(request: Request) -> list[Table]:
    """ILSVRC's localisation errors, GT-known accuracy, MaxBoxAcc and MaxBoxAccV2 of each method and box rule.

    Where images have no class, the box is the predicted one's, the object to hit is an image's largest, or all that its
    mask shows, and there are no classification errors. Settings of a rule are chosen on one half of the images and
    counted on the other, both ways, for many halves, told by the images' names (Choe et al. choose on held-out images).
    Raises DatasetError where some images have a class and others none, or none has an object.
    """
    ids = asked_classes(request.subject, request.dataset)
    measured = {method: _Measured() for method in request.methods}
    ranks: list[Tensor] = []
    plain: dict[str, list[Tensor]] = {"whole image": [], "centred 75 %": []}
    shown: list[AnnotatedImage] = []
    marked: list[Tensor] = []
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        shown += batch.shown
        logits = request.subject.graph.classify(batch.images).float().cpu()
        label, truths = batch.asked(request.subject, ids, logits)
        marked.append(~truths[:, :, 0].isnan().all(1))
        ranks.append((logits > logits.gather(1, label[:, None])).sum(1))
        for method, found in measured.items():
            _gather(request, method, found, batch, label, truths)
        _, _, side = batch.pixels.shape[:3]
        for name, boxes in zip(plain, whole_and_centred(len(label), side, side), strict=True):
            plain[name].append(best_iou(boxes, truths))
        request.advance(len(batch.shown))
    if not shown:
        return [Table("Localization", (*BOXES,), (), request.notes("nothing could be read"))]
    known = torch.cat(marked)
    if not bool(known.any()):
        raise DatasetError("no image of the dataset has an object to hit; localization needs boxes or masks")
    rank = None if ids is None else torch.cat(ranks)[known]
    half = halves(shown, SPLITS)[:, known]
    drawn = [one for method, found in measured.items() for one in _drawn(method, found, known, half)]
    drawn += [_Drawn(name, "-", None, torch.cat(ious)[None, known]) for name, ious in plain.items()]
    asked = "the image's class" if ids is not None else "the predicted class; to hit: the largest object, or the mask"
    notes = request.notes(
        f"errors and accuracies are shares of the images; box of {asked}; setting: share of the map's maximum, or "
        f"max-sum box's penalty, chosen on the other half of the images, mean of {SPLITS} ways to halve them"
    )
    if not bool(known.all()):
        notes += (f"{int((~known).sum()):,} images have no object to hit; they are left out",)
    tables = [
        Table(
            f"Localization: {request.subject.name}",
            (*BOXES, "top-1 error", "top-5 error", "if correct", "MaxBoxAcc", "MaxBoxAccV2", "GT-known", "+-"),
            tuple(_row(one, rank) for one in drawn),
            notes,
            plotted="GT-known",
        )
    ]
    if int(known.sum()) > 1:
        tables.append(_compared(drawn, request.methods[0].name))
    fastest = min((found.seconds for found in measured.values()), default=math.nan)
    costs = tuple(
        (method.name, 1000 * found.seconds / len(shown), found.seconds / fastest) for method, found in measured.items()
    )
    said = ("batch by batch, the forward pass included",)
    return [*tables, Table("Time", ("method", "ms per image", "times the fastest"), costs, said)]


def coarse_max_sum_boxes(maps: Tensor, penalty: float) -> Tensor:
    """Return `max_sum_boxes` sought on a raster of at most 56 x 56 cells, in the maps' pixels."""
    _, height, width = maps.shape
    rows, cols = min(_COARSE, height), min(_COARSE, width)
    coarse = functional.adaptive_avg_pool2d(maps[:, None], (rows, cols))[:, 0]
    return max_sum_boxes(coarse, penalty) * torch.tensor([width / cols, height / rows] * 2, device=maps.device)


def _gather(request: Request, method: Method, found: _Measured, batch: Batch, label: Tensor, truths: Tensor) -> None:
    if not found.ious:  # the first call compiles and allocates, which is not the method's cost
        explain(method, request.subject.graph, batch.images[:1], label[:1].to(batch.images.device))
    start = time.perf_counter()
    told: Explained = explain(method, request.subject.graph, batch.images, label.to(batch.images.device))
    maps, boxes = told.maps.cpu(), told.boxes.cpu()
    found.seconds += time.perf_counter() - start

    def ious(draw: Callable[[Tensor, float], Tensor], settings: tuple[float, ...]) -> Tensor:
        return torch.stack([best_iou(draw(maps, setting), truths) for setting in settings], 1)

    found.ious["moment"].append(best_iou(boxes, truths))
    by_region = [threshold_region_boxes(maps, setting) for setting in THRESHOLDS]
    found.ious["threshold"].append(torch.stack([best_iou(boxes[:, 0], truths) for boxes in by_region], 1))
    found.ious["any_region"].append(torch.stack([best_iou(boxes, truths) for boxes in by_region], 1))
    found.ious["max_sum"].append(ious(coarse_max_sum_boxes, PENALTIES))
    if request.cut:
        found.ious["cut"].append(best_iou(region_boxes(graph_cut_masks(maps, batch.pictures))[:, 0], truths))
    if method.threshold is not None:
        found.ious["published"].append(best_iou(threshold_boxes(maps, method.threshold), truths))


def _drawn(method: Method, found: _Measured, known: Tensor, half: Tensor) -> list[_Drawn]:
    iou = {rule: torch.cat(own)[known] for rule, own in found.ious.items()}
    drawn = []
    if method.threshold is not None:
        drawn.append(_Drawn(method.name, "published threshold", str(method.threshold), iou["published"][None]))
    best = max_box_accuracy(iou["threshold"], iou["any_region"])
    drawn.append(_Drawn(method.name, "threshold", *_chosen(iou["threshold"], half, THRESHOLDS), best))
    drawn.append(_Drawn(method.name, "max-sum", *_chosen(iou["max_sum"], half, PENALTIES)))
    default = "moments (default)" if method.name == "fixations" else "moments"
    drawn.append(_Drawn(method.name, default, None, iou["moment"][None]))
    if "cut" in iou:
        drawn.append(_Drawn(method.name, "graph cut", None, iou["cut"][None]))
    return drawn


def _chosen(iou: Tensor, half: Tensor, settings: tuple[float, ...]) -> tuple[str, Tensor]:
    """Take of (N, T), for each half of each split, the column that hits most often in the other; ties to the first.

    Returns the settings that were chosen most often, two at most, and float (S, N).
    """
    hit = (iou >= HIT).float()
    at = torch.stack([(side.float() @ hit).argmax(1) for side in (~half, half)])  # chosen there: 2 x S columns
    taken = torch.where(half, iou.T[at[0]], iou.T[at[1]])
    often = at.flatten().bincount(minlength=len(settings))
    order = [one for one in often.argsort(descending=True, stable=True).tolist() if often[one]]
    return ", ".join(f"{settings[one]:g}" for one in order[:2]), taken


def _row(drawn: _Drawn, rank: Tensor | None) -> tuple[Cell, ...]:
    share = float(drawn.hits.mean())
    error = math.sqrt(share * (1 - share) / len(drawn.hits))
    errors: tuple[float | None, ...] = (None, None, None)
    if rank is not None:
        told = [localization(iou >= HIT, rank) for iou in drawn.iou]

        def mean(of: Callable[[Localization], float]) -> float:
            return sum(map(of, told)) / len(told)

        errors = (
            mean(lambda one: one.top1_error),
            mean(lambda one: one.top5_error),
            mean(lambda one: one.accuracy_if_correct),
        )
    return (drawn.method, drawn.rule, drawn.setting, *errors, *drawn.best, share, error)


def _compared(drawn: list[_Drawn], first: str) -> Table:
    """What each method's best box hits more than the first one's from its moments, image by image."""
    own = next(one for one in drawn if one.method == first and one.rule.startswith("moments"))
    best: dict[str, _Drawn] = {}
    for one in drawn:
        if one is not own and (one.method not in best or one.hits.mean() > best[one.method].hits.mean()):
            best[one.method] = one
    rows = []
    for one in best.values():
        more = one.hits - own.hits
        rows.append((one.method, one.rule, float(more.mean()), float(more.std() / math.sqrt(len(more)))))
    return Table(
        f"Less {first}, {own.rule}",
        ("method", "its best box", "GT-known", "+-"),
        tuple(rows),
        ("each image's difference: its mean, and the standard error of that",),
    )
