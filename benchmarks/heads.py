"""What a network ends in: is the evidence still each class's own? `python -m benchmarks.heads [--json]`.

Small classifiers learn single handwritten digits; all are alike but for the layers behind the last map, which are those
of networks in use: behind its average a linear layer (ResNet), a norm before it (ConvNeXt), a batch norm, two heads
averaged (RepViT), hidden layers (MobileNetV3, EfficientViT); layers on the map itself, flattened (AlexNet, VGG). Then
they are shown two digits apart. Printed for each: the share of peaks of the evidence on the class's own digit, and the
overlap of the two classes' evidence; beside it those of Grad-CAM.

And of the trained MobileNetV2, whose last layer is said in other words that change no logit, as a batch norm, and as
hidden layers that mix features and part them again, behind the average or on the flattened map: share of boxes that
overlap a true one by half (class given), share of peaks in a true box. About 6 minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fixcore
from benchmarks.digits import fit_single, on_digit, scans
from benchmarks.photographs import FOLDER, hits, read_networks, read_photographs
from benchmarks.two_objects import Pairs, pairs
from fixcore.baselines.class_maps import grad_cam
from jobs.machine import keep_freed_memory

_STEPS = 600
_BATCH = 50
_PLACES = 7 * 7
"""Of MobileNetV2's last map."""
_PARTS = 4
"""Parts of the map, at random, that a hidden layer reads each by itself."""


class Averaged(nn.Module):
    """Two linear heads, each behind a batch norm of its own."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, classes)) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean of both heads' logits."""
        return (self.one(features) + self.other(features)) / 2


def pooled(*layers: nn.Module) -> list[nn.Module]:
    """Return layers behind the average of the map."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers]


def flat(*layers: nn.Module) -> list[nn.Module]:
    """Return layers behind the map itself, as in VGG."""
    return [nn.MaxPool2d(2), nn.Flatten(), *layers]


HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: pooled(nn.Linear(128, 10)),
    "layer norm, linear": lambda: pooled(nn.LayerNorm(128), nn.Linear(128, 10)),
    "batch norm, linear": lambda: pooled(nn.BatchNorm1d(128), nn.Linear(128, 10)),
    "two heads averaged": lambda: pooled(Averaged(128, 10)),
    "hidden layer, hardswish": lambda: pooled(nn.Linear(128, 256), nn.Hardswish(), nn.Linear(256, 10)),
    "two hidden layers, ReLU": lambda: pooled(
        nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    ),
    "hidden layer, layer norm, GELU": lambda: pooled(
        nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 10),
    ),
    "layer norm, hidden layer, GELU": lambda: pooled(
        nn.LayerNorm(128), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10),
    ),
    "flattened map, linear": lambda: flat(nn.Linear(128 * 25, 10)),
    "flattened map, two hidden layers, ReLU": lambda: flat(
        nn.Linear(128 * 25, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    ),
}  # fmt: skip


def trained(head: Callable[[], list[nn.Module]], digits: Tensor, labels: Tensor) -> nn.Module:
    """Return a classifier that learned single digits at random places."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 1), (64, 128, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    network = nn.Sequential(*layers, *head())
    fit_single(network, digits, labels, steps=_STEPS)
    return network


def on_digits(network: nn.Module, shown: Pairs) -> dict[str, float]:
    """Return the share of peaks on the class's own digit, the overlap of both classes, and Grad-CAM's peaks."""
    graph = fixcore.capture(network, shown.apart[:2])
    recording = graph.record(shown.apart)
    both = [fixcore.backtrack(recording, shown.labels[:, side]) for side in (0, 1)]
    rivals = [grad_cam(graph, shown.apart, shown.labels[:, side]) for side in (0, 1)]
    return {
        "peaks": _peaks([fixcore.saliency_maps(fixations) for fixations in both], shown),
        "overlap": float(fixcore.evidence_overlap(*both).mean()),
        "Grad-CAM's peaks": _peaks(rivals, shown),
    }


def _peaks(maps: list[Tensor], shown: Pairs) -> float:
    hits = [on_digit(own, shown.corners[:, side]) for side, own in enumerate(maps)]
    return float(torch.cat(hits).float().mean())


