"""Two objects, or two readings of one: `python -m benchmarks.two_objects [--photographs] [--seconds 40] [--json]`.

Small classifiers learn single handwritten digits at random places. Then they are shown two digits apart, and two digits
blended at one place, of held-out scans, and both classes are traced. Printed for each network and each contrast: the
distance of the two evidences in both cases (or their overlap, `--measure overlap`), how well it tells one case from
the other (AUROC), how well the swing of the odds between the two halves does (`pipeline.judging.halves`), and the share
told rightly by the audit's rule (`pipeline.labels.apart`), which learns what is usual from the first two guesses at
other images, that show one thing: by distance alone, and by both.

`--photographs` asks the same of trained ImageNet networks: two photographs side by side, against the first two guesses
at one photograph, which for every second one say what is usual. `--cifar` asks it of CIFAR-10 networks, one of them
learned by an audit's own training: two test images side by side, against the same two blended. 3 to 8 minutes each.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import fixcore
from benchmarks import cifar
from benchmarks.digits import DIGIT, SIDE, corners_apart, fit_single, put, put_pair, scans
from benchmarks.photographs import read_networks, read_photographs
from jobs.machine import keep_freed_memory
from pipeline.judging.halves import log_odds, swing
from pipeline.judging.train import TrainPlan, load_fold_network, train_fold, training_input
from pipeline.labels.apart import Usual

_LEARNED = 8_000
"""CIFAR-10 images that the audit's own small network learns."""

CONTRASTS: tuple[Any, ...] = (None, "mean", "softmax", "runner_up")


def network(kind: str) -> nn.Sequential:
    """Return an untrained classifier of ten digits; `kind` is a key of NETWORKS."""

    def block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    pooled = [*block(1, 32, 2), *block(32, 64), nn.MaxPool2d(2)]
    return nn.Sequential(*pooled, *NETWORKS[kind](block), nn.Flatten() if kind != "hidden layers" else nn.Identity())


NETWORKS: dict[str, Any] = {
    "average pool": lambda block: [*block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)],
    "1x1 convolution, average pool": lambda block: [
        *block(64, 64), nn.Conv2d(64, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ],
    "hidden layers": lambda block: [
        *block(64, 64), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ],
}  # fmt: skip
"""Heads as networks of the field have them: ResNet's, SqueezeNet's, VGG's."""


def trained(
    kind: str, digits: Tensor, labels: Tensor, seconds: float = math.inf, *, steps: float = math.inf
) -> nn.Module:
    """Return a classifier that learned single digits at random places, for so many seconds or steps of 128."""
    torch.manual_seed(0)
    classifier = network(kind)
    fit_single(classifier, digits, labels, seconds, steps)
    return classifier


@dataclass(frozen=True, slots=True)
class Pairs:
    """N times two digits of different classes."""

    apart: Tensor
    """(N, 1, SIDE, SIDE): side by side, or one above the other."""
    blended: Tensor
    """(N, 1, SIDE, SIDE): the same two, half and half, at one place."""
    labels: Tensor
    """int64 (N, 2)."""
    corners: Tensor
    """int64 (N, 2, 2): row and column of each digit's upper left corner in `apart`."""


def pairs(digits: Tensor, labels: Tensor, count: int) -> Pairs:
    """Return pairs at random places; those of one class are left out."""
    generator = torch.Generator().manual_seed(1)

    def below(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator)

    chosen = torch.stack([below(len(digits)), below(len(digits))], 1)
    _, corners = corners_apart(count, generator)
    row, col = below(SIDE - DIGIT + 1), below(SIDE - DIGIT + 1)
    blended = (put(digits[chosen[:, 0]], row, col) + put(digits[chosen[:, 1]], row, col)) / 2
    named = labels[chosen]
    differ = named[:, 0] != named[:, 1]
    return Pairs(put_pair(digits[chosen], corners)[differ], blended[differ], named[differ], corners[differ])


MEASURES: dict[str, Any] = {
    "distance": fixcore.evidence_distance,
    "overlap": lambda a, b: 1 - fixcore.evidence_overlap(a, b),
}
"""Each grows with the distance."""


def measured(graph: fixcore.Graph, images: Tensor, labels: Tensor, contrast: Any, measure: str) -> Tensor:
    """Return how far apart the evidences of both labels lie, and how far the odds swing, (2, n)."""
    recording = graph.record(images)
    first, second = (fixcore.backtrack(recording, labels[:, side], rules="finer", contrast=contrast) for side in (0, 1))
    halves = fixcore.evidence_halves(first, second)
    swung = swing(lambda shown: log_odds(graph.classify(shown), labels.repeat(2, 1)), images, halves)
    return torch.stack([MEASURES[measure](first, second), swung])


def guessed(graph: fixcore.Graph, images: Tensor, contrast: Any, measure: str) -> Tensor:
    """Return the same of the first two guesses at each image, (2, n)."""
    parts = images.split(100)
    return torch.cat(
        [measured(graph, part, graph.classify(part).topk(2).indices, contrast, measure) for part in parts], 1
    )


Found = tuple[str, Any, Tensor, Tensor, Tensor]
"""Network, contrast, and both measures: of two objects, of two readings of one, and those that are usual."""


