"""Draws the pictures of docs/algorithm.md: `python docs/make_pictures.py`; about 10 minutes on 4 cores.

Everything in them is made here: small networks learn scikit-learn's scans of handwritten digits, and are traced.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

import fixcore  # noqa: E402
from benchmarks import captions, tokens  # noqa: E402
from benchmarks.digits import SIDE, scans  # noqa: E402
from benchmarks.two_objects import Pairs, pairs, trained  # noqa: E402
from fixcore.rules import MASS  # noqa: E402
from jobs.machine import keep_freed_memory  # noqa: E402

FOLDER = _ROOT / "docs" / "pictures"
_STOPS = (("9", "last map"), ("5", "second convolution"), ("2", "first convolution"))


def walk(path: Path, graph: fixcore.Graph, shown: Pairs, row: int) -> None:
    """Draw the way back of both classes of one picture: class map, points in three layers, pixels, heat."""
    picture, labels = shown.apart[row : row + 1], shown.labels[row]
    recording = graph.record(picture)
    assert graph.head is not None
    columns = ["picture", "class map", *(title for _, title in _STOPS), "fixations, box", "saliency"]
    figure, axes = plt.subplots(2, len(columns), figsize=(1.75 * len(columns), 3.9))
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    for line, label in zip(axes, labels.tolist(), strict=True):
        start = fixcore.Start(torch.zeros(1, dtype=torch.int64), torch.tensor([label]))
        fixations = fixcore.backtrack(recording, start)
        for axis, title in zip(line, columns, strict=True):
            axis.imshow(picture[0, 0], cmap="gray", alpha=1 if title == "picture" else 0.35)
            axis.set(xticks=[], yticks=[], xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
            axis.set_facecolor("black")
        line[0].set_ylabel(f"class “{label}”", fontsize=9)
        by_place = graph.head.by_place(recording.values[graph.head.map])[0]
        side = round(len(by_place) ** 0.5)
        scores = (by_place @ graph.head.on_map(graph.head.weight[[label]])[0]).view(side, side)
        line[1].imshow(scores, cmap="inferno", alpha=0.8, extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5))
        for axis, (stop, _) in zip(line[2:], _STOPS, strict=False):
            there = fixcore.backtrack(recording, start, stop_at=stop)
            _dots(axis, there.row, there.col, there.mass)
        _dots(line[-2], fixations.row, fixations.col, fixations.mass)
        x0, y0, x1, y1 = fixcore.evidence_boxes(fixations)[0].tolist()
        frame = plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="deepskyblue", linewidth=1.5)
        line[-2].add_patch(frame)
        line[-1].imshow(fixcore.saliency_maps(fixations)[0], cmap="inferno", alpha=0.75)
    _save(figure, path)


def for_and_against(path: Path, graph: fixcore.Graph, shown: Pairs, rows: list[int], titles: tuple[str, str]) -> None:
    """Draw both classes' evidence by the published rule for vectors and by net evidence, called by these titles."""
    figure, axes = plt.subplots(len(rows), 5, figsize=(8.75, 1.85 * len(rows)))
    recording = graph.record(shown.apart[rows])
    for number, (title, rules) in enumerate(zip(titles, (replace(MASS, vector="positive"), MASS), strict=True)):
        for side in (0, 1):
            heat = fixcore.saliency_maps(fixcore.backtrack(recording, shown.labels[rows, side], rules=rules))
            for line, row, at in zip(axes, rows, range(len(rows)), strict=True):
                axis = line[1 + 2 * number + side]
                axis.imshow(shown.apart[row, 0], cmap="gray", alpha=0.5)
                axis.imshow(heat[at], cmap="inferno", alpha=0.65)
                axis.set_title(f"“{int(shown.labels[row, side])}”, {title}", fontsize=8)
    for line, row in zip(axes, rows, strict=True):
        line[0].imshow(shown.apart[row, 0], cmap="gray")
        for axis in line:
            axis.set(xticks=[], yticks=[])
    _save(figure, path)


def _dots(axis: Any, row: Tensor, col: Tensor, mass: Tensor) -> None:
    sizes = 10 + 140 * mass / mass.max()
    axis.scatter(col, row, s=sizes, c="orangered", alpha=0.6, linewidths=0)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    print(f"wrote {path.relative_to(_ROOT)}")


def main() -> None:
    """Train and draw."""
    keep_freed_memory()
    FOLDER.mkdir(exist_ok=True)
    *learned, digits, labels = scans()
    shown = pairs(digits, labels, 60)
    for kind in ("average pool", "hidden layers"):
        graph = fixcore.capture(trained(kind, learned[0], learned[1], steps=600), shown.apart[:2])
        if kind == "average pool":
            walk(FOLDER / "walk.png", graph, shown, 3)
        else:
            names = ("every positive input", "for less against")
            for_and_against(FOLDER / "for_and_against.png", graph, shown, [3, 8, 11], names)
    graph = fixcore.capture(tokens.trained(tokens.NETWORKS["class-token"], *learned), shown.apart[:2])
    for_and_against(FOLDER / "tokens.png", graph, shown, [3, 8, 11], ("largest terms", "all layers at once"))
    captions.write_sheet(FOLDER / "captions.png", seconds=120, rows=4)


if __name__ == "__main__":
    main()
