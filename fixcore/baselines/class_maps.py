"""Class activation maps: the last map of features, weighted for a class.

N images, D features, h x w places, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fixcore.baselines.gradients import guided_gradient
from fixcore.baselines.replay import gradients_allowed, replay
from fixcore.errors import CaptureError
from fixcore.network.finer import KEEPS_PLACES, READS_IMAGES
from fixcore.network.graph import Graph
from fixcore.start import class_of_each, scores_of

aten = torch.ops.aten

_KEEPS_PLACES = KEEPS_PLACES.union((aten.layer_norm.default, aten.group_norm.default))


def cam(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the class activation map, float32 (N, H, W), its minimum taken away so that it begins at 0.

    Needs a network that ends in an average pool and a linear layer (or a 1x1 convolution and the pool); raises
    CaptureError for others. Source: Zhou et al., Learning Deep Features for Discriminative Localization, 2.
    """
    head = graph.head
    if head is None or len(head.places) < 2:
        raise CaptureError("the network has no class map: it does not end in an average pool and a linear layer")
    recording = graph.record(images)
    target = class_of_each(recording.logits, target)
    value = recording.values[head.map]
    weight = head.on_map(head.weight[target]).to(value.dtype)
    map_ = (head.by_place(value) @ weight[:, :, None])[:, :, 0].float()
    rows, cols = (value.shape[d] for d in head.places)
    map_ = map_ - map_.amin(1, keepdim=True)
    return enlarged(map_.view(-1, rows, cols), images)


def grad_cam(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the Grad-CAM map, float32 (N, H, W): the last map of features, weighted by its mean gradients, if > 0.

    Source: Selvaraju et al., Grad-CAM, 3. Raises CaptureError for a network without a map of more than one place.
    """
    with gradients_allowed(), torch.enable_grad():
        values = replay(graph, images)
        last = last_map(graph)
        features = values[last]
        total = scores_of(values[graph.logits], target).sum()
        (slope,) = torch.autograd.grad(total, features)
        places = map_places(graph)[last]
        slope, features = (features_first(one, places) for one in (slope, features.detach()))
        weight = slope.mean((2, 3), keepdim=True)
        map_ = (weight * features).sum(1).clamp(min=0).float()
    return enlarged(map_, images)


def guided_grad_cam(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the product of Grad-CAM and guided backpropagation, float32 (N, H, W).

    Source: Selvaraju et al., Grad-CAM, 3.2: the product per channel; here its largest absolute value.
    """
    product = guided_gradient(graph, images, target) * grad_cam(graph, images, target)[:, None]
    return product.abs().amax(1).float()


def last_map(graph: Graph) -> fx.Node:
    """Return the last operation that gives a map of more than one place (see `map_places`); CaptureError if none does.

    Of a network whose head reads a pooled map it is that map.
    """
    places = map_places(graph)
    head = graph.head
    if head is not None and len(head.places) == 2 and head.map in places:
        return head.map
    for node in reversed(graph.nodes):
        if node in places and math.prod(node.meta["seen"].shape[dim] for dim in places[node]) > 1:
            return node
    raise CaptureError("the network has no map of features: nothing in it is known to be (N, D, h, w) or (N, h, w, D)")


def map_places(graph: Graph) -> dict[fx.Node, tuple[int, int]]:
    """Return the operations known to give a map of features, each with the dimensions of its rows and its columns.

    Convolutions and pools give (N, D, h, w). Behind these what works by element leaves places where they are, as norms
    do, and linear layers of channels that come last; a permutation says where it moves them. What a network's head
    averages over two dimensions is a map besides. Whatever else has four dimensions (attention between tokens) is none.
    """
    known: dict[fx.Node, tuple[int, int]] = {}
    for node in graph.nodes:
        if node.meta["is_constant"] or not _is_map_like(node):
            continue
        if node.target in READS_IMAGES:
            known[node] = (2, 3)
            continue
        sources = [source for source in node.all_input_nodes if source in known]
        if sources:
            largest = max(sources, key=lambda source: math.prod(source.meta["seen"].shape[1:]))  # not a gate
            places = _places_behind(node, graph.arguments[node], known[largest])
            if places is not None:
                known[node] = places
    head = graph.head
    if head is not None and len(head.places) == 2 and _is_map_like(head.map):
        rows, cols = head.places
        known.setdefault(head.map, (rows, cols))
    return known


def features_first(value: Tensor, places: tuple[int, int]) -> Tensor:
    """Return a map whose rows and columns are its dimensions `places` as (N, D, h, w)."""
    (features,) = {1, 2, 3}.difference(places)
    return value.permute(0, features, *places)


def _is_map_like(node: fx.Node) -> bool:
    shape: tuple[int | None, ...] = getattr(node.meta["seen"], "shape", ())
    return len(shape) == 4 and None not in shape[1:]


def _places_behind(node: fx.Node, named: Mapping[str, Any], places: tuple[int, int]) -> tuple[int, int] | None:
    """Where rows and columns lie behind an operation that reads a map; None if it is not known."""
    order = list(range(4))
    if node.target is aten.permute.default:
        order = [dim % 4 for dim in named["dims"]]
    elif node.target is aten.transpose.int:
        first, second = named["dim0"] % 4, named["dim1"] % 4
        order[first], order[second] = second, first
    elif node.target is aten.linear.default:
        return None if 3 in places else places
    elif node.target not in _KEEPS_PLACES:
        return None
    rows, cols = places
    return order.index(rows), order.index(cols)


def enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Return maps (N, h, w) at the size of the images, bilinear, float32 (N, H, W)."""
    if maps.shape[1:] == images.shape[2:]:
        return maps.float()
    return functional.interpolate(maps.float()[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
