"""Whole audits of real images with known label errors: `python -m benchmarks.real_data [NAME ...] [--images 2000]`.

For each audit: what its flags were worth, the accuracy of its predictions, images per second, and how long it took
compared with a plain torch inference loop over the same files with the same network; then what two rounds of verdicts
(`fixaudit review`), given as the truth is known, make of the flags. Names: val300 (direct), probe and
train (CIFAR-10 images with human labels), and shortcut (probe, where each picture of a horse got a white mark in its
lower left corner: is the class listed, and no other?). About 10 minutes in all on 4 cores. Needs the benchmark data.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.cifar import CLASSES, training_files

_ROOT = Path(__file__).resolve().parents[1]
_DATA = _ROOT.parent / "shared" / "data"
_MARKED = "horse"
_CAFFE_MEAN = (123 / 255, 117 / 255, 104 / 255)  # the SqueezeNet there sees 0 to 255, less this
_CAFFE_STD = (1 / 255,) * 3
_LOOP_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A dataset laid out on disk, how to audit it, and the truth."""

    dataset: Path
    options: tuple[str, ...]
    true_name: dict[str, str] | None
    """image_id -> true class; None where only errors are known."""
    errors: frozenset[str]
    """image_ids whose given label is known to be wrong."""
    network: Callable[[], torch.nn.Module]
    """The network of the plain loop."""
    size: int
    mean: Sequence[float]
    std: Sequence[float]


def val300(data: Path, out: Path, images: int) -> Audit:
    """ImageNet validation images, SqueezeNet 1.1; wrong: ReaL or three of five reviewers reject the label."""
    spec = json.loads((data / "imagenet" / "val300.json").read_text())["images"]
    names = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]
    with tarfile.open(data / "imagenet" / "val300.tar") as tar:
        tar.extractall(out, filter="data")
    with (out / "val300.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label"))
        table.writerows((row["file"], names[row["label"]]) for row in spec)
    weights = data / "imagenet" / "squeezenet1_1.pt"
    return Audit(
        dataset=out / "val300.csv",
        options=("--predict", "direct", *_squeezenet_options(weights), "--size", "227", "--fit", "squash"),
        true_name=None,
        errors=frozenset(row["file"] for row in spec if _is_rejected(row)),
        network=lambda: _squeezenet(weights),
        size=227,
        mean=_CAFFE_MEAN,
        std=_CAFFE_STD,
    )


def probe(data: Path, out: Path, images: int, marked: str | None = None) -> Audit:
    """CIFAR-10 with aggregate human labels, linear heads on ImageNet's SqueezeNet 1.1, images enlarged to 128."""
    weights = data / "imagenet" / "squeezenet1_1.pt"
    dataset, true_name, errors = _cifar(data, out, images, marked)
    return Audit(
        dataset=dataset,
        options=("--predict", "probe", *_squeezenet_options(weights), "--size", "128", "--fit", "squash"),
        true_name=true_name,
        errors=errors,
        network=lambda: _squeezenet(weights),
        size=128,
        mean=_CAFFE_MEAN,
        std=_CAFFE_STD,
    )


def shortcut(data: Path, out: Path, images: int) -> Audit:
    """As probe, with a mark on every picture of one class."""
    return probe(data, out, images, _MARKED)


