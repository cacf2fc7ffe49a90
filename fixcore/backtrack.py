"""Walking back from what a network decided to the pixels that made it decide (CNN-Fixations)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, fx

from fixcore.errors import InputError, TargetError
from fixcore.evidence.fixations import Fixations, LayerPoints
from fixcore.network.class_map import averaged_places
from fixcore.network.finer import Finer, finer_points
from fixcore.network.graph import Recording
from fixcore.network.tokens import token_points
from fixcore.network.vectors_end import PLACES, pooled_points, settled
from fixcore.network.way import Way, holds_images
from fixcore.points import Points, is_vector, merged, ravel, unravel
from fixcore.rules import CHOOSES, FINER, LAYOUT, MASS, MIXES, PAPER, rule
from fixcore.rules.table import Options, Visit
from fixcore.start import (
    Contrast,
    Start,
    checked,
    class_starts,
    contrasted_weight,
    head_points,
    logit_points,
    neuron_points,
)

_RULES = {"mass": MASS, "finer": FINER, "paper": PAPER}


@overload
def backtrack(
    recording: Recording,
    target: Tensor | Start,
    *,
    rules: Literal["mass", "finer", "paper"] | Options = "mass",
    contrast: Contrast | None = None,
    stop_at: None = None,
) -> Fixations: ...


@overload
def backtrack(
    recording: Recording,
    target: Tensor | Start,
    *,
    rules: Literal["mass", "finer", "paper"] | Options = "mass",
    contrast: Contrast | None = None,
    stop_at: str,
) -> LayerPoints: ...


def backtrack(
    recording: Recording,
    target: Tensor | Start,
    *,
    rules: Literal["mass", "finer", "paper"] | Options = "mass",
    contrast: Contrast | None = None,
    stop_at: str | None = None,
) -> Fixations | LayerPoints:
    """Return the pixels that excited each target; or with `stop_at`, the neurons of that layer (paper, Fig. 5).

    `target` is int64 (N,), one class per recorded image (-1: none); of captions (N, S), one per word, explained in
    this order; or a Start that names images and targets freely.
    `rules` chooses between our default, "mass", which carries mass and begins at the class map; "finer", which goes on
    from a class map of few places to what speaks for these in a finer map, for about a quarter of a forward pass more
    per target (see `fixcore.network.finer`; elsewhere it is "mass"); and "paper", the published algorithm (Mopuri et
    al., CNN Fixations, III), which begins at the logit. `contrast` sets the class against others.

    The points of the result belong to `target[image]`; their mass sums to 1. At a layer (`Graph.layer` says what its
    name may be) it sums to less where evidence flows around the layer, by a skip connection or a parallel branch.
    Raises TargetError for an image, target or layer that does not exist, InputError for rules or a contrast that do
    not, MissingRule for an operation on the way without a rule.
    """
    graph = recording.graph
    end = graph.images if stop_at is None else graph.layer(stop_at)
    if isinstance(rules, str) and rules not in _RULES:
        raise InputError(f"there are no rules {rules!r}; they are {', '.join(_RULES)}")
    options = _RULES[rules] if isinstance(rules, str) else rules
    start = checked(recording, target) if isinstance(target, Start) else class_starts(recording, target)
    with torch.inference_mode():
        signed = options.vector == "net"
        node, points, margin = _begin(recording, start, options, contrast, signed, end)
        if node.meta["position"] < end.meta["position"]:
            raise TargetError(
                f"layer {stop_at!r} lies behind {node.name!r}, where the evidence begins; name a layer before it, or "
                "take rules='paper', which begin at the logits"
            )
        points, coarse = _walk(recording, start, node, points, options, end)
        if stop_at is not None:
            return _layer_points(recording, start, points, end)
        if signed:
            lost = start.target >= 0
            lost[points.trace] = False
            if bool(lost.any()):  # nothing speaks for it: show what the published rules show
                again = replace(start, target=start.target.where(lost, -1))
                node, others, _ = _begin(recording, again, options, contrast, False, end)
                instead, own = _walk(recording, again, node, others, options, end)
                coarse = max(coarse, own)
                points = merged([points, instead], recording.shapes[end].numel())
        return _fixations(recording, start, points, max(margin, coarse))


def _begin(
    recording: Recording, start: Start, options: Options, contrast: Contrast | None, signed: bool, end: fx.Node
) -> tuple[fx.Node, Points, float]:
    """Return the node and points where the walk begins, and the boxes' margin."""
    if start.layer is not None:
        if contrast is not None:
            raise TargetError("contrast is for class targets; neurons of a layer are not set against others")
        return *neuron_points(recording, start, signed), 0.0
    way = _dense_way(recording, options, end) if signed else None
    if way is not None:
        of_logits = recording.graph.head is None and contrast is None and start.weight is None
        weight = None if of_logits else contrasted_weight(recording, start, contrast)
        asked = (start.image, start.target, weight)
        if isinstance(way, Finer):
            points = finer_points(recording, way, *asked)
        else:
            points = token_points(recording, way, *asked)
        return way.end, points, _half_stride(recording, way.end, PLACES[len(recording.shapes[way.end])])
    published = options.average_pool == "argmax" or recording.graph.head is None
    if published and contrast is None and start.weight is None:
        return *logit_points(recording, start, signed), 0.0
    node, points = head_points(recording, start, contrasted_weight(recording, start, contrast), signed)
    head = recording.graph.head
    return node, points, 0.0 if published or head is None else _half_stride(recording, node, head.places)


