"""One shard's evidence: what each image is taken for, out of sample, and the pixels that say so.

n images of a shard, K classes, T traced (image, class) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

import fixcore
from fixcore.evidence.saliency import THRESHOLD
from pipeline import rle, schema
from pipeline.dataset.images import DecodedShard
from pipeline.errors import ProbabilitiesError
from pipeline.geometry import Region, original_box, original_map, original_mask, original_points, seen_region
from pipeline.judging.halves import swing
from pipeline.judging.judge import Judge, JudgePlan, Verdict
from pipeline.judging.squeeze import median_smoothed
from pipeline.labels.apart import is_looked_at
from pipeline.labels.label_errors import in_play

_NOTHING: Mapping[str, Any] = {
    **{name: None for name in ("pred", "pred_name", "probs")},
    **{name: None for name in ("evidence_overlap", "evidence_distance", "evidence_swing")},
    **{name: None for name in ("runner_up_distance", "runner_up_swing")},
    **{
        f"{who}_{what}": None
        for who in ("pred", "label")
        for what in ("fix_x", "fix_y", "fix_mass", "box", "mask", "map")
    },
    **{name: None for name in ("squeeze_shift", "squeeze_pred", "squeeze_overlap")},
}


class FeatureStep:
    """Decoded shard -> what a linear probe reads of each image; the model is loaded once, here."""

    def __init__(self, plan: JudgePlan) -> None:
        self._judge = Judge(plan)

    def __call__(self, shard: DecodedShard) -> NDArray[np.float32]:
        """Return the features, float32 (n, D); a row of NaN for an image that could not be read."""
        readable = _readable(shard)
        parts = [
            self._judge.features(self._judge.images(shard.pixels[rows])).cpu()
            for rows in _batches(readable, self._judge.plan.batch_size)
        ]
        head = self._judge.graphs[0].head
        assert head is not None
        features = np.full((len(shard.rows), head.weight.shape[1]), np.nan, dtype=np.float32)
        if parts:
            features[readable] = torch.cat(parts).numpy()
        return features


_NO_LOGITS = "the model's logits for this image are not finite (NaN or infinity)"


class EvidenceStep:
    """Decoded shard -> evidence rows; models are loaded once, here."""

    def __init__(self, plan: JudgePlan) -> None:
        self._plan = plan
        self._judge = Judge(plan)

    def __call__(self, shard: DecodedShard) -> pa.Table:
        """Return the shard's rows under `schema.EVIDENCE`, in the shard's order; no image is left out."""
        rows = [{**row, **_NOTHING} for row in _given(shard)]
        brought = self._brought(shard)
        readable = _readable(shard)
        if brought is not None and not self._judge.graphs:
            for at in range(len(rows)):  # a picture that cannot be opened has probabilities all the same
                if not np.isnan(brought[at]).any() and rows[at]["status"] == "ok":
                    self._say(rows[at], brought[at])
        else:
            for batch in _batches(readable, self._plan.batch_size):
                try:
                    self._audit_batch(shard, batch, rows, brought)
                except fixcore.InputError:  # one image without finite logits: the others are judged without it
                    fine = self._has_logits(shard, batch, rows, squeezed=brought is None)
                    if fine.all() or (len(batch) > 1 and not fine.any()):  # the model is broken, and not an image
                        raise
                    for at in batch[~fine]:
                        rows[at].update(status="error", error=_NO_LOGITS)
                    if fine.any():
                        self._audit_batch(shard, batch[fine], rows, brought)
        for row in rows:
            if row["status"] == "error":
                row.update(_NOTHING)
        return pa.Table.from_pylist(rows, schema=schema.EVIDENCE)

    def _has_logits(
        self, shard: DecodedShard, batch: NDArray[np.int64], rows: list[dict[str, Any]], *, squeezed: bool
    ) -> NDArray[np.bool_]:
        """Return which images the model has finite logits for, bool (n,): as they are and, where asked, smoothed."""
        images = self._judge.images(shard.pixels[batch])
        folds = np.array([rows[at]["fold"] for at in batch], dtype=np.int16)
        looks = [images, median_smoothed(images)] if self._plan.drift and squeezed else [images]
        finite = [self._judge.probabilities(one, folds).isfinite().all(1).numpy() for one in looks]
        together: NDArray[np.bool_] = np.logical_and.reduce(finite)
        return together

    def _audit_batch(
        self, shard: DecodedShard, batch: NDArray[np.int64], rows: list[dict[str, Any]], brought: Any
    ) -> None:
        judge = self._judge
        images = judge.images(shard.pixels[batch])
        folds = np.array([rows[at]["fold"] for at in batch], dtype=np.int16)
        squeeze = self._plan.drift and brought is None
        smoothed = judge.probabilities(median_smoothed(images), folds) if squeeze else None
        for verdict in judge.judge(images, folds):
            places = batch[verdict.image]
            probs = verdict.probs.numpy() if brought is None else brought[places]
            for row, at in enumerate(places):
                self._say(rows[at], probs[row])
            own = [rows[at] for at in places]
            seen = [(row, seen_region(row["width"], row["height"], self._plan.input)) for row in own]
            traced = _trace(verdict, own)
            activity, pictures, differ = verdict.activity(), verdict.pictures, traced.differ
            _write_evidence(seen, "pred", traced.pred, activity, pictures)
            _write_evidence([seen[at] for at in differ], "label", traced.label, activity[differ], pictures[differ])
            for row, found in zip(own, traced.compared, strict=True):
                row.update(found)
            self._compare_halves(images, folds, verdict, own, traced)
            if smoothed is not None:
                copies = smoothed[torch.from_numpy(verdict.image)].numpy()
                self._compare_smoothed(images, folds, verdict, copies, own, traced.pred)

    def _say(self, row: dict[str, Any], probs: NDArray[np.float32]) -> None:
        pred = int(probs.argmax())
        row.update(pred=pred, pred_name=self._plan.class_names[pred], probs=probs.astype(np.float16))

    def _compare_smoothed(
        self,
        images: Tensor,
        folds: NDArray[np.int16],
        verdict: Verdict,
        copies: NDArray[np.float32],
        rows: list[dict[str, Any]],
        before: fixcore.Fixations,
    ) -> None:
        """Write how far smoothing moves each prediction and, where it changes, its evidence."""
        shift = np.abs(copies - verdict.probs.numpy()).sum(1) / 2
        preds = copies.argmax(1)
        for row, moved, pred in zip(rows, shift, preds, strict=True):
            row.update(squeeze_shift=float(min(moved, 1.0)), squeeze_pred=int(pred))
        changed = np.flatnonzero([row["pred"] != pred for row, pred in zip(rows, preds, strict=True)])
        if not len(changed):
            return
        at = torch.from_numpy(verdict.image[changed])
        again = list(self._judge.judge(median_smoothed(images[at.to(images.device)]), folds[verdict.image[changed]]))
        (second,) = again  # one fold, one network: these rows were judged together before
        after = second.explain(torch.arange(len(changed)), torch.from_numpy(preds[changed]))
        chosen = _select(before, torch.from_numpy(changed))
        for number, overlap in zip(changed, fixcore.evidence_overlap(chosen, after).tolist(), strict=True):
            rows[number]["squeeze_overlap"] = overlap

    def _compare_halves(
        self, images: Tensor, folds: NDArray[np.int16], verdict: Verdict, rows: list[dict[str, Any]], traced: _Traced
    ) -> None:
        """Write how far the odds swing between the halves, where it matters or tells what is usual."""
        asked = [at for at, row in enumerate(rows) if self._is_asked(row)]
        if not asked:
            return
        chosen = torch.tensor(asked)
        first, second = _select(traced.pred, chosen), _select(traced.other, chosen)
        classes = torch.stack([first.target, second.target], 1).cpu().repeat(2, 1)
        at = verdict.image[asked]
        found = swing(
            lambda shown: self._judge.log_odds(shown, np.tile(folds[at], 2), classes),
            images[torch.from_numpy(at).to(images.device)],
            fixcore.evidence_halves(first, second),
        )
        for place, value in zip(asked, found.tolist(), strict=True):
            row = rows[place]
            row["runner_up_swing" if row["label"] == row["pred"] else "evidence_swing"] = value

    def _is_asked(self, row: dict[str, Any]) -> bool:
        """Whether two classes have evidence, and the given label is in play or the image is to say what is usual."""
        if row["runner_up_distance"] is not None:
            return is_looked_at(row["image_id"], self._plan.usual_share)
        if row["evidence_distance"] is None:
            return False
        probs = row["probs"]
        return bool(in_play(probs[None], probs[row["label"], None])[0])

    def _brought(self, shard: DecodedShard) -> NDArray[np.float32] | None:
        """Probabilities that the user brought for this shard, (n, K) in its order; None in the other modes."""
        if self._plan.probabilities is None:
            return None
        ids = shard.rows["image_id"]
        low, high = pc.min_max(ids).values()
        table = pq.read_table(
            Path(self._plan.probabilities),
            columns=["image_id", "probs"],
            filters=(pc.field("image_id") >= low) & (pc.field("image_id") <= high),
        )
        place = pc.index_in(ids, value_set=table["image_id"])
        if place.null_count:
            raise ProbabilitiesError(f"there are no probabilities for {pc.filter(ids, pc.is_null(place))[0]}")
        probs = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        result: NDArray[np.float32] = probs.reshape(len(table), -1)[place.to_numpy()].astype(np.float32)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class _Traced:
    pred: fixcore.Fixations
    differ: list[int]
    """D images whose given label is not the prediction."""
    label: fixcore.Fixations
    """Of their given labels, (D,)."""
    other: fixcore.Fixations
    """Of the given label of every image, or where that is the prediction of the runner-up."""
    compared: list[dict[str, float | None]]
    """Columns that say how far the two lie apart."""


def _trace(verdict: Verdict, rows: list[dict[str, Any]]) -> _Traced:
    """Trace every image's prediction and its given label, or where these are the same the runner-up, in one walk."""
    count = len(rows)
    pred = torch.tensor([row["pred"] for row in rows])
    given = torch.tensor([-1 if row["label"] is None else row["label"] for row in rows])
    agrees = given == pred
    other = torch.where(agrees, torch.tensor([_runner_up(row["probs"]) for row in rows]), given)
    row = torch.arange(count)
    both = verdict.explain(row.repeat(2), torch.cat([pred, other]))
    first, second = _select(both, row), _select(both, row + count)
    differ = torch.nonzero(~agrees).squeeze(1)
    label = _select(second, differ)
    names = ("runner_up_distance" if same else "evidence_distance" for same in agrees.tolist())
    away = fixcore.evidence_distance(first, second).tolist()
    compared = [{name: _or_none(value)} for name, value in zip(names, away, strict=True)]
    overlap = fixcore.evidence_overlap(_select(first, differ), label).tolist()
    for at, value in zip(differ.tolist(), overlap, strict=True):
        compared[at]["evidence_overlap"] = _or_none(value)
    return _Traced(first, differ.tolist(), label, second, compared)


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _runner_up(probs: NDArray[np.floating]) -> int:
    """Return the second most probable class, the lower of equal ones; -1: there is only one."""
    return int(np.argsort(-probs.astype(np.float32), kind="stable")[1]) if len(probs) > 1 else -1


