"""Several objects per image: the pointing game, and one proposed box per image.

N images, B objects of an image at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fixcore.methods import explain
from fixcore.metrics import class_proposals, pointing_hits, whole_and_centred
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import Batch, batches
from pipeline.evaluate.request import Request
from pipeline.evaluate.table import Table


def point(request: Request) -> list[Table]:
    """The pointing game: does the map's maximum lie on an object of the class, within 15 pixels."""
    named = request.dataset.labels
    ids = request.subject.class_ids(named) if _known(request, named) else None
    hits: dict[str, list[tuple[str, bool]]] = {method.name: [] for method in request.methods}
    hits["centre of the image"] = []
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        for images, label, target, truths in _asked(request, batch, ids):
            for method in request.methods:
                maps = explain(method, request.subject.graph, images, target).maps.cpu()
                told = pointing_hits(maps, truths, blur=method.by_pixel).tolist()
                hits[method.name] += list(zip(label, told, strict=True))
            middle = torch.zeros(len(label), *images.shape[2:])
            middle[:, images.shape[2] // 2, images.shape[3] // 2] = 1
            hits["centre of the image"] += list(zip(label, pointing_hits(middle, truths).tolist(), strict=True))
        request.advance(len(batch.shown))
    rows = []
    for name, found in hits.items():
        by_class: dict[str, list[bool]] = {}
        for owner, hit in found:
            by_class.setdefault(owner, []).append(hit)
        means = [sum(own) / len(own) for own in by_class.values()]
        rows.append((name, len(found), _mean(means), _mean([hit for _, hit in found])))
    whose = "each class that an image holds" if ids is not None else "the predicted class, any object counts"
    notes = request.notes(f"share of peaks within 15 network pixels of an object; asked for {whose}")
    return [
        Table(
            f"Pointing game: {request.subject.name}",
            ("method", "asked", "mean over classes", "accuracy"),
            tuple(rows),
            notes,
        )
    ]


def propose(request: Request) -> list[Table]:
    """One box per image, for the predicted class, against all objects: mean recall and precision of their classes."""
    names = {label: at for at, label in enumerate(request.dataset.labels)}
    boxes: dict[str, list[Tensor]] = {method.name: [] for method in request.methods}
    boxes |= {"whole image": [], "centred 75 %": []}
    truths: list[Tensor] = []
    owners: list[Tensor] = []
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        with_object = torch.tensor([bool(own) for own in batch.owners])
        target = request.subject.graph.classify(batch.images).argmax(1)
        for method in request.methods:
            explained = explain(method, request.subject.graph, batch.images, target)
            boxes[method.name] += list(explained.boxes.cpu()[with_object])
        side = batch.pixels.shape[1]
        for name, box in zip(("whole image", "centred 75 %"), whole_and_centred(len(target), side, side), strict=True):
            boxes[name] += list(box[with_object])
        truths += list(batch.truths[with_object])
        owners += [torch.tensor([names[label] for label in own]) for own in batch.owners if own]
        request.advance(len(batch.shown))
    if not truths:
        raise DatasetError("no image of the dataset has a box; proposals need objects with boxes (VOC, COCO)")
    width = max(len(own) for own in owners)
    truth = torch.stack(
        [functional.pad(one[:width], (0, 0, 0, width - len(one[:width])), value=math.nan) for one in truths]
    )
    owner = torch.stack([functional.pad(own, (0, width - len(own)), value=-1) for own in owners])
    rows = []
    for name, found in boxes.items():
        scores = class_proposals(torch.stack(found), truth, owner)
        rows.append(
            (name, _mean([recall for recall, _ in scores.values()]), _mean([one for _, one in scores.values()]))
        )
    notes = request.notes(
        "one box per image at an intersection over union of 0.5, means over classes; difficult objects and crowds are "
        f"left out; {len(truths):,} images with objects of {len(names)} classes"
    )
    return [
        Table(f"Proposals: {request.subject.name}", ("method", "mean recall", "mean precision"), tuple(rows), notes)
    ]


def _known(request: Request, labels: list[str]) -> bool:
    try:
        request.subject.class_ids(labels)
    except DatasetError:
        return False
    return True


def _asked(
    request: Request, batch: Batch, ids: dict[str, int] | None
) -> list[tuple[Tensor, list[str], Tensor, Tensor]]:
    """Return images, names, targets and true boxes to ask for: each class of an image, or its prediction."""
    if ids is None:
        rows = [at for at, owners in enumerate(batch.owners) if owners]
        named = ["any object"] * len(rows)
        target = request.subject.graph.classify(batch.images[rows]).argmax(1) if rows else torch.zeros(0)
        truths = batch.truths[rows]
    else:
        pairs = [(at, label) for at, owners in enumerate(batch.owners) for label in sorted(set(owners))]
        rows, named = [at for at, _ in pairs], [label for _, label in pairs]
        target = torch.tensor([ids[label] for label in named], device=batch.images.device)
        truths = (
            torch.stack([batch.boxes_of([label] * len(batch.owners))[at] for at, label in pairs])
            if pairs
            else batch.truths[:0]
        )
    parts = range(0, len(rows), request.batch_size)
    size = request.batch_size
    return [
        (batch.images[rows[at : at + size]], named[at : at + size], target[at : at + size], truths[at : at + size])
        for at in parts
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
