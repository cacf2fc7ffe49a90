"""The run in numbers: counts, estimated label noise, one row per class; written as summary.json.

N images, K classes. The field meanings below are the documentation (docs/reference/summary.md is made from them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.audit.flags import integers, read_label_cut, scan
from pipeline.audit.issues import count_issues
from pipeline.audit.shortcuts import Shortcut, find_shortcuts
from pipeline.files import write_json
from pipeline.runfolder import RunFolder


def _means(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSummary:
    """One class, by its given label."""

    label: int = _means("class index")
    name: str = _means("class name")
    images: int = _means("images with this label, unreadable ones included")
    flagged: int = _means("images with this label that are mislabeled, ambiguous or adversarially drifted")
    mislabeled: int = _means("images with this label that carry `is_mislabeled`")
    ambiguous: int = _means("images with this label that carry `is_ambiguous`")
    adversarial_drift: int = _means("images with this label that carry `is_adversarial_drift`")
    estimated_noise: float | None = _means(
        "estimated share of these labels that is wrong by the probabilities alone, the mean of 1 - `label_score`; "
        "null where no image could be judged"
    )
    estimated_precision: float | None = _means(
        "estimated share of right flags among these `mislabeled`, the mean of 1 - `label_score`; null without any"
    )
    accuracy: float | None = _means("share of these images predicted as labelled; null where none was predicted")
    most_confused_with: str | None = _means(
        "class that images with this label are most often taken for instead; ties go to the lower class index; null "
        "where none is"
    )
    confused_images: int = _means("how many images with this label are taken for that class")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The content of summary.json."""

    schema: int = _means("version of this file's and the Parquet files' fields")
    images: int = _means("images found")
    ok: int = _means("images audited")
    error: int = _means("images that could not be audited")
    judged: int = _means("labels compared with probabilities")
    reviewed: int = _means("labels among them that a person has looked at")
    reviewed_wrong: int = _means("labels that a person calls wrong")
    issues: Mapping[str, int] = _means("rows in issues.parquet, by issue; every issue is named")
    accuracy: float | None = _means("share of predictions that equal the given label; null where there is none")
    worth_a_look: int = _means("images whose verdicts would settle most of the doubt, those of review.html")
    estimated_errors: float | None = _means(
        "estimated number of wrong labels, the sum of 1 - `label_score`; null where none was judged"
    )
    estimated_errors_range: tuple[float, float] | None = _means(
        "the least and the most wrong labels by one of the four explanations that `label_score` averages; where people "
        "have looked, what nine in ten of the opinions come to that their verdicts leave possible"
    )
    estimated_noise: float | None = _means("`estimated_errors` as a share of `judged`")
    estimated_precision: float | None = _means(
        "estimated share of right flags among the labels that the probabilities call wrong; null where none is"
    )
    estimated_precision_range: tuple[float, float] | None = _means(
        "the lowest and the highest precision, likewise: how sure `estimated_precision` is"
    )
    classes: tuple[ClassSummary, ...] = _means("one entry per class, in class order")
    shortcuts: tuple[Shortcut, ...] = _means(
        "classes whose evidence may be a shortcut: in most of their `images` it gathers in one corner or at one border "
        "(`where`); the median `share` of the evidence there, and `elsewhere`, that of all other classes"
    )


def write_summary(run: RunFolder, class_names: Sequence[str]) -> Summary:
    """Write summary.json from evidence, audit and issues, and return what it says.

    Raises RunFolderError where one of them is missing or unreadable.
    """
    cut = read_label_cut(run)
    counts = _Counts(len(class_names))
    for batch in scan([run.audit], ["status", "label", "label_score", "verdict", "is_worth_a_look", *schema.FLAGS]):
        counts.add_audit(batch)
    for batch in scan(run.evidence_parts(), ["status", "label", "pred"]):
        counts.add_predictions(batch)
    judged = int(counts.judged.sum())
    summary = Summary(
        schema=schema.VERSION,
        images=counts.images,
        ok=counts.ok,
        error=counts.images - counts.ok,
        judged=judged,
        reviewed=counts.reviewed,
        reviewed_wrong=counts.reviewed_wrong,
        worth_a_look=counts.worth_a_look,
        issues=count_issues(run),
        accuracy=_share(counts.right.sum(), counts.predicted.sum()),
        estimated_errors=cut.estimated_errors if judged else None,
        estimated_errors_range=cut.errors_range if judged else None,
        estimated_noise=_share(cut.estimated_errors, judged),
        estimated_precision=None if math.isnan(cut.estimated_precision) else cut.estimated_precision,
        estimated_precision_range=None if math.isnan(cut.estimated_precision) else cut.precision_range,
        classes=tuple(counts.of_class(label, class_names) for label in range(len(class_names))),
        shortcuts=find_shortcuts(run.evidence_parts(), class_names),
    )
    write_json(asdict(summary), run.summary)
    return summary


