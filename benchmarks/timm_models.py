"""Architectures of timm, traced to the pixels: `python -m benchmarks.timm_models [NAME ...]`.

Needs `pip install timm`. Random weights, two images of noise with a bright square. Of each of timm's modules the
smallest classifier of at most 60 million parameters (finding them takes 3 minutes), or those named. Printed for each:
places of the map that its head reads, fixations per image, how far the recorded logits are from the model's (relative),
how far masses are from 1; or why it is not traced. About 12 minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

import fixcore

_LARGEST = 60_000_000


def smallest() -> Iterator[str]:
    """Return the smallest classifier of each module of timm; networks that are there for its own tests left out."""
    import timm

    for module in timm.list_modules():
        sizes = []
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                with torch.device("meta"):
                    sizes.append((sum(value.numel() for value in timm.create_model(name).parameters()), name))
        if sizes and min(sizes)[0] <= _LARGEST:
            yield min(sizes)[1]


def trace(name: str) -> str:
    """Capture, record and backtrack one model, and say what came of it; fixcore's error where it is not traced."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name)
    channels, height, width = model.pretrained_cfg["input_size"]
    images = torch.rand(2, channels, height, width) * 2 - 1
    images[:, :, height // 4 : height // 2, width // 4 : width // 2] += 1.5
    with torch.no_grad():
        model.train()(images)  # batch norms see the images once
        expected = model.eval()(images)
    graph = fixcore.capture(model, images)
    recording = graph.record(images)
    fixations = fixcore.backtrack(recording, recording.logits.argmax(1))
    off = float((recording.logits - expected).abs().max() / expected.abs().max().clamp(min=1e-9))
    mass = torch.zeros(2, dtype=torch.float64).index_add_(0, fixations.image, fixations.mass.double())
    head = graph.head
    places = "no linear head" if head is None else "a vector"
    if head is not None and head.places:
        shape = recording.values[head.map].shape
        places = " x ".join(str(shape[dim]) for dim in head.places)
    points = fixations.row.numel() / 2
    return f"{places}, {points:.0f} fixations, logits off by {off:.0e}, masses by {float((mass - 1).abs().max()):.0e}"


def main() -> None:
    """Trace the models named, or the smallest of each module; exit code 1 if one is not traced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or list(smallest())
    refused = 0
    for name in names:
        try:
            print(f"{name}: {trace(name)}", flush=True)
        except fixcore.FixcoreError as error:
            refused += 1
            print(f"{name}: not traced: {error}", flush=True)
    print(f"{len(names) - refused} of {len(names)} are traced")
    sys.exit(refused > 0)


if __name__ == "__main__":
    main()
