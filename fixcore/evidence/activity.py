"""How strongly a network responds at each place, whatever it takes the image for.

N images, C channels, h x w places of a map, H x W input pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from fixcore.evidence.saliency import mean_one
from fixcore.network.graph import Recording
from fixcore.rules.convolution import CONVOLUTIONS


def activity_maps(recording: Recording) -> Tensor:
    """Return how strongly the network responds around each pixel, float32 (N, H, W), > 0 where it does; its mean is 1.

    The sum over channels of what is positive in the maps that convolutions read, of those with the fewest places: what
    the last stage makes its features of. Each map counts as much as another, whatever its scale, and each image has
    mean 1. It names no class and needs no target; `saliency_maps(fixations, activity=...)` asks it which of the pixels
    around a fixation belong to something. Ones for a network without such maps (only the image, or vectors, are
    read by its convolutions), and for an image to which none of them responds.

    Ours; it is what makes a mask follow the object where a class map is coarse (`python -m benchmarks.saliency_rules`).
    """
    graph = recording.graph
    maps = _coarsest(_read_by_convolutions(recording))
    _, height, width = graph.input_shape
    if not maps:
        return torch.ones(len(recording.logits), height, width, device=recording.logits.device)
    responses = torch.stack([mean_one(value.clamp(min=0).sum(1, dtype=torch.float32)) for value in maps])
    finer = functional.interpolate(responses.mean(0)[:, None], (height, width), mode="bilinear", align_corners=False)
    return mean_one(finer[:, 0])


def _read_by_convolutions(recording: Recording) -> list[Tensor]:
    """The maps (N, C, h, w) of more than one place that convolutions read, the images left out."""
    graph = recording.graph
    sources: dict[fx.Node, None] = {}  # in order, each once
    for node in graph.nodes:
        if node.target in CONVOLUTIONS and not node.meta["is_constant"]:
            sources[graph.arguments[node]["input"]] = None
    sources.pop(graph.images, None)
    images = len(recording.logits)
    values = [recording.values[source] for source in sources]
    return [value for value in values if len(value) == images and value.shape[2:].numel() > 1]


def _coarsest(maps: list[Tensor]) -> list[Tensor]:
    fewest = min((value.shape[2:].numel() for value in maps), default=0)
    return [value for value in maps if value.shape[2:].numel() == fewest]
