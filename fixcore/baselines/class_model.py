"""An image that a network takes for a class: what it has learned the class to look like.

N images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fixcore.baselines.gradients import input_gradient
from fixcore.errors import InputError
from fixcore.network.graph import Graph


def class_model(
    graph: Graph, target: Tensor, *, steps: int = 200, rate: float = 0.1, decay: float = 1e-2, seed: int = 0
) -> Tensor:
    """Return one image per class of `target` (N,) with a high logit, float (N, C, H, W), normalised values.

    Gradient ascent on the logit, from faint noise; a step is `rate` times the gradient, scaled so that its root mean
    square is 1, and takes away `decay` of the image, which holds its norm in bounds. Source: Simonyan, Vedaldi,
    Zisserman, Deep Inside Convolutional Networks, 2, which begins at the zero image. Raises InputError for fewer than
    one step.
    """
    if steps < 1:
        raise InputError(f"steps must be 1 or more, not {steps}")
    seen = graph.images.meta["seen"]
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(target.numel(), *graph.input_shape, generator=generator) * 0.01
    images = images.to(seen.device, seen.dtype)
    for _ in range(steps):
        slope = input_gradient(graph, images, target)
        size = slope.square().mean((1, 2, 3), keepdim=True).sqrt()
        images = images * (1 - decay) + rate * slope / size.clamp(min=torch.finfo(slope.dtype).tiny)
    return images
