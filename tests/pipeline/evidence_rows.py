"""Evidence parts made by hand: rows with what a rule reads, all else null."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.runfolder import RunFolder

NAMES = ("cat", "dog", "owl")
ABSENT = object()


def image(image_id, label, probs, *, names=NAMES, overlap=ABSENT, traced=True, smoothed=None, **more):
    """An image that was read; `overlap` defaults to 0.7 where label and prediction differ.

    `smoothed` is (squeeze_pred, squeeze_shift, squeeze_overlap).
    """
    half = np.asarray(probs, dtype=np.float16)
    pred = int(np.asarray(probs).argmax())
    row = dict.fromkeys(schema.EVIDENCE.names) | {
        "image_id": image_id,
        "uri": f"/data/{image_id}",
        "sha256": hashlib.sha256(image_id.encode()).hexdigest(),
        "status": "ok",
        "label": label,
        "label_name": names[label] if label >= 0 else "unknown",
        "pred": pred,
        "pred_name": names[pred],
        "fold": 0,
        "probs": half,
    }
    if traced:
        row["pred_box"] = [0.0, 0.0, 8.0, 8.0]
        if pred != label:
            row["evidence_overlap"] = 0.7 if overlap is ABSENT else overlap
            row["evidence_distance"] = None if overlap is None else distance_at(row["evidence_overlap"])
            row["label_box"] = None if row["evidence_overlap"] is None else [1.0, 1.0, 5.0, 5.0]
    if smoothed is not None:
        row |= dict(zip(("squeeze_pred", "squeeze_shift", "squeeze_overlap"), smoothed, strict=True))
    return row | more


def distance_at(overlap):
    """A distance for an overlap: 1.3, where the audit of a few images begins to call evidence apart, for 0.5."""
    return 2.6 * (1 - overlap)


def broken(image_id, label, error="the file is empty", *, names=NAMES, **more):
    """An image that could not be read."""
    row = dict.fromkeys(schema.EVIDENCE.names) | {
        "image_id": image_id,
        "uri": f"/data/{image_id}",
        "status": "error",
        "error": error,
        "label": label,
        "label_name": names[label] if label >= 0 else "unknown",
        "fold": -1,
    }
    return row | more


def clear(count, label, sure=0.94, *, names=NAMES, prefix="clear"):
    """Images that show what they are labelled."""
    probs = np.full(len(names), (1 - sure) / (len(names) - 1))
    probs[label] = sure
    return [image(f"{names[label]}/{prefix}{at:03}.png", label, probs, names=names) for at in range(count)]


def write_run(folder: Path, rows: list[dict], *, part_size: int = 16) -> RunFolder:
    """Write the rows as evidence parts, in the given order."""
    run = RunFolder(folder)
    run.evidence.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, len(rows), part_size)):
        table = pa.Table.from_pylist(rows[start : start + part_size], schema.EVIDENCE)
        pq.write_table(table, run.evidence_part(part))
    return run