class _Counts:
    """Tallies by given label; images without a known label count in the totals only."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.images = self.ok = self.reviewed = self.reviewed_wrong = self.worth_a_look = 0
        self.given, self.judged, self.predicted, self.right, self.flagged = np.zeros((5, classes), np.int64)
        self.wrong, self.wrong_flags = np.zeros((2, classes))
        self.flags = {flag: np.zeros(classes, np.int64) for flag in schema.FLAGS}
        self._confusions: dict[int, dict[int, int]] = {}

    def add_audit(self, batch: Any) -> None:
        label = integers(batch, "label")
        score = batch.column("label_score").to_numpy(zero_copy_only=False)
        self.images += len(batch)
        self.ok += pc.sum(pc.equal(batch.column("status"), "ok")).as_py() or 0
        self.reviewed += len(batch) - batch.column("verdict").null_count
        self.reviewed_wrong += pc.sum(pc.equal(batch.column("verdict"), "wrong")).as_py() or 0
        self.worth_a_look += pc.sum(batch.column("is_worth_a_look")).as_py() or 0
        self.given += self._tally(label)
        self.judged += self._tally(label[~np.isnan(score)])
        wrong = np.nan_to_num(1 - score.astype(np.float64))
        self.wrong += self._tally(label, wrong)
        any_flag = np.zeros(len(batch), bool)
        for name, count in self.flags.items():
            flag = batch.column(name).to_numpy(zero_copy_only=False)
            count += self._tally(label[flag])
            any_flag |= flag
            if name == "is_mislabeled":
                self.wrong_flags += self._tally(label[flag], wrong[flag])
        self.flagged += self._tally(label[any_flag])

    def add_predictions(self, batch: Any) -> None:
        label, pred = integers(batch, "label"), integers(batch, "pred")
        ok = pc.equal(batch.column("status"), "ok").to_numpy(zero_copy_only=False)
        known = ok & (label >= 0) & (pred >= 0)
        self.predicted += self._tally(label[known])
        self.right += self._tally(label[known & (label == pred)])
        off = known & (label != pred)
        pairs, times = np.unique(np.stack([label[off], pred[off]], 1), axis=0, return_counts=True)
        for (given, taken), count in zip(pairs.tolist(), times.tolist(), strict=True):
            row = self._confusions.setdefault(given, {})
            row[taken] = row.get(taken, 0) + count

    def of_class(self, label: int, names: Sequence[str]) -> ClassSummary:
        confused = self._confusions.get(label, {})
        most = min(confused, key=lambda taken: (-confused[taken], taken)) if confused else None
        return ClassSummary(
            label=label,
            name=names[label],
            images=int(self.given[label]),
            flagged=int(self.flagged[label]),
            mislabeled=int(self.flags["is_mislabeled"][label]),
            ambiguous=int(self.flags["is_ambiguous"][label]),
            adversarial_drift=int(self.flags["is_adversarial_drift"][label]),
            estimated_noise=_share(self.wrong[label], self.judged[label]),
            estimated_precision=_share(self.wrong_flags[label], self.flags["is_mislabeled"][label]),
            accuracy=_share(self.right[label], self.predicted[label]),
            most_confused_with=None if most is None else names[most],
            confused_images=0 if most is None else confused[most],
        )

    def _tally(self, labels: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[Any]:
        known = labels >= 0
        return np.bincount(labels[known], weights=None if weights is None else weights[known], minlength=self._classes)


def _share(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None