def _dense_way(recording: Recording, options: Options, end: fx.Node) -> Way | Finer | None:
    """Return the way to the inner map where the walk goes on, if it goes beyond that to `end`; None: there is none."""
    graph = recording.graph
    way = graph.finer if graph.tokens is None and options.few_places == "finer" else graph.tokens
    if way is None or end.meta["position"] > way.end.meta["position"]:
        return None
    return way if holds_images(recording, way.end) else None


def _walk(
    recording: Recording, start: Start, begin: fx.Node, points: Points, options: Options, end: fx.Node
) -> tuple[Points, float]:
    """Visit nodes in reverse; what meets at a node is merged before it goes on.

    Returns the points at `end`, and the boxes' margin where vectors ended at a map.
    """
    graph = recording.graph
    margin = 0.0
    targets = start.target.numel()  # those that go the same way stand side by side
    waiting: dict[fx.Node, list[Points]] = {begin: [points]}
    for node in reversed(graph.nodes):
        if node is end:
            break
        arrived = waiting.pop(node, None)
        if arrived is None or node.meta["is_constant"]:  # a learned token, a table of positions: no pixel behind it
            continue
        pooled = _pooled_places(node, recording) if options.average_pool == "above_mean" else ()
        if not pooled and (node.target in MIXES or not _is_of_vectors(node, recording)):
            arrived, coarse = _settled(arrived, recording, node)
            margin = max(margin, coarse)
        here = merged(arrived, recording.shapes[node].numel(), targets)
        if pooled and here.signed:
            (source,) = node.all_input_nodes
            waiting.setdefault(source, []).append(pooled_points(recording.values[source], pooled, here))
            margin = max(margin, _half_stride(recording, source, pooled))
            continue
        visit = Visit(
            node, graph.arguments[node], recording.values, recording.shapes, options, graph.blanks, graph.made
        )
        for source, moved in rule.entry(node).follow(visit, here):
            if len(moved):
                waiting.setdefault(source, []).append(moved)
    arrived, _ = _settled(waiting.get(end, []), recording, end)
    nothing = points.where(torch.zeros_like(points.trace, dtype=torch.bool))
    return merged(arrived or [nothing], recording.shapes[end].numel()), margin


def _is_of_vectors(node: fx.Node, recording: Recording) -> bool:
    """Whether evidence with a sign may pass a node: it is a vector, or its elements stand elsewhere."""
    return is_vector(recording.shapes[node]) or node.target in LAYOUT or node.target in CHOOSES


def _settled(arrived: list[Points], recording: Recording, node: fx.Node) -> tuple[list[Points], float]:
    """Return what arrived at a node without a sign, and half the pixels between its places if it is told by those."""
    shape = recording.shapes[node]
    signed = [points for points in arrived if points.signed]
    if not signed:
        return arrived, 0.0
    found, places = settled(merged(signed, shape.numel()), shape)
    return [*(points for points in arrived if not points.signed), *found], _half_stride(recording, node, places)


def _pooled_places(node: fx.Node, recording: Recording) -> tuple[int, ...]:
    """Return the dimensions over which a node averages all of a map into a vector; empty if it does not."""
    places = averaged_places(node)
    if not places or not is_vector(recording.shapes[node]) or is_vector(recording.shapes[node.all_input_nodes[0]]):
        return ()
    return places


def _fixations(recording: Recording, start: Start, points: Points, margin: float) -> Fixations:
    """Join the channels of a pixel and make each target's mass sum to 1."""
    shape = recording.shapes[recording.graph.images]
    image, _, row, col = unravel(points.index, shape)
    flat = (shape[0], shape[2], shape[3])
    joined = merged([points.moved(ravel((image, row, col), flat))], shape[0] * shape[2] * shape[3])
    _, row, col = unravel(joined.index, flat)
    total = torch.zeros(start.target.numel(), device=joined.mass.device).index_add_(0, joined.trace, joined.mass)
    return Fixations(
        image=joined.trace,
        row=row,
        col=col,
        mass=joined.mass / total[joined.trace],
        height=shape[2],
        width=shape[3],
        target=start.target,
        margin=margin,
    )


def _layer_points(recording: Recording, start: Start, points: Points, node: fx.Node) -> LayerPoints:
    """Say where the points lie in a layer's output, and where that is in the image."""
    shape, pixels = recording.shapes[node], recording.shapes[recording.graph.images]
    points = points.where(points.trace.argsort(stable=True))
    _, *place = unravel(points.index, shape)
    row = col = torch.full_like(points.mass, torch.nan)
    if len(shape) == 4:
        row, col = ((place[dim - 1] + 0.5) * (pixels[dim] / shape[dim]) - 0.5 for dim in (2, 3))
    return LayerPoints(points.trace, torch.stack(place, 1), points.mass, row, col, start.target)


def _half_stride(recording: Recording, node: fx.Node, places: tuple[int, ...]) -> float:
    """Half the input pixels from one place of a map to the next; 0 for a vector.

    Places in a row are patches of the image: each stands for a square of its share of the pixels.
    """
    shape, pixels = recording.shapes[node], recording.shapes[recording.graph.images]
    if len(places) == 1:
        return math.sqrt(pixels[2] * pixels[3] / shape[places[0]]) / 2
    return max(pixels[2] / shape[places[0]], pixels[3] / shape[places[1]]) / 2 if places else 0.0
