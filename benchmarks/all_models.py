"""Every classifier of torchvision, traced to the pixels: `python -m benchmarks.all_models [NAME ...] [--write]`.

Random weights, two images of noise at the published input size. Prints a row per model: nodes of the graph, fixations
per image, how far their masses are from 1, the seconds of capturing, and those of recording and backtracking one image.
`--write` puts the rows into the table of docs/reference/models.md; those of other models stay. About 15 minutes and
14 GiB for all 80.
"""

from __future__ import annotations

import argparse
import inspect
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

import fixcore

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "models.md"
_ABOUT = """<!-- Made by python -m benchmarks.all_models --write; do not edit. -->
# Classifiers that fixcore traces

Every classification model of torchvision {torchvision}, by the table of operations alone. Random weights,
images of noise: the number of fixations of trained weights differs. Seconds are of {machine}, {threads} threads,
torch {torch}, one image.

| model | input | operations | fixations per image | capture, s | record and backtrack, s | sum of masses, off by |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What tracing one model came to."""

    name: str
    side: int
    operations: int
    fixations: float
    capture: float
    trace: float
    off: float

    def __str__(self) -> str:
        """Return a row of the table."""
        return (
            f"| {self.name} | {self.side} | {self.operations} | {self.fixations:.0f} | {self.capture:.1f} | "
            f"{self.trace:.3f} | {self.off:.0e} |"
        )


def classifiers() -> list[str]:
    """Return the names of torchvision's classifiers, in order."""
    return list(torchvision.models.list_models(module=torchvision.models))


def name_of(line: str) -> str | None:
    """Return the model that a line of the page is the row of; None if it is no row."""
    first = line.split("|")[1].strip() if line.startswith("| ") else ""
    return first if first in classifiers() else None


def build(name: str) -> tuple[torch.nn.Module, int]:
    """Return a classifier with random weights and the side of its images."""
    side = int(torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0])
    builder = torchvision.models.get_model_builder(name)
    asked = inspect.signature(inspect.signature(builder).return_annotation).parameters
    options = {"aux_logits": False, "init_weights": True, "image_size": side}
    torch.manual_seed(0)
    return builder(weights=None, **{key: value for key, value in options.items() if key in asked}).eval(), side


def trace(name: str) -> Row:
    """Capture, record and backtrack one model."""
    network, side = build(name)
    began = time.perf_counter()
    graph = fixcore.capture(network, torch.zeros(2, 3, side, side))
    captured = time.perf_counter()
    del network
    images = torch.randn(2, 3, side, side)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        recording = graph.record(images)
        fixations = fixcore.backtrack(recording, recording.logits.argmax(1))
        seconds.append(time.perf_counter() - start)
    mass = torch.zeros(2, dtype=torch.float64).index_add_(0, fixations.image, fixations.mass.double())
    return Row(
        name=name,
        side=side,
        operations=len(graph.nodes),
        fixations=fixations.row.numel() / 2,
        capture=captured - began,
        trace=min(seconds) / 2,
        off=float((mass - 1).abs().max()),
    )


def rows(names: list[str]) -> Iterator[Row]:
    """Trace models one after the other, printing each."""
    for name in names:
        row = trace(name)
        print(row, flush=True)
        yield row


def main() -> None:
    """Trace the models named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="write docs/reference/models.md")
    options = parser.parse_args()
    found = list(rows(options.names or classifiers()))
    if options.write:
        about = _ABOUT.format(
            torchvision=torchvision.__version__.split("+")[0],
            torch=torch.__version__.split("+")[0],
            machine=f"a {platform.machine()} CPU",
            threads=torch.get_num_threads(),
        )
        known = {name_of(line): line for line in _PAGE.read_text(encoding="utf-8").splitlines() if name_of(line)}
        known |= {row.name: str(row) for row in found}
        _PAGE.write_text(
            about + "\n".join(known[name] for name in classifiers() if name in known) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
