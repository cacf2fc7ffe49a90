"""Whose boxes hit, over networks and datasets: `python -m benchmarks.boxes [FOLDER]`.

The localization protocol with trained networks on what `python -m benchmarks.unpack` wrote into FOLDER (default:
/tmp/fixaudit-data): the true class's boxes in ImageNet photographs; the predicted class's around ECSSD's masks and
COCO's largest objects. Each rival has the box rule that is best for it there, with its setting chosen on held-out
halves; fixations have the box of their moments. Prints each share of hits, their mean over the datasets' images, and
what a rival hits more than fixations, image by image, with the standard error. About 15 minutes on 4 cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.saliency_rules import NETWORKS
from fixcore.methods import DEFAULT, find_methods
from pipeline.annotated import read_annotated
from pipeline.evaluate import Request, evaluate
from pipeline.evaluate.subject import load_subject

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


def main() -> None:
    """Measure every method on every dataset with every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/tmp/fixaudit-data"))
    parser.add_argument("--methods", default=",".join(DEFAULT), metavar="A,B", help="fixations first")
    options = parser.parse_args()
    cells: dict[tuple[str, str], tuple[Told, int]] = {}
    for data, title in DATASETS.items():
        for network, model in NETWORKS.items():
            cells[title, network] = compared(model, options.folder / data, options.methods)
    count = {title: images for (title, _), (_, images) in cells.items()}
    total = sum(count.values())
    print("| method | " + " | ".join(f"{title}, {network}" for title, network in cells) + " | mean | more |")
    print("|---" * (len(cells) + 3) + "|")
    for method in next(iter(cells.values()))[0]:
        told = {key: found[method] for key, (found, _) in cells.items()}
        share, more = (
            sum(count[title] * one[at] for (title, _), one in told.items()) / total / len(NETWORKS) for at in (1, 2)
        )
        # Of two networks on the same images the errors may be the same; of two datasets they are not.
        spread = {
            title: sum(one[3] for (where, _), one in told.items() if where == title) / len(NETWORKS) for title in count
        }
        error = math.hypot(*(count[title] * one for title, one in spread.items())) / total
        hits = [f"{one[1]:.3f}" + (f" ({one[0]})" if one[0] not in ("-", "moments") else "") for one in told.values()]
        print(
            f"| {method or 'fixations'} | {' | '.join(hits)} | {share:.3f} | "
            + (f"{more:+.3f} ± {error:.3f} |" if method else "|")
        )


if __name__ == "__main__":
    main()