def of_photographs(measure: str) -> Iterator[Found]:
    """Yield what is found in two photographs side by side, and in the first two guesses at one."""
    photographs = read_photographs()
    count, side = len(photographs.pixels), photographs.pixels.shape[1]
    one = np.random.default_rng(0).permutation(count)
    other = np.roll(one, 1)
    both = photographs.labels[torch.from_numpy(np.stack([one, other], 1))]
    narrow = np.stack([np.asarray(Image.fromarray(pixels).resize((side // 2, side))) for pixels in photographs.pixels])
    sheets = np.zeros_like(photographs.pixels)
    sheets[:, :, : side // 2], sheets[:, :, -(side // 2) :] = narrow[one], narrow[other]
    for network in read_networks():
        graph = fixcore.capture(network.module, network.prepared(sheets[:2]))
        parts = [slice(start, start + 50) for start in range(0, count, 50)]
        for contrast in CONTRASTS:
            two = torch.cat(
                [measured(graph, network.prepared(sheets[at]), both[at], contrast, measure) for at in parts], 1
            )
            one = torch.cat(
                [guessed(graph, network.prepared(photographs.pixels[at]), contrast, measure) for at in parts], 1
            )
            yield network.name, contrast, two, one[:, ::2], one[:, 1::2]


def of_cifar(count: int, measure: str) -> Iterator[Found]:
    """Yield what is found in two CIFAR-10 test images side by side, and in the same two blended."""
    pixels, classes = cifar.held_out_images()
    labels = torch.from_numpy(classes)
    published = cifar.resnets()
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.permutation(len(labels))[:count]) for _ in range(2))
    differ = labels[one] != labels[other]
    both = torch.stack([labels[one], labels[other]], 1)[differ]
    networks = [
        *(
            (f"ResNet-{depth}", published.load(str(cifar.FOLDER / f"resnet{depth}.pt")), published.preprocess(pixels))
            for depth in (20, 56)
        ),
        small_trained(pixels),
    ]
    for name, network, shown in networks:
        first, second = shown[one][differ], shown[other][differ]
        apart, blended = torch.cat([first, second], 3), (first + second) / 2
        for contrast in CONTRASTS:
            found = []
            for images in (apart, blended):
                graph = fixcore.capture(network, images[:2])
                parts = [slice(start, start + 100) for start in range(0, len(images), 100)]
                found.append(torch.cat([measured(graph, images[at], both[at], contrast, measure) for at in parts], 1))
            usual = guessed(fixcore.capture(network, first[:2]), first, contrast, measure)
            yield f"{name}, CIFAR-10", contrast, found[0], found[1], usual


def small_trained(pixels: NDArray[np.uint8]) -> tuple[str, nn.Module, Tensor]:
    """Return the network that `--predict train` makes of images with people's labels, and `pixels` as it sees them."""
    learned = cifar.training_pixels(_LEARNED)
    labels = np.load(cifar.FOLDER / "cifar10n.npz")["aggregate"][:_LEARNED].astype(np.int64)
    spec = training_input(np.array([32]), np.array([32]))
    plan, others = TrainPlan(class_count=10, input=spec), np.ones(_LEARNED, np.int16)
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "network.safetensors"
        train_fold(learned, labels, others, 0, usable=np.ones(_LEARNED, bool), plan=plan, out=out)
        network = load_fold_network(plan, out)
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (spec.mean, spec.std))
    shown = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return "the small network of `train`", network, shown


def of_digits(seconds: float, count: int, measure: str) -> Iterator[Found]:
    """Yield what is found in two digits apart, and in the same two blended."""
    digits, labels, new_digits, new_labels = scans()
    shown = pairs(new_digits, new_labels, count)
    place = torch.randint(SIDE - DIGIT + 1, (2, len(new_digits)), generator=torch.Generator().manual_seed(2))
    single = put(new_digits, *place)
    for kind in NETWORKS:
        graph = fixcore.capture(trained(kind, digits, labels, seconds), shown.apart[:2])
        for contrast in CONTRASTS:
            two, one = (
                measured(graph, images, shown.labels, contrast, measure) for images in (shown.apart, shown.blended)
            )
            yield kind, contrast, two, one, guessed(graph, single, contrast, measure)


def main() -> None:
    """Train, trace, tell apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", action="store_true", help="CIFAR-10 networks and images beside the project")
    parser.add_argument("--photographs", action="store_true", help="ImageNet networks and images beside the project")
    parser.add_argument("--seconds", type=float, default=40, help="how long to train each network")
    parser.add_argument("--measure", choices=tuple(MEASURES), default="distance")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    if not options.json:
        print("| network | contrast | two objects | two readings | AUROC | swing's | told by distance | told by both |")
        print("|---|---|---|---|---|---|---|---|")
    cases = of_digits(options.seconds, options.count, options.measure)
    if options.photographs or options.cifar:
        cases = of_photographs(options.measure) if options.photographs else of_cifar(options.count, options.measure)
    for name, contrast, two, one, usual in cases:
        shown = torch.cat([two, one], 1)
        is_two = torch.arange(shown.shape[1]) < two.shape[1]
        known = Usual.of(*usual[:, ~usual.isnan().any(0)].float().numpy())
        distance, swung = shown.float().numpy()
        # Each of the two cases counts half.
        weight = torch.where(is_two, 0.5 / two.shape[1], 0.5 / one.shape[1])
        told = [
            float(weight[torch.from_numpy(known.is_apart(distance, by)) == is_two].sum())
            for by in (np.full_like(swung, np.nan), swung)
        ]
        found = {
            "network": name,
            "contrast": contrast or "none",
            "two objects": round(float(two[0].nanmean()), 3),
            "two readings": round(float(one[0].nanmean()), 3),
            "AUROC": round(float(roc_auc_score(is_two, shown[0].nan_to_num(0))), 3),
            "swing's": round(float(roc_auc_score(is_two, shown[1])), 3),
            "told by distance": round(told[0], 3),
            "told by both": round(told[1], 3),
        }
        if options.json:
            print(json.dumps(found), flush=True)
        else:
            print("| " + " | ".join(str(value) for value in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
