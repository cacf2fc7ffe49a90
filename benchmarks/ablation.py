"""What each choice of the rules is worth on trained networks: `python -m benchmarks.ablation [--write] [--json]`.

Photographs, ImageNet networks: share of boxes that overlap a true one by half (class given), share of images whose peak
of the blurred evidence lies in a true box, fixations per image. Two handwritten digits apart, three small networks with
the heads of ResNet, SqueezeNet and VGG, trained on single digits: share of pictures in which the peak of the evidence
of a digit's class lies on that digit. `--write` puts the table into docs/algorithm.md. About 6 minutes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import fixcore
from benchmarks.digits import on_digit, scans
from benchmarks.pages import ALGORITHM, write_between
from benchmarks.photographs import Photographs, TrainedNetwork, hits, read_networks, read_photographs
from benchmarks.two_objects import NETWORKS, Pairs, pairs, trained
from fixcore.rules import FINER, MASS, PAPER
from jobs.machine import keep_freed_memory

_BATCH = 50
_STEPS = 600
_MARK = "<!-- python -m benchmarks.ablation --write -->"
SETTINGS: dict[str, tuple[Any, Any]] = {
    "mass (default)": (MASS, None),
    "finer": (FINER, None),
    "finer, against the mean (the audit)": (FINER, "mean"),
    "mass, against the mean": (MASS, "mean"),
    "mass, against the softmax-weighted others": (MASS, "softmax"),
    "mass, place = largest product": (replace(MASS, location="argmax"), None),
    "mass, vectors = every positive input": (replace(MASS, vector="positive"), None),
    "mass, one input of a flattened map": (replace(MASS, fc_to_map="argmax"), None),
    "paper": (PAPER, None),
    "paper, place = largest product": (replace(PAPER, location="argmax"), None),
    "paper, one input of a flattened map": (replace(PAPER, fc_to_map="argmax"), None),
    "paper, cells above a pool's mean": (replace(PAPER, average_pool="above_mean"), None),
}


def on_photographs(network: TrainedNetwork, photographs: Photographs) -> dict[str, tuple[float, float, float]]:
    """Return per setting: boxes right, peaks inside, fixations per image."""
    found = {}
    graph = fixcore.capture(network.module, network.prepared(photographs.pixels[:2]))
    scale = graph.input_shape[1] / photographs.pixels.shape[1]
    images = len(photographs.pixels)
    for name, (rules, contrast) in SETTINGS.items():
        boxes, peaks, points = 0, 0, 0
        for begin in range(0, images, _BATCH):
            recording = graph.record(network.prepared(photographs.pixels[begin : begin + _BATCH]))
            labels = photographs.labels[begin : begin + _BATCH]
            fixations = fixcore.backtrack(recording, labels, rules=rules, contrast=contrast)
            points += len(fixations.row)
            right, inside = hits(fixations, photographs.boxes[begin : begin + _BATCH], scale)
            boxes, peaks = boxes + right, peaks + inside
        found[name] = (boxes / images, peaks / images, points / images)
    return found


def on_digits(kind: str, learned: tuple[Tensor, Tensor], shown: Pairs) -> dict[str, float]:
    """Return per setting the share of peaks on the class's own digit."""
    graph = fixcore.capture(trained(kind, *learned, steps=_STEPS), shown.apart[:2])
    recording = graph.record(shown.apart)
    found = {}
    for name, (rules, contrast) in SETTINGS.items():
        peaks = []
        for side in (0, 1):
            fixations = fixcore.backtrack(recording, shown.labels[:, side], rules=rules, contrast=contrast)
            peaks.append(on_digit(fixcore.saliency_maps(fixations), shown.corners[:, side]))
        found[name] = float(torch.cat(peaks).float().mean())
    return found


def table(photographs: dict[str, Any], digits: dict[str, Any]) -> list[str]:
    """Return the lines of a Markdown table, a setting per row."""
    heads = [f"{name}: boxes, peaks, fixations" for name in photographs] + [f"digits, {kind}" for kind in digits]
    lines = ["| rules | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for setting in SETTINGS:
        cells = ["{:.3f}, {:.3f}, {:.0f}".format(*found[setting]) for found in photographs.values()]
        cells += [f"{found[setting]:.3f}" for found in digits.values()]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure every setting on every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/algorithm.md")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    pictures = read_photographs()
    photographs = {network.name: on_photographs(network, pictures) for network in read_networks()}
    *learned, digits, labels = scans()
    shown = pairs(digits, labels, 600)
    small = {kind: on_digits(kind, (learned[0], learned[1]), shown) for kind in NETWORKS}
    lines = table(photographs, small)
    print(json.dumps({"photographs": photographs, "digits": small}) if options.json else "\n".join(lines))
    if options.write:
        write_between(ALGORITHM, _MARK, lines)


if __name__ == "__main__":
    main()
