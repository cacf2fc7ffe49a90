"""Protocols of maps: saliency, faithfulness, sanity, sensitivity."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional

from fixcore.baselines import graph_cut_masks, occlusion
from fixcore.evidence.guided_filter import guided_filter
from fixcore.evidence.saliency import SIGMA, blurred
from fixcore.methods import explain
from fixcore.metrics import MaskTally, insertion_and_deletion, layers_of, map_overlap, rank_correlation, shuffled
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import batches
from pipeline.evaluate.request import Request
from pipeline.evaluate.subject import Subject
from pipeline.evaluate.table import Cell, Table

_KINDS = ("cascading", "independent", "another image")
_STAGES = 5
"""Steps of a cascade, and layers that are shuffled alone."""


def cover(request: Request) -> list[Table]:
    """Score the maps of the predicted class against masks: Graz-02's and MSRA-B's measures.

    Maps of methods that tell neighbouring pixels apart are scored as they are and blurred as fixations are; each map
    also as it is drawn along the picture's edges (`guided_filter`; an audit's masks are those of fixations), and on
    request the object that it points at, cut out of the picture.
    """
    found: defaultdict[str, MaskTally] = defaultdict(MaskTally)
    marked = False
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        masks = batch.masks(request.subject.input)
        marked |= bool(masks.any())
        target = request.subject.graph.classify(batch.images).argmax(1)
        for method in request.methods:
            name, maps = method.name, explain(method, request.subject.graph, batch.images, target).maps.cpu()
            found[name].add(_scaled(maps), masks)
            if request.cut:
                found[f"{name}, cut out"].add(graph_cut_masks(maps, batch.pictures).float(), masks)
            if method.by_pixel:
                name, maps = f"{name}, blurred", _blurred(maps)
                found[name].add(_scaled(maps), masks)
            found[f"{name}, along edges"].add(_scaled(guided_filter(maps, batch.pictures)), masks)
        found["centre of the image"].add(_centre(masks.shape[1]).expand(len(masks), -1, -1), masks)
        request.advance(len(batch.shown))
    if not marked:
        raise DatasetError("no image of the dataset has a mask; saliency needs masks (MSRA-B, ECSSD, Graz-02)")
    scores = {name: asdict(tally.scores()) for name, tally in found.items()}
    names = ("precision_at_equal_error", "mean_absolute_error", "accuracy", "precision", "recall", "iou", "threshold")
    rows = tuple((name, *(told[one] for one in (*names, "max_f"))) for name, told in scores.items())
    columns = ("method", "EER precision", "MAE", "accuracy", "precision", "recall", "IoU", "threshold", "max-F")
    notes = request.notes(
        "maps of the predicted class; precision at equal error: all pixels pooled; the others: means over images, at "
        "the threshold (share of the maximum) with the largest F-measure, beta squared 0.3; MAE needs no threshold"
    )
    return [Table(f"Saliency: {request.subject.name}", columns, rows, notes)]


def need(request: Request) -> list[Table]:
    """Insertion, deletion, and the rank correlation with the occlusion map, for the predicted class."""
    names = [method.name for method in request.methods if method.explain is not occlusion]
    scores: dict[str, list[Tensor]] = {name: [] for name in [*names, "occlusion", "nothing (the centre)"]}
    for batch in batches(request.subject, request.dataset, request.batch_size, request.problems):
        graph, images = request.subject.graph, batch.images
        target = graph.classify(images).argmax(1)
        covered = occlusion(graph, images, target)
        maps = {one.name: explain(one, graph, images, target).maps for one in request.methods if one.name in names}
        maps["occlusion"] = covered
        maps["nothing (the centre)"] = _centre(images.shape[2]).to(images.device).expand(len(images), -1, -1)
        for name, one in maps.items():
            told = insertion_and_deletion(graph, images, target, one)
            agrees = rank_correlation(_coarse(one), _coarse(covered))
            scores[name].append(torch.stack([told.deletion, agrees, told.insertion], 1).cpu())
        request.advance(len(batch.shown))
    rows = tuple((name, *_means(found)) for name, found in scores.items() if found)
    notes = request.notes(
        "areas under the predicted class's probability (insertion: high is good, deletion: low); rank correlation with "
        "the occlusion map (a fifth of the side, in steps of a twentieth), both maps averaged over 28 x 28 cells"
    )
    measures = ("deletion", "rank correlation", "insertion")
    tables = [Table(f"Faithfulness: {request.subject.name}", ("method", *measures), rows, notes)]
    first, *others = [name for name, found in scores.items() if found]
    if len(torch.cat(scores[first])) > 1:
        compared = tuple(
            (other, measure, *numbers)
            for other in others
            for measure, numbers in zip(measures, _paired(scores[other], scores[first]), strict=True)
        )
        note = f"each image's difference to {first}: its mean, and the standard error of that"
        tables.append(Table(f"Less {first}", ("method", "measure", "difference", "+-"), compared, (note,)))
    return tables


def sane(request: Request) -> list[Table]:
    """How far maps still coincide with the trained network's when layers have lost their weights (Adebayo et al.)."""
    subject = request.subject
    if subject.module is None:
        raise DatasetError(
            "sanity changes a network's weights; an exported program's stay as they are: name its network"
        )
    layers = layers_of(subject.module)
    steps = sorted({round(at * (len(layers) - 1) / (_STAGES - 1)) for at in range(_STAGES)})
    others: list[tuple[str, int, Subject]] = []
    for step in steps:
        others.append(("cascading", step + 1, subject.with_module(shuffled(subject.module, layers[: step + 1]))))
        if step:
            others.append(("independent", step + 1, subject.with_module(shuffled(subject.module, [layers[step]]))))
    found: dict[tuple[str, int, str], list[Tensor]] = {}
    for batch in batches(subject, request.dataset, request.batch_size, request.problems):
        target = subject.graph.classify(batch.images).argmax(1)
        for method in request.methods:
            own = explain(method, subject.graph, batch.images, target).maps
            for kind, step, other in others:
                changed = explain(method, other.graph, batch.images, target).maps
                found.setdefault((kind, step, method.name), []).append(map_overlap(own, changed).cpu())
            if len(own) > 1:
                found.setdefault(("another image", 0, method.name), []).append(map_overlap(own, own.roll(1, 0)).cpu())
        request.advance(len(batch.shown))
    means = {key: float(torch.cat(one).nanmean()) for key, one in found.items()}
    order = [*((kind, step) for kind, step, _ in others), ("another image", 0)]
    rows = [
        (kind, None if step == 0 else step, *(means.get((kind, step, one.name)) for one in request.methods))
        for kind, step in sorted(order, key=lambda one: (_KINDS.index(one[0]), one[1]))
    ]
    notes = request.notes(
        f"overlap with the trained network's map of the same class, 1: the same; of {len(layers)} layers with weights "
        "from the output down, that many are shuffled (cascading) or that one alone (independent)"
    )
    columns = ("randomised", "layer", *(method.name for method in request.methods))
    return [Table(f"Sanity: {subject.name}", columns, tuple(rows), notes)]


