"""Unpack the measuring data beside the project into folders that `fixaudit evaluate` reads.

`python -m benchmarks.unpack [FOLDER]` (default: /tmp/fixaudit-data) writes val300/ (images and boxes.csv), ecssd/
(images and masks), coco128/ (images and instances.json), classes.txt (ImageNet's names).
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tarfile
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def unpack(folder: Path) -> None:
    """Write the three datasets below `folder`; FileNotFoundError where the data are absent."""
    _extract(DATA / "imagenet" / "val300.tar", folder / "val300")
    rows = json.loads((DATA / "imagenet" / "val300.json").read_text())["images"]
    with (folder / "val300" / "boxes.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["image", "label", "x0", "y0", "x1", "y1"])
        for row in rows:
            for box in row["boxes"]:
                writer.writerow([Path(row["file"]).name, row["label"], *box])
    names = json.loads((DATA / "imagenet" / "classes.json").read_text())["names"]
    (folder / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    _extract(DATA / "ecssd" / "ecssd200.tar", folder)
    shutil.rmtree(folder / "ecssd", ignore_errors=True)
    (folder / "ecssd200").rename(folder / "ecssd")
    _extract(DATA / "coco128" / "train128.tar", folder / "coco128")
    shutil.copy(DATA / "coco128" / "train128.json", folder / "coco128" / "instances.json")


def _extract(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/fixaudit-data")
    unpack(where)
    print(where)
