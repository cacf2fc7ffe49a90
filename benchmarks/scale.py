"""The audit's own steps on ImageNet's size: `python -m benchmarks.scale [--images 1281167] [--classes 1000]`.

Writes evidence parts with made-up probabilities (float16 Parquet, 10,000 images each, a model that is right in 75 % and
labels of which 5 % are wrong), digests, eight fixations, and thumbnails with the spectrum of photographs. Then runs
audit, issues and summary on them in a process of its own, and the audit once more with verdicts, and prints the time of
each and the peak memory (resident set). The files are removed at the end; 9 minutes in all on 4 cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.fft import idctn

from pipeline import schema
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.audit.review import images_to_review
from pipeline.audit.summary import write_summary
from pipeline.dataset.images import THUMBNAIL
from pipeline.runfolder import RunFolder

_PART_ROWS = 10_000
_POINTS = 8
_LIKELY = 20
"""Classes of an image that its model takes for more than nothing; the rest share a thousandth."""


def made_up_thumbnails(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Return noise with the spectrum of photographs, (count, 8, 8): amplitudes fall as one over the frequency.

    White noise would lie in all directions alike, which no picture does, and which a k-d tree finds hardest.
    """
    frequency = np.hypot(*np.meshgrid(np.arange(THUMBNAIL), np.arange(THUMBNAIL)))
    waves = rng.standard_normal((count, THUMBNAIL, THUMBNAIL), dtype=np.float32) / np.maximum(frequency, 1)
    return np.clip(128 + 60 * idctn(waves, axes=(1, 2), norm="ortho"), 0, 255).astype(np.uint8)


def write_part(path: Path, first: int, count: int, classes: int, seed: int) -> int:
    """Write an evidence part; return how many of its labels are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    probs = np.full((count, classes), 1e-3 / classes, np.float32)
    near = rng.integers(0, classes, (count, _LIKELY))
    near[:, 0] = truth
    weights = rng.gamma(0.3, size=(count, _LIKELY)).astype(np.float32)
    weights[:, 0] += 1.5 * rng.random(count)
    np.put_along_axis(probs, near, weights + 1e-3, axis=1)
    probs /= probs.sum(axis=1, keepdims=True)
    wrong = rng.random(count) < 0.05
    label = np.where(wrong, rng.integers(0, classes, count), truth)
    pred = probs.argmax(axis=1)
    ids = [f"n{one:04}/{first + at:07}.jpg" for at, one in enumerate(label.tolist())]
    points = np.arange(0, count * _POINTS + 1, _POINTS, dtype=np.int32)
    place = [pa.array(rng.integers(0, 500, count * _POINTS), pa.int32()) for _ in range(2)]
    mass = pa.array(np.full(count * _POINTS, 1 / _POINTS, np.float32))
    filled: dict[str, Any] = {
        "image_id": ids,
        "uri": ids,
        "sha256": [f"{first + at:064x}" for at in range(count)],
        "thumbnail": [one.tobytes() for one in made_up_thumbnails(rng, count)],
        "width": [500] * count,
        "height": [500] * count,
        "pred_fix_x": pa.ListArray.from_arrays(points, place[0]),
        "pred_fix_y": pa.ListArray.from_arrays(points, place[1]),
        "pred_fix_mass": pa.ListArray.from_arrays(points, mass),
        "status": ["ok"] * count,
        "label": pa.array(label, pa.int32()),
        "label_name": [f"n{one:04}" for one in label.tolist()],
        "pred": pa.array(pred, pa.int32()),
        "pred_name": [f"n{one:04}" for one in pred.tolist()],
        "probs": pa.ListArray.from_arrays(
            np.arange(0, count * classes + 1, classes, dtype=np.int32), pa.array(probs.astype(np.float16).ravel())
        ),
    }
    arrays = [filled.get(field.name, pa.nulls(count, field.type)) for field in schema.EVIDENCE]
    columns = [pa.array(one, field.type) for one, field in zip(arrays, schema.EVIDENCE, strict=True)]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema.EVIDENCE), path, compression="zstd")
    return int((label != truth).sum())


def audit(folder: str, classes: int, told: Any) -> None:
    """Run the steps in this process and send what they took."""
    run = RunFolder(Path(folder))
    names = [f"n{one:04}" for one in range(classes)]
    took = {}
    for step, work in (
        ("audit", lambda: write_audit(run, names)),
        ("issues", lambda: write_issues(run)),
        ("summary", lambda: write_summary(run, names)),
        ("audit with 50 verdicts", lambda: write_audit(run, names, dict.fromkeys(images_to_review(run), True))),
    ):
        began = time.perf_counter()
        work()
        took[step] = round(time.perf_counter() - began, 1)
        told.send((step, took[step], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def main() -> None:
    """Write, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write [the temporary folder]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = RunFolder(Path(folder))
        run.evidence.mkdir()
        starts = range(0, options.images, _PART_ROWS)
        tasks = [
            (run.evidence_part(part), start, min(_PART_ROWS, options.images - start), options.classes, part)
            for part, start in enumerate(starts)
        ]
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool() as pool:
            wrong = sum(pool.starmap(write_part, tasks))
        size = sum(part.stat().st_size for part in run.evidence_parts())
        print(f"{options.images:,} x {options.classes:,} probabilities, {size / 1e9:.2f} GB, {wrong:,} labels wrong;"
              f" written in {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=audit, args=(folder, options.classes, theirs))
        process.start()
        for _ in range(4):
            step, seconds, peak = ours.recv()
            print(f"{step:22} {seconds:7.1f} s   peak so far {peak / 1024:6.0f} MB", flush=True)
        process.join()
        summary = json.loads(run.summary.read_text())
        for key in ("estimated_errors", "estimated_errors_range", "estimated_precision", "issues"):
            print(f"{key}: {summary[key]}")


if __name__ == "__main__":
    main()