def _select(fixations: fixcore.Fixations, targets: Tensor) -> fixcore.Fixations:
    """Return the fixations of some targets, given ascending, renumbered from 0."""
    number = torch.full((len(fixations),), -1)
    number[targets] = torch.arange(targets.numel())
    number = number.to(fixations.image.device)
    new = number[fixations.image]
    kept = new >= 0
    return fixcore.Fixations(
        image=new[kept],
        row=fixations.row[kept],
        col=fixations.col[kept],
        mass=fixations.mass[kept],
        height=fixations.height,
        width=fixations.width,
        target=fixations.target[targets.to(fixations.target.device)],
        margin=fixations.margin,
    )


def _write_evidence(
    seen: list[tuple[dict[str, Any], Region]],
    who: str,
    fixations: fixcore.Fixations,
    activity: Tensor,
    pictures: Tensor,
) -> None:
    """Write each target's points, box, mask and map, of the original image, into its row."""
    boxes = fixcore.evidence_boxes(fixations).cpu().numpy()
    maps = fixcore.saliency_maps(fixations, activity=activity, pictures=pictures).cpu().numpy()
    image, row, col = (values.cpu().numpy() for values in (fixations.image, fixations.row, fixations.col))
    mass = fixations.mass.cpu().numpy()
    first = np.searchsorted(image, np.arange(len(seen) + 1))
    for number, (into, region) in enumerate(seen):
        own = slice(first[number], first[number + 1])
        if own.start == own.stop:
            continue
        points = original_points(region, row[own], col[own], mass[own])
        into.update(
            {
                f"{who}_fix_x": points.x,
                f"{who}_fix_y": points.y,
                f"{who}_fix_mass": points.mass,
                f"{who}_box": original_box(region, boxes[number]),
                f"{who}_mask": rle.encode(original_mask(region, maps[number] >= THRESHOLD)),
                f"{who}_map": original_map(region, maps[number]).tobytes(),
            }
        )


def _given(shard: DecodedShard) -> list[dict[str, Any]]:
    """Rows as they came: what is known of each image before it is judged."""
    names = [name for name in schema.EVIDENCE.names if name in shard.rows.schema.names]
    rows: list[dict[str, Any]] = shard.rows.select(names).to_pylist()
    return [{"fold": -1, **row} for row in rows]


def _readable(shard: DecodedShard) -> NDArray[np.int64]:
    return np.flatnonzero(np.array(shard.rows["status"].to_pylist()) == "ok")


def _batches(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
