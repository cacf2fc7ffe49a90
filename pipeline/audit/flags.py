"""The verdict on each image: scores and flags from its probabilities and its evidence.

N images, K classes. The evidence parts are read in batches: twice for the probabilities (`labels`), once more for the
narrow columns while the rows are written. What is held of all images is some 50 bytes for each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import ProbabilitiesError, RunFolderError
from pipeline.files import replacing
from pipeline.labels.apart import Usual
from pipeline.labels.cut import LabelCut, called_wrong, choose_cut, in_doubt
from pipeline.labels.label_errors import Survey, check_probabilities, unjudged
from pipeline.labels.verdicts import RIGHT, UNSEEN, WORDS, WRONG, worth_a_look
from pipeline.runfolder import RunFolder

SAME_PLACE = 0.5
"""Overlap from which the evidence before and after smoothing lies in the same place: the larger half coincides."""

SHIFT_FLOOR = 0.5
"""Share of the probability that smoothing must move, at least, for drift: more of it moves than stays."""

CALM_SHARE = 0.99
"""Share of the undisturbed images (prediction = given label) whose shift must lie below the limit for drift: smoothing
small or sharp images moves much by itself, and a drifted image is to stand out from that."""

_LABELS_KEY, _CLASSES_KEY = b"fixaudit.labels", b"fixaudit.classes"
_BATCH_VALUES = 1 << 22
_BATCH_ROWS = 8192


def write_audit(run: RunFolder, class_names: Sequence[str], wrong: Mapping[str, bool] | None = None) -> None:
    """Write audit.parquet: one row per row of the evidence, in its order, under `schema.AUDIT`.

    `wrong` is what people said of some labels, by image_id: True, the label is wrong; False, it is right.
    The file's metadata holds the cut between right and wrong labels (`read_label_cut`) and the names of the classes
    (`read_audited_classes`). An image that could not be read has null scores and no flag. With one class there is
    nothing to compare: all scores but drift's are null.

    Source of the rules: CNN Fixations, IV-F and Fig. 8; Xu, Evans, Qi, "Feature Squeezing", NDSS 2018.

    Raises:
        ProbabilitiesError: probabilities in the evidence that are none, or of another width than `class_names`.
        RunFolderError: the evidence cannot be read, or audit.parquet cannot be written.

    """
    judged = _judge(run.evidence_parts(), len(class_names), wrong or {})
    score, cut = choose_cut(judged.images)
    called = _Called(
        judged.images,
        score,
        called_wrong(judged.images, score, cut),
        in_doubt(judged.images, score, cut),
        np.zeros(len(score), bool),
    )
    called.is_worth_a_look[worth_a_look(score, judged.images["own_share"] < 0.5, judged.images["verdict"])] = True
    limits = _Limits(_shift_limit(judged.calm_shifts), judged.usual)
    kept = {_LABELS_KEY: _without_nan(asdict(cut)), _CLASSES_KEY: list(class_names)}
    told = {key: json.dumps(value).encode() for key, value in kept.items()}
    declared = schema.AUDIT.with_metadata({**(schema.AUDIT.metadata or {}), **told})
    names = pa.array(class_names, pa.string())
    start = 0
    with replacing(run.audit) as partial, pq.ParquetWriter(partial, declared, compression="zstd") as writer:
        for batch in scan(run.evidence_parts(), _WRITTEN_FROM):
            stop = start + len(batch)
            table = _rows(batch, called.between(start, stop), limits, names)
            writer.write_table(table.cast(declared))
            start = stop


def read_label_cut(run: RunFolder) -> LabelCut:
    """Return the cut that `write_audit` chose: a label is called wrong by its probabilities up to `limit`."""
    kept = {name: _with_nan(value) for name, value in _told(run, _LABELS_KEY).items()}
    try:
        return LabelCut(**kept)
    except TypeError as error:
        raise RunFolderError(f"{run.audit} is of another version of fixaudit; run the audit again") from error


def read_audited_classes(run: RunFolder) -> tuple[str, ...]:
    """Return the names of the classes that `write_audit` was given, by class index."""
    return tuple(_told(run, _CLASSES_KEY))


def _without_nan(value: Any) -> Any:
    """Return the numbers with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_nan(one) for one in value)
    return math.nan if value is None else value


