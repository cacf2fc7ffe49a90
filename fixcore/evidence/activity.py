"""How strongly a network responds at each place, whatever it takes the image for.

N images, C channels, h x w places of a map, H x W input pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from fixcore.evidence.saliency import mean_one
from fixcore.network.finer import rests_on
from fixcore.network.graph import Recording
from fixcore.network.way import holds_images
from fixcore.rules.convolution import CONVOLUTIONS


def activity_maps(recording: Recording, *, finer: bool = True) -> Tensor:
    """Return how strongly the network responds around each pixel, float32 (N, H, W), >= 0; its mean is 1.

    The sum over channels of what is positive in the maps that convolutions read, of those with the fewest places: what
    the last stage makes its features of. Each of these maps counts as much as another, whatever its scale. Where the
    last map has few places (`rules="finer"` goes on from there to a finer one), it is the geometric mean of that and of
    what the features rest on in the finer map: what adds to the sum of all that is positive in the last
    (`fixcore.network.finer.rests_on`, about a quarter of a forward pass); without `finer` it is the first alone.
    Activity names no class and needs no target; `saliency_maps(fixations, activity=...)` asks it which of the pixels
    around a fixation belong to something. Ones for a network without such maps (only the image, or vectors, are read by
    its convolutions), and for an image to which none of them responds.

    Ours; it is what makes a mask follow the object where a class map is coarse (`python -m benchmarks.saliency_rules`).
    """
    responses = _responses(recording)
    way = recording.graph.finer if finer else None
    if way is None or not holds_images(recording, way.end):
        return responses
    return mean_one((responses * _on_pixels(rests_on(recording, way), recording)).sqrt())


def _responses(recording: Recording) -> Tensor:
    """Return what is positive in the coarsest maps that convolutions read, (N, H, W); its mean is 1."""
    maps = _coarsest(_read_by_convolutions(recording))
    _, height, width = recording.graph.input_shape
    if not maps:
        return torch.ones(len(recording.logits), height, width, device=recording.logits.device)
    each = torch.stack([mean_one(value.clamp(min=0).sum(1, dtype=torch.float32)) for value in maps])
    return _on_pixels(each.mean(0), recording)


def _on_pixels(maps: Tensor, recording: Recording) -> Tensor:
    """Return maps (N, h, w) on the images' pixels, (N, H, W), each with mean 1."""
    _, height, width = recording.graph.input_shape
    finer = functional.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)
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
