"""Is the evidence the network's, and the class's? `python -m benchmarks.sanity [--json] [--picture FILE]`.

On trained ImageNet networks and photographs. Class sensitivity: how far the evidence of the predicted class coincides
with that of the runner-up and of a class drawn at random. Randomisation (Adebayo et al., Sanity Checks for Saliency
Maps): layers lose their weights one after the other, from the output down (cascading) and one at a time (independent);
how far the evidence of the same class still coincides with the trained network's. For scale: the overlap of the
evidence of two unrelated images. Overlaps are `fixcore.evidence_overlap`, 1 for the same evidence. About 3 minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fixcore
from benchmarks.photographs import TrainedNetwork, read_networks, read_photographs
from fixcore.metrics import layers_of, shuffled
from jobs.machine import keep_freed_memory

_BATCH = 32
_STAGES = 8
"""Layers that are shuffled one at a time; with the cascade, steps from the output to the input."""


def evidence(module: nn.Module, images: Tensor, target: Tensor, contrast: Any = "mean") -> list[fixcore.Fixations]:
    """Return the fixations of `target` (N,), batch by batch; by default as audits find them."""
    graph = fixcore.capture(module, images[:2])
    starts = range(0, len(images), _BATCH)
    return [
        fixcore.backtrack(
            graph.record(images[at : at + _BATCH]), target[at : at + _BATCH], rules="finer", contrast=contrast
        )
        for at in starts
    ]


def overlap(first: list[fixcore.Fixations], second: list[fixcore.Fixations]) -> float:
    """Return the mean overlap of the same targets' evidences."""
    return float(torch.cat([fixcore.evidence_overlap(a, b) for a, b in zip(first, second, strict=True)]).nanmean())


def measure(network: TrainedNetwork, images: Tensor) -> dict[str, Any]:
    """Return every overlap of one network."""
    with torch.inference_mode():
        best, second = network.module(images).topk(2).indices.T
    classes = 1000
    chance = (best + torch.randint(1, classes, best.shape, generator=torch.Generator().manual_seed(0))) % classes
    found: dict[str, Any] = {"network": network.name}
    for contrast in (None, "mean", "softmax"):
        own = evidence(network.module, images, best, contrast)
        for who, target in (("runner-up", second), ("random class", chance)):
            other = evidence(network.module, images, target, contrast)
            found[f"overlap with the {who}, contrast {contrast or 'none'}"] = overlap(own, other)
    own = evidence(network.module, images, best)
    rolled = evidence(network.module, images.roll(1, 0), best.roll(1))
    found["overlap of unrelated images"] = overlap(own, rolled)
    names = layers_of(network.module)
    steps = sorted({round(i * (len(names) - 1) / (_STAGES - 1)) for i in range(_STAGES)})
    for step in steps:
        cascade = shuffled(network.module, names[: step + 1])
        found[f"cascading, {step + 1} of {len(names)} layers"] = overlap(own, evidence(cascade, images, best))
    for step in steps:
        alone = shuffled(network.module, [names[step]])
        found[f"independent, layer {step + 1} from the output"] = overlap(own, evidence(alone, images, best))
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}


def draw(path: Path, found: list[dict[str, Any]]) -> None:
    """Write how the evidence falls apart as layers lose their weights."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.2))
    for row in found:
        values = [value for name, value in row.items() if name.startswith("cascading")]
        axis.plot(range(len(values) + 1), [1.0, *values], marker="o", label=row["network"])
        axis.axhline(row["overlap of unrelated images"], linewidth=0.8, linestyle=":", color=axis.lines[-1].get_color())
    axis.set(xlabel="layers without their weights, from the output down", ylabel="overlap with trained", ylim=(0, 1.02))
    axis.set_xticks([0, _STAGES], ["none", "all"])
    axis.legend(title="dotted: unrelated images", fontsize=8, title_fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="photographs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    photographs = read_photographs()
    found = [measure(network, network.prepared(photographs.pixels[: options.count])) for network in read_networks()]
    for row in found:
        if options.json:
            print(json.dumps(row))
            continue
        print(f"\n{row['network']}")
        for name, value in list(row.items())[1:]:
            print(f"  {value:<6} {name}")
    if options.picture is not None:
        draw(options.picture, found)
        print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
