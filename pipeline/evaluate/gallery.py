"""One sheet of pictures: rows are images, columns methods (CNN Fixations, Fig. 4), or layers (Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import fixcore
from fixcore.baselines import graph_cut_masks
from fixcore.baselines.class_maps import map_places
from fixcore.methods import explain
from pipeline.errors import DatasetError
from pipeline.evaluate.batches import Batch, batches
from pipeline.evaluate.request import Request
from pipeline.files import replacing

_FADED = 0.55
"""How far the picture is lightened under its evidence."""
_CELL = 1.75
"""Inches of a picture."""


def draw_gallery(request: Request, path: Path, *, rows: int = 8, layers: Sequence[str] = ()) -> None:
    """Write a PNG sheet of the first `rows` images: their prediction's evidence by each method, with its box.

    Of the fixations also the points, and the mask that an audit writes. On request with the object that each map points
    at, cut out. With `layers` the columns are the fixations at these layers instead, from the outermost in. True boxes
    are dashed. Raises DatasetError where no image can be read.
    """
    shown = tuple(request.dataset.images[:rows])
    found = list(batches(request.subject, shown, max(1, rows), request.problems))
    if not found:
        raise DatasetError(f"none of the first {rows} images can be read{''.join(request.problems.notes())}")
    (batch,) = found
    recording = request.subject.graph.record(batch.images)
    target = recording.logits.argmax(1)
    columns = _of_layers(recording, target, layers) if layers else _of_methods(request, batch, recording, target)
    request.advance(len(batch.shown))
    _sheet(request, batch, target, columns, path)


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """A column's title and what is drawn over each image: a map, dots, a box; or the part of it that is shown."""

    title: str
    maps: Tensor | None = None
    points: Any = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


def _of_methods(request: Request, batch: Batch, recording: fixcore.Recording, target: Tensor) -> list[_Column]:
    contrast = fixcore.usual_contrast(recording.graph)
    fixations = fixcore.backtrack(recording, target, rules="finer", contrast=contrast)
    activity = fixcore.activity_maps(recording)
    masks = fixcore.saliency_masks(fixations, activity=activity, pictures=batch.images)
    columns = [
        _Column("fixations: points", points=fixations, boxes=fixcore.evidence_boxes(fixations)),
        _Column("fixations: mask", masks=masks.cpu()),
    ]
    for method in request.methods:
        told = explain(method, request.subject.graph, batch.images, target)
        columns.append(_Column(method.name, told.maps.cpu(), boxes=told.boxes.cpu()))
        if request.cut:
            columns.append(_Column("cut out", masks=graph_cut_masks(told.maps.cpu(), batch.pictures)))
    return columns


def _of_layers(recording: fixcore.Recording, target: Tensor, layers: Sequence[str]) -> list[_Column]:
    contrast = fixcore.usual_contrast(recording.graph)
    columns = [
        _Column(layer, points=fixcore.backtrack(recording, target, rules="finer", contrast=contrast, stop_at=layer))
        for layer in layers
    ]
    fixations = fixcore.backtrack(recording, target, rules="finer", contrast=contrast)
    return [*columns, _Column("pixels", points=fixations, boxes=fixcore.evidence_boxes(fixations))]


def _sheet(request: Request, batch: Batch, target: Tensor, columns: list[_Column], path: Path) -> None:
    from matplotlib.figure import Figure

    count, side = len(batch.shown), batch.pixels.shape[1]
    figure = Figure(figsize=(_CELL * (len(columns) + 1), _CELL * count * 1.08 + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(count, len(columns) + 1, squeeze=False)
    names = request.subject.classes
    for row in range(count):
        picture = batch.pixels[row]
        at = int(target[row])
        told = names[at] if names else f"class {at}"
        axes[row, 0].imshow(picture)
        axes[row, 0].set_title(told if len(told) < 26 else told[:24] + "…", fontsize=7, pad=2)
        for box in batch.truths[row]:
            if not bool(box.isnan().any()):
                _rectangle(axes[row, 0], box, "#1f9d57", dashed=True)
        for column, axis in zip(columns, axes[row, 1:], strict=True):
            _draw(axis, picture, column, row)
            if row == 0:
                axis.set_title(column.title, fontsize=8, pad=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _draw(axis: Any, picture: NDArray[np.uint8], column: _Column, row: int) -> None:
    faded = (picture * (1 - _FADED) + 255 * _FADED).astype(np.uint8)
    axis.imshow(faded if column.masks is None else np.where(column.masks[row].numpy()[:, :, None], picture, faded))
    if column.maps is not None:
        map_ = column.maps[row].numpy()
        # The brightest pixel of a pointwise map is far above all others: what is above 99.5 % of it counts as full.
        full = max(float(np.quantile(map_, 0.995)), 1e-12)
        strength = np.clip(map_ / full, 0, 1)
        axis.imshow(strength, cmap="magma_r", alpha=0.85 * strength, vmin=0, vmax=1)
    if column.points is not None:
        own = column.points.image == row
        mass = column.points.mass[own].cpu().numpy()
        size = 60 * mass / max(float(mass.max(initial=0)), 1e-12) + 2
        col, line = (one[own].cpu().numpy() for one in (column.points.col, column.points.row))
        axis.scatter(col, line, s=size, c="#c2311f", alpha=0.6, linewidths=0)
    if column.boxes is not None and not bool(column.boxes[row].isnan().any()):
        _rectangle(axis, column.boxes[row], "#1d4e89")


def _rectangle(axis: Any, box: Tensor, colour: str, *, dashed: bool = False) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = (float(edge) - 0.5 for edge in box)
    style = "--" if dashed else "-"
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.3, linestyle=style))


def last_layers(graph: fixcore.Graph, count: int = 4) -> tuple[str, ...]:
    """Return operations whose maps halve in size, from the output down: columns for a sheet of inner layers."""
    found: list[str] = []
    extent = 0
    places = map_places(graph)
    for node in reversed(graph.nodes):
        rows = node.meta["seen"].shape[2] if places.get(node) == (2, 3) else 0
        if rows > max(1, extent * 1.5):
            found.append(node.name)
            extent = rows
    return tuple(found[:count])
