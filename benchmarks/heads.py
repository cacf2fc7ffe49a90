"""What a network ends in: is the evidence still each class's own? `python -m benchmarks.heads [--json]`.

Small classifiers learn single handwritten digits; all are alike but for the layers behind the average pool, which are
those of networks in use: a linear layer (ResNet), a norm before it (ConvNeXt), a batch norm, two heads averaged
(RepViT), hidden layers (MobileNetV3, EfficientViT). Then they are shown two digits apart. Printed for each: the share
of peaks of the evidence on the class's own digit, and the overlap of the two classes' evidence; beside it those of
Grad-CAM.

And of the trained MobileNetV2, whose last layer is said in other words that change no logit, as a batch norm, and as
hidden layers that mix features and part them again: share of boxes that overlap a true one by half (class given), share
of peaks in a true box. About 4 minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fixcore
from benchmarks.digits import fit_single, on_digit, scans
from benchmarks.photographs import FOLDER, hits, read_networks, read_photographs
from benchmarks.two_objects import Pairs, pairs
from fixcore.baselines.class_maps import grad_cam
from jobs.machine import keep_freed_memory

_STEPS = 600
_BATCH = 50


class Averaged(nn.Module):
    """Two linear heads, each behind a batch norm of its own."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, classes)) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        """Return the mean of both heads' logits."""
        return (self.one(features) + self.other(features)) / 2


HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: [nn.Linear(128, 10)],
    "layer norm, linear": lambda: [nn.LayerNorm(128), nn.Linear(128, 10)],
    "batch norm, linear": lambda: [nn.BatchNorm1d(128), nn.Linear(128, 10)],
    "two heads averaged": lambda: [Averaged(128, 10)],
    "hidden layer, hardswish": lambda: [nn.Linear(128, 256), nn.Hardswish(), nn.Linear(256, 10)],
    "two hidden layers, ReLU": lambda: [
        nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    ],
    "hidden layer, layer norm, GELU": lambda: [nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 10)],
    "layer norm, hidden layer, GELU": lambda: [nn.LayerNorm(128), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)],
}  # fmt: skip


def trained(head: Callable[[], list[nn.Module]], digits: Tensor, labels: Tensor) -> nn.Module:
    """Return a classifier that learned single digits at random places."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 2), (32, 64, 1), (64, 128, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head())
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


WORDS = (
    "linear",
    "batch norm, linear",
    "hidden layer that adds eight features each",
    "hidden layer that rotates",
)


def on_photographs() -> dict[str, dict[str, float]]:
    """Return for each saying of MobileNetV2's head: boxes right, peaks inside."""
    photographs, network = read_photographs(), read_networks()[1]
    found = {}
    for words in WORDS:
        module = copy.deepcopy(network.module)
        if words != "linear":
            assert isinstance(module.linear0, nn.Linear)
            module.linear0 = otherwise(module.linear0, words)
        graph = fixcore.capture(module.eval(), network.prepared(photographs.pixels[:2]))
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