def _told(run: RunFolder, key: bytes) -> Any:
    try:
        return json.loads((pq.read_schema(run.audit).metadata or {})[key])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise RunFolderError(f"cannot read {run.audit}: {error}; run the audit again") from error


def scan(parts: Sequence[Path], columns: Sequence[str], batch_rows: int = _BATCH_ROWS) -> Iterator[Any]:
    """Yield record batches of some evidence columns, part by part, in order; RunFolderError where one is unreadable."""
    for part in parts:
        try:
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(batch_rows, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise RunFolderError(f"cannot read {part}: {str(error).splitlines()[0]}; run the audit again") from error


def integers(batch: Any, name: str) -> NDArray[np.int64]:
    """Return an integer column of a batch, int64, -1 where null."""
    values: NDArray[np.int64] = batch.column(name).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    images: NDArray[np.void]
    """`label_errors.JUDGED` (N,)."""
    calm_shifts: NDArray[np.float32]
    """Shifts of the images whose prediction is the given label."""
    usual: Usual
    """How far apart their first two guesses lie."""


@dataclass(frozen=True, slots=True)
class _Limits:
    shift: float
    usual: Usual


@dataclass(frozen=True, slots=True, eq=False)
class _Called:
    """What labels and probabilities come to, and people's verdicts, (N,) each."""

    judged: NDArray[np.void]
    score: NDArray[np.float32]
    is_error: NDArray[np.bool_]
    is_in_doubt: NDArray[np.bool_]
    is_worth_a_look: NDArray[np.bool_]

    def between(self, start: int, stop: int) -> _Called:
        return _Called(*(getattr(self, one.name)[start:stop] for one in fields(self)))


def _judge(parts: Sequence[Path], classes: int, wrong: Mapping[str, bool]) -> _Judged:
    """Read the probabilities twice: for the thresholds, and to compare each row with them."""
    told = pa.array(wrong, pa.string())
    verdicts = np.array([*(WRONG if one else RIGHT for one in wrong.values()), UNSEEN], np.int8)
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_VALUES // max(classes, 1)))
    survey = Survey(max(1, classes))
    shifts, usual = [np.zeros(0, np.float32)], [np.zeros((2, 0), np.float32)]
    columns = ["image_id", "status", "label", "pred", "probs", "squeeze_shift", *_USUAL]
    for batch in scan(parts, columns, batch_rows):
        rows, probs = _probabilities(batch, classes)
        labels = integers(batch, "label")
        if len(rows):
            check_probabilities(probs, labels[rows], names=batch.column("image_id").take(rows).to_pylist())
            survey.add(probs, labels[rows])
        shift = _floats(batch, "squeeze_shift")
        shifts.append(shift[(labels >= 0) & (labels == integers(batch, "pred")) & ~np.isnan(shift)])
        measures = np.stack([_floats(batch, name) for name in _USUAL])
        usual.append(measures[:, ~np.isnan(measures).any(axis=0)])
    standards = survey.standards()

    judged = [unjudged(0)]
    for batch in scan(parts, ["image_id", "status", "label", "probs"], batch_rows):
        into = unjudged(len(batch))
        rows, probs = _probabilities(batch, classes)
        if len(rows):
            labels = integers(batch, "label")
            into[rows] = standards.judge(probs, labels[rows])
            place = pc.index_in(batch.column("image_id"), value_set=told).fill_null(-1).to_numpy(zero_copy_only=False)
            # The last verdict is for images that nobody looked at.
            into["verdict"][rows] = np.where(labels[rows] >= 0, verdicts[place[rows]], UNSEEN)
        judged.append(into)
    return _Judged(np.concatenate(judged), np.concatenate(shifts), Usual.of(*np.concatenate(usual, axis=1)))


_USUAL = ("runner_up_distance", "runner_up_swing")
_WRITTEN_FROM = (
    *("image_id", "status", "label", "label_name", "pred", "pred_box", "evidence_distance", "evidence_swing"),
    *("squeeze_shift", "squeeze_pred", "squeeze_overlap"),
)


def _rows(batch: Any, called: _Called, limits: _Limits, names: pa.Array) -> pa.Table:
    """Apply the rules to one batch."""
    judged = called.judged
    open_question = judged["verdict"] == UNSEEN  # where a person looked, there is nothing left to infer
    ok = pc.equal(batch.column("status"), "ok").to_numpy(zero_copy_only=False)
    label, pred = integers(batch, "label"), integers(batch, "pred")

    distance = _floats(batch, "evidence_distance")
    traced = batch.column("pred_box").is_valid().to_numpy(zero_copy_only=False)
    # Evidence can only contradict where there is some: without a model the probabilities speak alone.
    nothing_for_label = traced & np.isnan(distance)
    apart = limits.usual.is_apart(distance, _floats(batch, "evidence_swing"))
    # Softmax lets one object push another out of the probabilities, so a label that is in play and has a place of its
    # own is a second object even where its probability is low enough for an error. In the same place there is one
    # object, and the probabilities decide between its readings.
    # Beyond the errors, as many labels are in doubt as errors are still to be expected: a weak model disagrees with
    # many more, and those are its own mistakes.
    can_be_read = judged["is_candidate"] & ~nothing_for_label & open_question
    is_ambiguous = can_be_read & (called.is_in_doubt | (called.is_error & apart))
    is_mislabeled = called.is_error & ~is_ambiguous

    shift, smoothed = _floats(batch, "squeeze_shift"), integers(batch, "squeeze_pred")
    turned = (label >= 0) & (pred != label) & (smoothed >= 0) & (smoothed != pred)
    stays = _floats(batch, "squeeze_overlap") >= SAME_PLACE
    back = smoothed == label
    # Turning back to the given label is a coincidence that noise seldom makes; turning to any third class is what
    # undecided images do, so there the prediction must have held the majority.
    is_drift = turned & stays & (shift >= limits.shift) & (back | (judged["confidence"] > 0.5))
    # The prediction is what speaks against the label; where smoothing takes it back, nothing does.
    is_mislabeled &= ~(is_drift & back & open_question)
    is_ambiguous &= ~(is_drift & back)

    suggested = pa.array(pred, pa.int32(), mask=~((is_mislabeled | is_ambiguous) & ok & (pred != label)))
    columns = {
        "image_id": batch.column("image_id"),
        "status": batch.column("status"),
        "label": batch.column("label"),
        "label_name": batch.column("label_name"),
        "label_score": _nullable(called.score),
        "ambiguity_score": _nullable(judged["agreement"]),
        "drift_score": _nullable(1 - shift),
        "is_mislabeled": is_mislabeled & ok,
        "is_ambiguous": is_ambiguous & ok,
        "is_apart": pa.array(apart, mask=np.isnan(distance)),
        "is_adversarial_drift": is_drift & ok,
        "suggested_label": suggested,
        "suggested_name": names.take(suggested),
        "verdict": pa.array(WORDS).take(pa.array(judged["verdict"], pa.int8(), mask=open_question)),
        "is_worth_a_look": called.is_worth_a_look,
    }
    return pa.table(columns)


def _shift_limit(calm_shifts: NDArray[np.float32]) -> float:
    """Return the shift from which an image is out of line; above 1, nothing is, where no image is calm."""
    if not len(calm_shifts):
        return math.inf
    return max(SHIFT_FLOOR, float(np.quantile(calm_shifts, CALM_SHARE, method="higher")))


def _probabilities(batch: Any, classes: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return the rows that can be judged by probabilities, and these, (n, K); none where there is one class only."""
    column = batch.column("probs")
    usable = pc.and_(pc.equal(batch.column("status"), "ok"), column.is_valid())
    if classes < 2:
        usable = pc.and_(usable, False)
    rows = np.flatnonzero(usable.to_numpy(zero_copy_only=False))
    column = column.filter(usable)
    width = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if (width != classes).any():
        at = int((width != classes).argmax())
        raise ProbabilitiesError(
            f"{batch.column('image_id')[rows[at]]} has {width[at]} probabilities, the dataset has {classes} classes"
        )
    return rows, column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), classes)


def _floats(batch: Any, name: str) -> NDArray[np.float32]:
    """Return a float column, NaN where null."""
    values: NDArray[np.float32] = batch.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
    return values


def _nullable(values: NDArray[np.float32]) -> pa.Array:
    return pa.array(values, pa.float32(), mask=np.isnan(values))