def tell_apart(request: Request) -> list[Table]:
    """How far the maps of two classes of one image coincide: the predicted, the runner-up, and one at random."""
    subject = request.subject
    if subject.graph.classes < 2:
        raise DatasetError("sensitivity compares the evidence for two classes; the network has one output")
    found: dict[str, list[Tensor]] = {method.name: [] for method in request.methods}
    generator = torch.Generator().manual_seed(0)
    for batch in batches(subject, request.dataset, request.batch_size, request.problems):
        first, second = subject.graph.classify(batch.images).topk(2).indices.T
        chance = torch.randint(1, subject.graph.classes, first.shape, generator=generator).to(first.device)
        chance = (first + chance) % subject.graph.classes
        for method in request.methods:
            own, runner_up, other = (
                explain(method, subject.graph, batch.images, target).maps for target in (first, second, chance)
            )
            pairs = [map_overlap(own, runner_up), map_overlap(own, other), map_overlap(own, own.roll(1, 0))]
            found[method.name].append(torch.stack(pairs, 1).cpu())
        request.advance(len(batch.shown))
    rows = tuple((name, *_means(overlaps)) for name, overlaps in found.items() if overlaps)
    notes = request.notes("overlap of the maps of two classes, 1: the same evidence for both; for scale, of two images")
    columns = ("method", "runner-up", "class at random", "another image")
    return [Table(f"Sensitivity: {subject.name}", columns, rows, notes, plotted="class at random")]


def _paired(ones: list[Tensor], others: list[Tensor]) -> list[tuple[float, float]]:
    """Return the mean difference of two methods on the same images and its standard error, measure by measure."""
    difference = torch.cat(ones) - torch.cat(others)
    known = [one[~one.isnan()] for one in difference.T]
    return [(float(one.mean()), float(one.std() / math.sqrt(max(len(one), 1)))) for one in known]


def _means(parts: list[Tensor]) -> tuple[Cell, ...]:
    return tuple(torch.cat(parts).nanmean(0).tolist())


def _scaled(maps: Tensor) -> Tensor:
    peak = maps.amax((1, 2), keepdim=True)
    return (maps / torch.where(peak > 0, peak, 1.0)).clamp(0, 1)


def _coarse(maps: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(maps[:, None].float(), 28)[:, 0]


def _centre(side: int) -> Tensor:
    """A Gaussian in the middle, a quarter of the side wide: what knows nothing of the image."""
    along = torch.exp(-0.5 * ((torch.arange(side) + 0.5 - side / 2) / (side / 4)).square())
    return along[:, None] * along


def _blurred(maps: Tensor) -> Tensor:
    """Blur pointwise maps as fixations are."""
    return blurred(maps, SIGMA * math.hypot(*maps.shape[1:]))
