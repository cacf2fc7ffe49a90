"""Class activation maps: the last map of features, weighted for a class.

N images, D features, h x w places, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from fixcore.baselines.gradients import guided_gradient
from fixcore.baselines.replay import gradients_allowed, replay
from fixcore.errors import CaptureError
from fixcore.network.graph import Graph
from fixcore.start import class_of_each, scores_of


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
        features = values[last_map(graph)]
        total = scores_of(values[graph.logits], target).sum()
        (slope,) = torch.autograd.grad(total, features)
        weight = slope.mean((2, 3), keepdim=True)
        map_ = (weight * features.detach()).sum(1).clamp(min=0).float()
    return enlarged(map_, images)


def guided_grad_cam(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the product of Grad-CAM and guided backpropagation, float32 (N, H, W).

    Source: Selvaraju et al., Grad-CAM, 3.2: the product per channel; here its largest absolute value.
    """
    product = guided_gradient(graph, images, target) * grad_cam(graph, images, target)[:, None]
    return product.abs().amax(1).float()


def last_map(graph: Graph) -> fx.Node:
    """Return the last operation that gives a map (N, D, h, w) of more than one place; CaptureError if none does.

    Of a network whose head reads a pooled map it is that map.
    """
    head = graph.head
    if head is not None and head.places == (2, 3):
        return head.map
    for node in reversed(graph.nodes):
        rows, cols = map_extent(node)
        if rows * cols > 1:
            return node
    raise CaptureError("the network has no map of features: nothing in it is (N, D, h, w)")


def map_extent(node: fx.Node) -> tuple[int, int]:
    """Return rows and columns of what a node gives if it is a map (N, D, h, w) of the image; else 0, 0."""
    shape: tuple[int | None, ...] = getattr(node.meta["seen"], "shape", ())
    if node.meta["is_constant"] or len(shape) != 4 or None in shape[1:]:
        return 0, 0
    _, _, rows, cols = shape
    return rows or 0, cols or 0


def enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Return maps (N, h, w) at the size of the images, bilinear, float32 (N, H, W)."""
    if maps.shape[1:] == images.shape[2:]:
        return maps.float()
    return functional.interpolate(maps.float()[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
