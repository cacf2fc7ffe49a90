"""Evidence measured by a protocol: from the command's words to tables and a picture."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fixcore.methods import DEFAULT, METHODS, find_methods
from jobs.machine import keep_freed_memory, usable_cores, usable_device
from jobs.progress import Reporter
from pipeline.annotated import read_annotated
from pipeline.dataset.manifest import read_class_names
from pipeline.evaluate.gallery import draw_gallery, last_layers
from pipeline.evaluate.protocols import check_marks, check_name, evaluate
from pipeline.evaluate.request import Request
from pipeline.evaluate.subject import load_subject
from pipeline.evaluate.table import Table, merged_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """What the command was told; see `fixaudit evaluate --help`."""

    protocol: str
    data: Path
    model: str
    weights: Path | None = None
    classes: Path | None = None
    methods: str | None = None
    form: str | None = None
    split: str | None = None
    limit: int | None = None
    size: int | None = None
    fit: str | None = None
    batch_size: int = 16
    cut: bool = False
    layers: str | None = None
    rows: int = 8
    plot: Path | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came out: tables, or a picture alone."""

    tables: tuple[Table, ...]
    picture: Path | None
    facts: dict[str, Any]


def run_evaluate(options: EvaluateOptions, reporter: Reporter) -> Evaluated:
    """Measure, and write the picture if one is wanted; an AuditError says in one line what is wrong."""
    check_name(options.protocol)
    device = usable_device(options.device)
    wanted = ",".join(DEFAULT) if options.methods is None else options.methods
    names = list(METHODS) if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    methods = find_methods(names)
    keep_freed_memory()
    torch.set_num_threads(usable_cores())
    dataset = read_annotated(options.data, form=options.form, split=options.split)
    if options.limit is not None:
        dataset = replace(dataset, images=dataset.images[: options.limit])
    check_marks(options.protocol, dataset)
    subject = load_subject(
        options.model,
        weights=options.weights,
        classes=None if options.classes is None else read_class_names(options.classes),
        size=options.size,
        fit=options.fit,
        device=device,
    )
    count = min(options.rows, len(dataset)) if options.protocol == "gallery" else len(dataset)
    request = Request(subject, dataset, methods, options.batch_size, options.cut)
    tables: list[Table] = []
    picture = options.plot
    with reporter.step(options.protocol, count) as advance:
        request = replace(request, advance=advance)
        if options.protocol == "gallery":
            picture = options.plot or Path("gallery.png")
            layers = _layers(options.layers, subject.graph)
            draw_gallery(request, picture, rows=options.rows, layers=layers)
        else:
            tables = evaluate(options.protocol, request)
    if tables and picture is not None:
        tables[0].plot(picture)
    about = {
        "model": options.model,
        "data": str(options.data),
        "images": len(dataset),
        "picture": None if picture is None else str(picture),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return Evaluated(tuple(tables), picture, merged_facts(options.protocol, tables, about))


def _layers(told: str | None, graph: Any) -> tuple[str, ...]:
    if told is None:
        return ()
    return last_layers(graph) if told == "auto" else tuple(name.strip() for name in told.split(",") if name.strip())