def otherwise(linear: nn.Linear, words: str) -> nn.Module:
    """Return layers that give the logits of a linear layer on features that are not below 0."""
    generator = torch.Generator().manual_seed(0)
    features, classes = linear.in_features, linear.out_features
    weight, bias = linear.weight.detach(), linear.bias.detach()
    last = nn.Linear(features, classes)
    if words == "batch norm, linear":
        norm = nn.BatchNorm1d(features).eval()
        norm.weight.data, norm.running_mean = (torch.rand(features, generator=generator) + shift for shift in (0.5, 0))
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        last.weight.data = weight / scale
        last.bias.data = bias + (last.weight * (norm.running_mean * scale)).sum(1).detach()
        return nn.Sequential(norm, last)
    hidden = nn.Linear(features, features, bias=False)
    if words == "hidden layer that adds eight features each":
        few = (torch.rand(features, features, generator=generator) < 8 / features).float()
        hidden.weight.data = few + torch.eye(features)
        last.weight.data = weight @ torch.linalg.inv(hidden.weight.detach().double()).float()
    else:  # hidden layer in which every feature is turned into every other, by a rotation
        turn = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q
        hidden = nn.Linear(features, 2 * features, bias=False)
        hidden.weight.data = torch.cat([turn, -turn])
        last = nn.Linear(2 * features, classes)
        last.weight.data = torch.cat([weight @ turn.T, -(weight @ turn.T)], 1)
    last.bias.data = bias
    return nn.Sequential(hidden, nn.ReLU(), last)


def of_flattened(linear: nn.Linear, words: str, places: int) -> nn.Module:
    """Return layers that make of a flattened map the logits of a linear layer on its average."""
    weight = linear.weight.detach()
    of_place = (weight[:, :, None] / places).expand(-1, -1, places).flatten(1)
    last = nn.Linear(of_place.shape[1], len(weight))
    last.weight.data, last.bias.data = of_place.contiguous(), linear.bias.detach()
    if words == "flattened map, linear":
        return last
    generator = torch.Generator().manual_seed(0)
    features = weight.shape[1]
    few = (torch.rand(features, features, generator=generator) < 8 / features).float() + torch.eye(features)
    part = functional.one_hot(torch.randint(_PARTS, (places,), generator=generator), _PARTS).T.float()
    hidden = nn.Linear(features * places, _PARTS * features, bias=False)
    hidden.weight.data = (few[None, :, :, None] * part[:, None, None, :]).reshape(_PARTS * features, -1)
    last = nn.Linear(_PARTS * features, len(weight))
    last.weight.data = (weight @ torch.linalg.inv(few.double()).float() / places).repeat(1, _PARTS)
    last.bias.data = linear.bias.detach()
    return nn.Sequential(hidden, nn.ReLU(), last)


WORDS = (
    "linear",
    "batch norm, linear",
    "hidden layer that adds eight features each",
    "hidden layer that rotates",
    "flattened map, linear",
    "flattened map, hidden layer that adds eight features each over parts of the map",
)


def said(network: nn.Module, words: str) -> nn.Module:
    """Return MobileNetV2 with another head that gives the same logits."""
    module: Any = copy.deepcopy(network)
    if words.startswith("flattened"):
        for layer in module.layers:
            layer["op"] = "flatten" if layer["op"] == "avgpool" else layer["op"]
        module.linear0 = of_flattened(module.linear0, words, _PLACES)
    elif words != "linear":
        module.linear0 = otherwise(module.linear0, words)
    return module.eval()  # type: ignore[no-any-return]


def on_photographs() -> dict[str, dict[str, float]]:
    """Return for each saying of MobileNetV2's head: boxes right, peaks inside."""
    photographs, network = read_photographs(), read_networks()[1]
    found = {}
    for words in WORDS:
        graph = fixcore.capture(said(network.module, words), network.prepared(photographs.pixels[:2]))
        scale = graph.input_shape[1] / photographs.pixels.shape[1]
        boxes, peaks = 0, 0
        for begin in range(0, len(photographs.pixels), _BATCH):
            recording = graph.record(network.prepared(photographs.pixels[begin : begin + _BATCH]))
            fixations = fixcore.backtrack(recording, photographs.labels[begin : begin + _BATCH])
            right, inside = hits(fixations, photographs.boxes[begin : begin + _BATCH], scale)
            boxes, peaks = boxes + right, peaks + inside
        images = len(photographs.pixels)
        found[words] = {"boxes": boxes / images, "peaks": peaks / images}
    return found


def main() -> None:
    """Measure every head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    *learned, digits, labels = scans()
    shown = pairs(digits, labels, 600)
    found = {"digits": {kind: on_digits(trained(head, *learned), shown) for kind, head in HEADS.items()}}
    if FOLDER.exists():
        found["MobileNetV2"] = on_photographs()
    else:
        print(f"MobileNetV2 is left out: there is no {FOLDER}", file=sys.stderr)
    if options.json:
        print(json.dumps(found))
        return
    for network, by_head in found.items():
        for head, figures in by_head.items():
            print(f"{network}, {head}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
