"""What the parts of a saliency map are worth: `python -m benchmarks.saliency_rules [FOLDER] [--write]`.

Trained networks on what `python -m benchmarks.unpack` wrote into FOLDER (default: /tmp/fixaudit-data). For each weight
that a fixation may have (its mass, the root of it, once), with or without the network's activity, and along the
picture's edges: max-F on the object masks of ECSSD, with the predicted class; the F-measure (beta squared 0.3) and
intersection over union of the mask at our threshold; the share of photographs whose peak lies in a true box, or within
15 pixels of one; and, of two photographs shown side by side, how much of the mask of one's class lies on its side.
Last, what the activity and the edges take, as shares of a recorded forward pass. `--write` puts the table into
docs/algorithm.md. About a minute on 4 cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import fixcore
from benchmarks.pages import ALGORITHM, write_between
from fixcore.evidence.saliency import THRESHOLD, saliency_maps
from fixcore.metrics import mask_scores, pointing_hits
from jobs.machine import keep_freed_memory
from pipeline.annotated import read_annotated
from pipeline.evaluate.batches import Batch, Problems, batches
from pipeline.evaluate.subject import Subject, load_subject

NETWORKS = {"SqueezeNet 1.1": "benchmarks.photographs:squeezenet", "MobileNetV2": "benchmarks.photographs:mobilenet"}
_MARK = "<!-- python -m benchmarks.saliency_rules --write -->"

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "its mass": lambda mass: mass,
    "the root of its mass": torch.sqrt,
    "one": torch.ones_like,
}
DEFAULT = "the root of its mass, shared by activity, along edges"


def all_maps(fixations: fixcore.Fixations, activity: Tensor, pictures: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield each way to draw the maps, by name."""
    for name, weight in WEIGHTS.items():
        rooted = replace(fixations, mass=weight(fixations.mass).square())  # of which a map takes the root
        yield name, saliency_maps(rooted)
        shared = saliency_maps(rooted, activity=activity)
        yield f"{name}, shared by activity", shared
        yield f"{name}, shared by activity, along edges", fixcore.guided_filter(shared, pictures)
    product = saliency_maps(fixations) * activity
    yield "the root of its mass; their density times activity", product / product.amax((1, 2), keepdim=True)
    yield "nothing: activity alone", activity / activity.amax((1, 2), keepdim=True)


def traced(
    subject: Subject, folder: Path, costs: list[tuple[float, float]]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Yield batches and the maps of the true classes; where the images have none, of the predicted.

    Appends to `costs` what each batch's activity and its edges take as shares of recording it.
    """
    dataset = read_annotated(folder)
    for batch in batches(subject, dataset, 50, Problems()):
        began = time.perf_counter()
        recording = subject.graph.record(batch.images)
        recorded = time.perf_counter()
        activity = fixcore.activity_maps(recording)
        named = time.perf_counter()
        fixcore.guided_filter(activity, batch.images)
        edges = time.perf_counter() - named
        costs.append(((named - recorded) / (recorded - began), edges / (recorded - began)))
        target = recording.logits.argmax(1)
        if batch.owners[0]:
            target = torch.tensor([int(own[0]) for own in batch.owners])
        yield batch, dict(all_maps(as_an_audit(recording, target), activity, batch.images))


def measure(model: str, folder: Path) -> tuple[dict[str, tuple[float, ...]], tuple[float, float]]:
    """Return per way to draw: max-F, F and IoU at the threshold, pointing, own side; and the costs' medians."""
    subject = load_subject(model)
    costs: list[tuple[float, float]] = []
    covered: dict[str, list[Tensor]] = {}
    masks: list[Tensor] = []
    for batch, maps in traced(subject, folder / "ecssd", costs):
        masks.append(batch.masks(subject.input))
        for name, own in maps.items():
            covered.setdefault(name, []).append(own)
    pointed: dict[str, list[Tensor]] = {}
    sided: dict[str, list[Tensor]] = {}
    for batch, maps in traced(subject, folder / "val300", costs):
        for name, own in maps.items():
            pointed.setdefault(name, []).append(pointing_hits(own, batch.truths))
        for name, shares in on_own_side(subject, batch).items():
            sided.setdefault(name, []).append(shares)
    truth = torch.cat(masks)
    found = {}
    for name, parts in covered.items():
        drawn = torch.cat(parts)
        means = [float(torch.cat(values[name]).float().mean()) for values in (pointed, sided)]
        shown = mask_scores((drawn >= THRESHOLD).float(), truth)
        found[name] = (mask_scores(drawn, truth).max_f, shown.max_f, shown.iou, *means)
    activity, edges = (statistics.median(shares) for shares in zip(*costs, strict=True))
    return found, (activity, edges)


def as_an_audit(recording: fixcore.Recording, target: Tensor) -> fixcore.Fixations:
    """Return the fixations of the targets (N,) by the rules of audits."""
    return fixcore.backtrack(recording, target, rules="finer", contrast=fixcore.usual_contrast(recording.graph))


def on_own_side(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    """Return what share of each class's mask lies on its own of two photographs shown side by side, (2 N,)."""
    size = subject.input.size
    images, labels = side_by_side(subject, batch)
    recording = subject.graph.record(images)
    activity = fixcore.activity_maps(recording)
    found: dict[str, list[Tensor]] = {}
    for side, target in enumerate(labels):
        for name, maps in all_maps(as_an_audit(recording, target), activity, images):
            mask = maps >= THRESHOLD
            left = mask[..., : size // 2].sum((1, 2)) / mask.sum((1, 2))
            found.setdefault(name, []).append(1 - left if side else left)
    return {name: torch.cat(shares) for name, shares in found.items()}


def side_by_side(subject: Subject, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return pairs of photographs as one image each, (N, 3, S, S), and the left and right ones' classes, (N,) each.

    The one on the left has the columns before S // 2.
    """
    size = subject.input.size
    wide = (batch.pictures * 255)[: len(batch.pictures) // 2 * 2]
    half = functional.interpolate(wide, (size, size // 2), mode="bilinear", antialias=True)
    both = torch.zeros(len(half) // 2, 3, size, size)
    both[..., : size // 2], both[..., size // 2 : size // 2 * 2] = half[0::2], half[1::2]
    labels = torch.tensor([int(own[0]) for own in batch.owners[: len(wide)]])
    return subject.images(both.round().byte().permute(0, 2, 3, 1).numpy()), (labels[0::2], labels[1::2])


def main() -> None:
    """Measure every way to draw on every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/fixaudit-data"))
    parser.add_argument("--write", action="store_true", help="put the table into docs/algorithm.md")
    options = parser.parse_args()
    keep_freed_memory()
    found = {name: measure(model, options.folder) for name, model in NETWORKS.items()}
    heads = [f"{name}: max-F; F, IoU at {THRESHOLD:g}; pointing; own side" for name in found]
    lines = ["| a fixation counts | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for way in next(iter(found.values()))[0]:
        cells = ["{:.3f}; {:.3f}, {:.3f}; {:.3f}; {:.3f}".format(*table[way]) for table, _ in found.values()]
        lines.append(f"| {way}{' (default)' if way == DEFAULT else ''} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    for name, (_, (activity, edges)) in found.items():
        print(f"{name}: activity takes {activity:.3f} of a recorded forward pass, edges {edges:.3f}")
    if options.write:
        write_between(ALGORITHM, _MARK, lines)


if __name__ == "__main__":
    main()
