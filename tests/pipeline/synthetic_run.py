"""A finished run folder without a run: drawn images and made-up evidence, hostile names among them.

`make_run` writes what the pipeline writes before the report: manifest, evidence, audit, issues, summary.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from pipeline import schema
from pipeline.audit.shortcuts import Shortcut
from pipeline.audit.summary import ClassSummary, Summary
from pipeline.files import write_json
from pipeline.geometry import MAP_SIDE
from pipeline.runfolder import RunFolder

SCRIPT = "<script>alert(1)</script>"
ARABIC = "تفاحة \u202egpj.exe"
LONG = "a class with a name that goes on " * 8 + "and_then_one_word_of_" + "x" * 200
HAN = "猫と犬 $x^{2$"  # no formula, though it looks like the start of one
CLASSES = ("cat", "dog", SCRIPT, ARABIC, LONG, HAN)
SHARD = 16

Rgb = tuple[int, int, int]
_INKS: tuple[Rgb, ...] = ((214, 64, 69), (69, 105, 214), (240, 190, 60), (70, 160, 90), (150, 80, 180), (90, 190, 200))


@dataclass
class Drawn:
    """One image and what the run says about it."""

    image_id: str
    size: tuple[int, int]
    label: int
    pred: int
    issues: tuple[str, ...] = ()
    confidence: float = 0.9
    same_as: str | None = None
    broken: str | None = None
    verdict: str | None = None


def default_images(count: int = 40) -> list[Drawn]:
    images = [
        Drawn("cat/one object.png", (320, 240), 0, 1, ("mislabeled",), 0.97),
        Drawn("dog/two-objects.png", (240, 320), 1, 0, ("ambiguous", "mislabeled"), 0.52),
        Drawn("cat/8x8.png", (8, 8), 0, 1, ("mislabeled",), 0.88),
        Drawn("cat/1x1.png", (1, 1), 0, 0, ("adversarial_drift",), 0.4),
        Drawn("dog/wide.png", (10000, 3), 1, 0, ("mislabeled",), 0.61),
        Drawn("dog/tall.png", (30, 900), 1, 0, ("ambiguous",), 0.55),
        Drawn("cat/<img src=x onerror=alert(2)>.png", (200, 200), 0, 2, ("mislabeled",), 0.93),
        Drawn(f"cat/' onclick='alert(3) {chr(34)}&amp;.png", (200, 160), 2, 3, ("mislabeled",), 0.9999),
        Drawn("rtl/\u202egnp.شفاه.png", (160, 200), 3, 4, ("adversarial_drift",), 0.81),
        Drawn("long/" + "n" * 180 + ".png", (64, 48), 4, 5, ("ambiguous",), 0.49),
        Drawn("han/猫 1.png", (28, 28), 5, 5, ("adversarial_drift",), 0.77),
        Drawn("cat/copy.png", (180, 140), 0, 1, ("duplicate_conflict", "mislabeled"), 0.9),
        Drawn("dog/copy.png", (180, 140), 1, 1, ("duplicate_conflict",), 0.9, same_as="cat/copy.png"),
        Drawn("dog/zero bytes.png", (0, 0), 1, 1, ("unreadable",), broken="the file is empty"),
        Drawn("cat/<b>text</b>.jpg".replace("/b", "∕b"), (0, 0), 0, 0, ("unreadable",), broken="not an image"),
    ]
    for index in range(len(images), count):
        label = index % 2
        flagged = ("mislabeled",) if index % 3 == 0 else ("ambiguous",) if index % 7 == 0 else ()
        images.append(
            Drawn(f"plain/{index:04d}.jpg", (160 + 3 * index, 220), label, 1 - label if flagged else label, flagged)
        )
    return images[:count]


def make_run(folder: Path, images: list[Drawn] | None = None, *, points: int = 260) -> RunFolder:
    """Write images to `folder`/dataset and a run without run.json to `folder`/run."""
    images = sorted(default_images() if images is None else images, key=lambda image: image.image_id)
    run = RunFolder(folder / "run")
    run.evidence.mkdir(parents=True)
    rows = [_row(image, folder / "dataset", np.random.default_rng(index), points) for index, image in enumerate(images)]
    manifest = [
        {**{name: row[name] for name in ("image_id", "uri", "label", "label_name")}, "split": "", "shard": at // SHARD}
        for at, row in enumerate(rows)
    ]
    _write(manifest, run.manifest, schema.MANIFEST)
    for shard, start in enumerate(range(0, len(rows), SHARD)):
        _write(rows[start : start + SHARD], run.evidence_part(shard), schema.EVIDENCE)
    _write([_audit(row, image) for row, image in zip(rows, images, strict=True)], run.audit, schema.AUDIT)
    issues = _issues(rows, images)
    _write(issues, run.issues, schema.ISSUES_TABLE)
    write_json(dataclasses.asdict(_summary(rows, images, issues)), run.summary)
    return run


def _write(rows: list[dict], path: Path, declared: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, declared), path)


def _draw(image: Drawn, rng: np.random.Generator) -> tuple[Image.Image, list[tuple[float, float, float]]]:
    """Return the picture and its two objects as (x, y, radius)."""
    width, height = image.size
    noise = rng.integers(0, 40, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
    ground = Image.fromarray(noise + np.uint8(150)).resize(image.size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(ground)
    radius = 0.2 * min(width, height)
    objects = [
        (width * rng.uniform(0.2, 0.4), height * rng.uniform(0.3, 0.6), radius),
        (width * rng.uniform(0.6, 0.8), height * rng.uniform(0.4, 0.7), radius),
    ]
    for (x, y, r), kind in zip(objects, (image.label, image.pred), strict=True):
        corners = (x - r, y - r, x + r, y + r)
        (pen.ellipse if kind % 2 == 0 else pen.rectangle)(corners, fill=_INKS[kind])
    return ground, objects


def _row(image: Drawn, dataset: Path, rng: np.random.Generator, points: int) -> dict:
    path = dataset / image.image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    row = dict.fromkeys(schema.EVIDENCE.names)
    row |= {
        "image_id": image.image_id,
        "uri": str(path),
        "label": image.label,
        "label_name": CLASSES[image.label],
        "status": "ok",
    }
    if image.broken:
        path.write_bytes(b"")
        return row | {"status": "error", "error": image.broken}
    if image.same_as:
        rng = np.random.default_rng(99)
    picture, objects = _draw(image, rng)
    if image.same_as:
        path.write_bytes((dataset / image.same_as).read_bytes())
    else:
        picture.save(path)
    probs = np.full(len(CLASSES), (1 - image.confidence) / (len(CLASSES) - 1))
    probs[image.pred] = image.confidence
    row |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "width": image.size[0],
        "height": image.size[1],
        "pred": image.pred,
        "pred_name": CLASSES[image.pred],
        "fold": 0,
        "probs": probs.astype(np.float16),
        **_evidence("pred", objects[1], image.size, rng, points),
    }
    if image.label != image.pred:
        row |= _evidence("label", objects[0], image.size, rng, points)
        row["evidence_overlap"] = 0.12
    return row


def _evidence(prefix: str, place: tuple[float, float, float], size: tuple[int, int], rng, points: int) -> dict:
    width, height = size
    x, y, radius = place
    column = np.clip(rng.normal(x, radius * 0.6, points), 0, width - 1).astype(np.int32)
    line = np.clip(rng.normal(y, radius * 0.6, points), 0, height - 1).astype(np.int32)
    pixel = np.unique(line.astype(np.int64) * width + column)
    mass = rng.exponential(1, len(pixel)).astype(np.float32) ** 2
    box = (max(x - radius, 0), max(y - radius, 0), min(x + radius, width), min(y + radius, height))
    lines, columns = np.ogrid[:height, :width]
    mask = (columns + 0.5 - x) ** 2 + (lines + 0.5 - y) ** 2 <= max(radius * 1.1, 0.8) ** 2
    cells = (np.arange(MAP_SIDE) + 0.5) / MAP_SIDE
    squared = ((cells * width - x) ** 2 + (cells[:, None] * height - y) ** 2) / max(radius, width / MAP_SIDE) ** 2
    return {
        f"{prefix}_fix_x": (pixel % width).astype(np.int32),
        f"{prefix}_fix_y": (pixel // width).astype(np.int32),
        f"{prefix}_fix_mass": mass / mass.sum(),
        f"{prefix}_box": box,
        f"{prefix}_mask": coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode("ascii"),
        f"{prefix}_map": np.rint(255 * np.exp(squared.min() - squared)).astype(np.uint8).tobytes(),
    }


def _audit(row: dict, image: Drawn) -> dict:
    ok = row["status"] == "ok"
    return {
        "image_id": row["image_id"],
        "status": row["status"],
        "label": row["label"],
        "label_name": row["label_name"],
        "label_score": float(row["probs"][image.label]) if ok else None,
        "ambiguity_score": 0.5 if ok else None,
        "drift_score": None,
        "is_mislabeled": "mislabeled" in image.issues,
        "is_ambiguous": "ambiguous" in image.issues,
        "is_adversarial_drift": "adversarial_drift" in image.issues,
        "suggested_label": image.pred if ok else None,
        "suggested_name": CLASSES[image.pred] if ok else None,
        "verdict": image.verdict,
        "is_worth_a_look": ok and image.pred != image.label and image.verdict is None,
    }


_REASONS = {
    "mislabeled": "the network reads {pred} ({p:.0%}) and finds next to no evidence for {label}; "
    "another label is likely right",
    "ambiguous": "evidence for {label} and for {pred} lies in different places (overlap 0.12): two objects",
    "adversarial_drift": "smoothing turns the prediction from {pred} while the evidence stays where it is",
    "duplicate_conflict": "the same bytes also appear under another label",
    "unreadable": "{error}",
}


def _issues(rows: list[dict], images: list[Drawn]) -> list[dict]:
    flagged = [(row, image, issue) for row, image in zip(rows, images, strict=True) for issue in image.issues]
    flagged.sort(key=lambda one: (schema.ISSUES.index(one[2]), -one[1].confidence))
    return [
        {
            "rank": rank,
            "image_id": row["image_id"],
            "issue": issue,
            "score": None if issue == "unreadable" else round(1 - image.confidence, 4),
            "label_name": row["label_name"],
            "suggested_name": row["pred_name"] if issue == "mislabeled" else None,
            "reason": _REASONS[issue].format(
                pred=row["pred_name"], label=row["label_name"], p=image.confidence, error=row["error"]
            ),
        }
        for rank, (row, image, issue) in enumerate(flagged, 1)
    ]


def _summary(rows: list[dict], images: list[Drawn], issues: list[dict]) -> Summary:
    ok = [row for row in rows if row["status"] == "ok"]
    return Summary(
        schema=schema.VERSION,
        images=len(rows),
        ok=len(ok),
        error=len(rows) - len(ok),
        judged=len(ok),
        reviewed=sum(image.verdict is not None for image in images),
        worth_a_look=sum(image.pred != image.label for image in images),
        reviewed_wrong=sum(image.verdict == "wrong" for image in images),
        issues={name: sum(issue["issue"] == name for issue in issues) for name in schema.ISSUES},
        accuracy=sum(row["label"] == row["pred"] for row in ok) / len(ok) if ok else None,
        estimated_errors=1.92,
        estimated_errors_range=(1.1, 3.0),
        estimated_noise=0.048,
        estimated_precision=0.83,
        estimated_precision_range=(0.6, 0.95),
        classes=tuple(
            ClassSummary(
                label=label,
                name=name,
                images=sum(row["label"] == label for row in rows),
                mislabeled=sum(image.label == label and "mislabeled" in image.issues for image in images),
                flagged=sum(image.label == label and bool(image.issues) for image in images),
                ambiguous=sum(image.label == label and "ambiguous" in image.issues for image in images),
                adversarial_drift=sum(image.label == label and "adversarial_drift" in image.issues for image in images),
                accuracy=0.9 - label / 10 if label else None,
                estimated_noise=label * 0.01 / 3,
                estimated_precision=0.9 if label else None,
                most_confused_with=CLASSES[label - 1] if label else None,
                confused_images=label,
            )
            for label, name in enumerate(CLASSES)
        ),
        shortcuts=(Shortcut(label=0, name=CLASSES[0], where="top left corner", share=0.72, elsewhere=0.05, images=40),),
    )