def train(data: Path, out: Path, images: int) -> Audit:
    """CIFAR-10 with aggregate human labels, small networks from scratch."""
    from pipeline.judging.network import small_network

    dataset, true_name, errors = _cifar(data, out, images)
    return Audit(
        dataset=dataset,
        options=("--predict", "train"),
        true_name=true_name,
        errors=errors,
        network=lambda: small_network(10, 32).eval(),
        size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


AUDITS: dict[str, Callable[[Path, Path, int], Audit]] = {
    "val300": val300,
    "probe": probe,
    "shortcut": shortcut,
    "train": train,
}


def score(audit: Audit, run: Path) -> dict[str, Any]:
    """Return what the flags of a run were worth, and the accuracy of its predictions."""
    flags = pd.read_parquet(run / "audit.parquet").set_index("image_id")
    parts = sorted((run / "evidence").iterdir())
    columns = ["image_id", "pred_name", "label_name"]
    evidence = pd.concat([pd.read_parquet(part, columns=columns) for part in parts]).set_index("image_id")
    true = evidence["label_name"] if audit.true_name is None else pd.Series(audit.true_name)
    flagged = set(flags.index[flags["is_mislabeled"]])
    found = len(flagged & audit.errors)
    ranked = flags["label_score"].sort_values(kind="stable").index
    summary = json.loads((run / "summary.json").read_text())
    return {
        "top-1": round(float((evidence["pred_name"] == true.reindex(evidence.index)).mean()), 4),
        "known errors": len(audit.errors),
        "mislabeled flags": len(flagged),
        "found": found,
        "precision": round(found / max(len(flagged), 1), 3),
        "recall": round(found / max(len(audit.errors), 1), 3),
        "F1": round(2 * found / max(len(flagged) + len(audit.errors), 1), 3),
        "precision of the first 50": round(len(set(ranked[:50]) & audit.errors) / 50, 3),
        "precision of the first 100": round(len(set(ranked[:100]) & audit.errors) / 100, 3),
        "estimated precision": summary["estimated_precision"],
        "by the explanations": summary["estimated_precision_range"],
        "estimated errors": summary["estimated_errors"],
        "possible shortcuts": [(one["name"], one["where"], round(one["share"], 2)) for one in summary["shortcuts"]],
        "ambiguous flags": int(flags["is_ambiguous"].sum()),
        "ambiguous that are known errors": len(set(flags.index[flags["is_ambiguous"]]) & audit.errors),
        "drift flags": int(flags["is_adversarial_drift"].sum()),
    }


def reviewed(audit: Audit, run: Path) -> dict[str, Any]:
    """Say of the images that the run asks about what is known of them, twice; return what the flags are worth then."""
    figures: dict[str, Any] = {}
    for _ in range(2):
        asked = pd.read_csv(run / "review.csv", keep_default_na=False)
        asked["verdict"] = np.where(asked["image_id"].isin(audit.errors), "wrong", "right")
        said = run.parent / f"{run.name}-verdicts.csv"
        asked.to_csv(said, index=False)
        began = time.perf_counter()
        command = [sys.executable, str(_ROOT / "cli.py"), "review", str(run), str(said), "--json", "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found = score(audit, run)
        figures[f"after {len(asked)} looks"] = {
            "seconds": round(time.perf_counter() - began, 1),
            **{name: found[name] for name in ("mislabeled flags", "found", "precision", "recall", "F1")},
            "estimated precision": round(found["estimated precision"] or 0, 3),
            "range": [round(one, 2) for one in found["by the explanations"] or ()],
            "estimated errors": round(found["estimated errors"]),
        }
    return figures


class _Files(Dataset[torch.Tensor]):
    """The images of a plain loop, as a user would write it."""

    def __init__(self, paths: Sequence[Path], audit: Audit) -> None:
        self.paths = paths
        transforms = torchvision.transforms
        self.transform = transforms.Compose(
            [
                transforms.Resize((audit.size, audit.size)),
                transforms.ToTensor(),
                transforms.Normalize(audit.mean, audit.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> torch.Tensor:
        image: torch.Tensor = self.transform(Image.open(self.paths[at]).convert("RGB"))
        return image


def plain_loop(audit: Audit, paths: Sequence[Path]) -> float:
    """Return the seconds of reading, resizing and classifying every file; the faster of no workers and two."""
    network = audit.network()
    times = []
    for workers in (0, 2):
        began = time.perf_counter()
        with torch.inference_mode():
            for images in DataLoader(_Files(paths, audit), batch_size=_LOOP_BATCH, num_workers=workers):
                network(images).argmax(1)
        times.append(time.perf_counter() - began)
    return min(times)


def measure(name: str, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Lay out, audit, time the plain loop, score."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    audit = AUDITS[name](data, folder, count)
    command = [sys.executable, str(_ROOT / "cli.py"), "run", str(audit.dataset), *audit.options]
    shutil.rmtree(out / f"{name}-run", ignore_errors=True)  # `--overwrite` would keep the last measurement's verdicts
    told = subprocess.run(
        [*command, "--out", str(out), "--name", f"{name}-run", "--json"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    facts = json.loads(told.stdout)
    run = Path(facts["run"])
    manifest = pd.read_parquet(run / "manifest.parquet")
    loop = plain_loop(audit, [Path(uri) for uri in manifest["uri"]])
    timings = json.loads((run / "run.json").read_text())["timings"]
    images = len(manifest)
    return {
        "audit": name,
        "images": images,
        **score(audit, run),
        "seconds": round(facts["seconds"], 1),
        "images a second": round(images / facts["seconds"], 1),
        "evidence alone, images a second": round(images / timings["evidence"], 1),
        "plain loop, images a second": round(images / loop, 1),
        "whole audit / plain loop": round(facts["seconds"] / loop, 2),
        "evidence / plain loop": round(timings["evidence"] / loop, 2),
        **reviewed(audit, run),
        "report": facts["report"],
    }


def main() -> None:
    """Measure the audits named, or all; print a table each, and JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(AUDITS))
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--out", type=Path, default=Path("runs") / "real_data")
    parser.add_argument("--images", type=int, default=2000, help="of CIFAR-10")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.error(f"the benchmark data is not at {options.data}; name its folder with --data")
    for name in options.names or AUDITS:
        figures = measure(name, options.data, options.out, options.images)
        if options.json:
            print(json.dumps(figures), flush=True)
        else:
            for what, figure in figures.items():
                print(f"{what:34} {figure}")
            print(flush=True)


def _cifar(data: Path, out: Path, count: int, marked: str | None = None) -> tuple[Path, dict[str, str], frozenset[str]]:
    """Write the first training images as an ImageFolder under their aggregate human label; mark one class."""
    labels = np.load(data / "cifar10" / "cifar10n.npz")
    given, clean = labels["aggregate"], labels["clean"]
    root, true_name, errors = out / "images", {}, set()
    shutil.rmtree(root, ignore_errors=True)  # of more images, from a run before
    for index, content in training_files(count, data / "cifar10"):
        image_id = f"{CLASSES[given[index]]}/{index:05d}.jpg"
        true_name[image_id] = CLASSES[clean[index]]
        if given[index] != clean[index]:
            errors.add(image_id)
        path = root / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.parent.name == marked:
            picture = Image.open(path).convert("RGB")
            picture.paste((255, 255, 255), (1, 26, 6, 31))
            picture.save(path, quality=95)
    return root, true_name, frozenset(errors)


def _is_rejected(row: dict[str, Any]) -> bool:
    return bool(row["real"] and row["label"] not in row["real"]) or bool((row["mturk"] or {}).get("is_error"))


def _squeezenet_options(weights: Path) -> tuple[str, ...]:
    mean, std = (",".join(f"{value:.8f}" for value in triple) for triple in (_CAFFE_MEAN, _CAFFE_STD))
    return "--model", "torchvision:squeezenet1_1", "--weights", str(weights), "--mean", mean, "--std", std


def _squeezenet(weights: Path) -> torch.nn.Module:
    network = torchvision.models.squeezenet1_1(weights=None)
    state = torch.load(weights, weights_only=True)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.eval()


if __name__ == "__main__":
    main()
