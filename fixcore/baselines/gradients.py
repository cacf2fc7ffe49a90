"""Gradient methods that reach the pixels: how the class's logit changes with each of them.

N images, C channels, H x W pixels. All return the largest absolute value over the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.baselines.replay import Way, gradients_allowed, replay
from fixcore.network.graph import Graph
from fixcore.start import scores_of


def gradient(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return how strongly each pixel moves the class's logit, float32 (N, H, W): the derivative's absolute value.

    Source: Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 3.1 (the largest of the channels).
    """
    return _strongest(input_gradient(graph, images, target))


def deconvnet(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return what a deconvolutional network projects back to the pixels, float32 (N, H, W).

    A rectifier lets through what is positive of what comes back, whatever it did to the image. Source: Zeiler and
    Fergus, Visualizing and Understanding Convolutional Networks, 2.1; the class's logit is projected, of the linear
    layers as of the convolutions.
    """
    return _strongest(input_gradient(graph, images, target, way=lambda arrived, _: arrived.clamp(min=0)))


def guided_backprop(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return what guided backpropagation leaves of the gradient, float32 (N, H, W).

    A rectifier lets through what is positive of what comes back, where it let the image through; of a smooth or
    clipped one, what is positive of its derivative times that, which for a ReLU is the same. Source: Springenberg et
    al., Striving for Simplicity, 3.4.
    """
    return _strongest(guided_gradient(graph, images, target))


def guided_gradient(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the signed values (N, C, H, W) behind `guided_backprop`."""
    return input_gradient(graph, images, target, way=lambda arrived, own: own(arrived.clamp(min=0)).clamp(min=0))


def input_gradient(graph: Graph, images: Tensor, target: Tensor, *, way: Way | None = None) -> Tensor:
    """Return the derivative of each image's target logit (N, C, H, W), with other ways back through rectifiers."""
    with gradients_allowed(), torch.enable_grad():
        values = replay(graph, images, way=way)
        total = scores_of(values[graph.logits], target).sum()
        found: Tensor = torch.autograd.grad(total, values[graph.images])[0]
    return found


def _strongest(found: Tensor) -> Tensor:
    return found.abs().amax(1).float()
