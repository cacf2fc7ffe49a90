"""Which given labels the probabilities contradict: how probable it is that each is wrong, and a cut that sets itself.

N images, K classes. Probabilities are out of sample, float16, float32 or float64 (N, K), and are read in chunks of
rows, twice: `Survey` gathers what must be known of all rows, `Standards.judge` compares each row with it, and
`cut.choose_cut` needs only the few numbers left of each row. `find_label_errors` is all of it for an array in memory.

Source of the thresholds and of what "confident" means: Northcutt, Jiang, Chuang, "Confident Learning", JAIR 2021, 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ProbabilitiesError
from pipeline.labels.cut import called_wrong, choose_cut, in_doubt
from pipeline.labels.noise import NoiseModel, Sample
from pipeline.labels.probs import SUM_TOLERANCE
from pipeline.labels.verdicts import RIGHT, UNSEEN, WRONG, worth_a_look

Labels = NDArray[np.integer]
Probabilities = NDArray[np.floating]

_ROUNDING = SUM_TOLERANCE + 2**-11
"""How far a row's sum may lie from 1: what is let in from a file, and the rounding of each value to float16 after."""

_SLACK = 1e-6
"""Closer than this, two probabilities count as equal; cleanlab's value, so that the flags agree to the last."""

_NETWORK_READINGS = 3
"""Readings that the probabilities count for beside the given label: the fewest with which an image between two classes
is more ambiguous than one whose label contradicts a network that is sure. Measured: `benchmarks/labels.py`."""

_CHUNK_VALUES = 1 << 22
"""Probabilities judged at once: 16 MB in float32."""


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single ==
class LabelAudit:
    """What out-of-sample probabilities say of N given labels."""

    label_score: NDArray[np.float32]
    """(N,) in [0, 1]: estimated probability that the label is right, the mean over `cut.EXPLANATIONS` or over what the
    verdicts leave possible, 0 or 1 where there is a verdict; low = suspicious; NaN where no label is given."""
    is_error: NDArray[np.bool_]
    """(N,): the label is called wrong."""
    is_in_doubt: NDArray[np.bool_]
    """(N,): the next most suspicious labels that another class outdoes, as many as errors are expected to be left."""
    suggested_label: NDArray[np.int32]
    """(N,): the most probable class; ties go to the given label, then to the lowest index."""
    estimated_errors: float
    """How many of the labels are wrong, in [0, N]."""
    errors_range: tuple[float, float]
    """The least and the most wrong labels that an explanation finds; with verdicts, what nine in ten opinions find that
    the verdicts leave possible."""
    estimated_precision: float
    """Estimated share of the flags that are right, in [0, 1]; NaN without flags."""
    precision_range: tuple[float, float]
    """The same of the flags' precision; NaN without flags."""
    to_review: NDArray[np.int64]
    """(at most 50,) rows whose verdicts would settle most; see `verdicts.worth_a_look`."""

    def estimated_prefix_precision(self) -> NDArray[np.float64]:
        """Return, for every n, the estimated share of wrong labels among the n most suspicious, (labelled rows,)."""
        wrong = np.sort(1 - self.label_score[~np.isnan(self.label_score)].astype(np.float64))[::-1]
        means: NDArray[np.float64] = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
        return means


@dataclass(frozen=True, slots=True, eq=False)
class Judgements:
    """What the probabilities of n rows say of each row's label; see `judge_labels`."""

    own_share: NDArray[np.float32]
    """(n,) in [0, 1]: p(given) / (p(given) + p(most probable other class)); below 0.5 another class is more probable;
    NaN where no label is given."""
    likely: NDArray[np.int32]
    """(n,): the most probable class; ties go to the given label, then to the lowest index."""
    confident_class: NDArray[np.int32]
    """(n,): the class that the row confidently shows in the sense of confident learning; -1: none."""
    is_doubted: NDArray[np.bool_]
    """(n,): the row confidently shows a class other than the given one, which is also more probable than it."""
    is_candidate: NDArray[np.bool_]
    """(n,): another class is more probable, but the given one is still among those in play (see `judge_labels`)."""
    confidence: NDArray[np.float32]
    """(n,) in [0, 1]: probability of the most probable class."""
    agreement: NDArray[np.float32]
    """(n,) in [0, 1]: how probably two people who name the image agree, see `judge_labels`."""


JUDGED = np.dtype(
    [
        ("own_share", np.float32),  # NaN: nothing to judge
        ("label", np.int32),
        ("likely", np.int32),
        ("is_counted", np.bool_),  # some class is shown confidently
        ("is_doubted", np.bool_),
        ("is_candidate", np.bool_),
        ("confidence", np.float32),
        ("agreement", np.float32),
        ("scattered", np.float32),
        ("transitions", np.float32),
        ("verdict", np.int8),  # of a person, as in `verdicts`; unseen where there is nothing to judge
    ]
)
"""What is kept of each row: fields of `Judgements`, the probability of an error by the fitted explanations, and what a
person said of the label."""


def unjudged(count: int) -> NDArray[np.void]:
    """Return `JUDGED` (count,) for rows of which nothing is known."""
    rows = np.zeros(count, JUDGED)
    for name in ("own_share", "confidence", "agreement", "scattered", "transitions"):
        rows[name] = np.nan
    rows["verdict"] = UNSEEN
    return rows


class Survey:
    """First pass: what must be known of all rows before one can be judged."""

    def __init__(self, class_count: int) -> None:
        self._confidence = SelfConfidence(class_count)
        self._sample = Sample(class_count)

    def add(self, probs: Probabilities, labels: Labels) -> None:
        """Take in rows (n, K) with labels (n,); label -1 is left out."""
        self._confidence.add(probs, labels)
        self._sample.add(probs, labels)

    def standards(self) -> Standards:
        """Return what rows are compared with."""
        return Standards(
            self._confidence.thresholds(fill_absent=True),
            self._sample.fit(by_class=False),
            self._sample.fit(by_class=True),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Standards:
    """Second pass: what each row is compared with."""

    thresholds: NDArray[np.float64]
    scattered: NoiseModel
    transitions: NoiseModel

    def judge(self, probs: Probabilities, labels: Labels) -> NDArray[np.void]:
        """Return what is to be kept of rows (n, K) with labels (n,), `JUDGED` (n,); each row is judged for itself."""
        rows = unjudged(len(labels))
        found = judge_labels(probs, labels, self.thresholds)
        for name in ("own_share", "likely", "is_doubted", "is_candidate", "confidence", "agreement"):
            rows[name] = getattr(found, name)
        rows["label"], rows["is_counted"] = labels, found.confident_class >= 0
        known = np.flatnonzero(labels >= 0)
        for name, model in (("scattered", self.scattered), ("transitions", self.transitions)):
            rows[name][known] = model.error_probability(probs[known], labels[known])
        return rows


class SelfConfidence:
    """First pass: the mean probability of each class on the images labelled so, gathered chunk by chunk."""

    def __init__(self, class_count: int) -> None:
        self._total = np.zeros(class_count)
        self._images = np.zeros(class_count, dtype=np.int64)

    def add(self, probs: Probabilities, labels: Labels) -> None:
        """Take in rows (n, K) with labels (n,); label -1 is left out. The order of rows and chunks does not matter."""
        rows = np.flatnonzero(labels >= 0)
        given = labels[rows]
        own = probs[rows, given].astype(np.float64)
        self._total += np.bincount(given, weights=own, minlength=len(self._total))
        self._images += np.bincount(given, minlength=len(self._images))

    def thresholds(self, *, fill_absent: bool = False) -> NDArray[np.float64]:
        """Return, float64 (K,), how probable a class must be for a row to show it confidently.

        A class without images has no mean of its own: it is infinity, so that nothing counts into it (the paper, and
        cleanlab), or with `fill_absent` the mean over all labelled images, so that an image of an absent class can be
        told from what it is labelled.
        """
        absent = self._total.sum() / self._images.sum() if fill_absent and self._images.any() else np.inf
        mean = np.full(len(self._total), absent)
        np.divide(self._total, self._images, out=mean, where=self._images > 0)
        mean[mean < 2 * _SLACK] = 2 * _SLACK  # a class that is never probable must not be reached by a probability of 0
        return mean


def judge_labels(probs: Probabilities, labels: Labels, thresholds: NDArray[np.float64]) -> Judgements:
    """Second pass: compare rows (n, K) with the thresholds; each row is judged for itself.

    A row confidently shows the class whose probability reaches its threshold; of several, the most probable class.

    The given label is a *candidate* where its rank among the classes is at most the number of classes that are in play,
    the exponential of the row's entropy rounded to a whole number: (0.8, 0.2) has two classes in play, (0.95, 0.05)
    one. This asks whether the given label can be read in the image at all, whatever K is.

    How probably two people *agree* is the sum of the squared shares of readings that name each class: the network's
    probabilities count for `_NETWORK_READINGS` readings, the given label, which somebody read there, for one.

    Rows with label -1 have share NaN, are neither doubted nor candidates, and only the network has read them.
    """
    values = probs.astype(np.float32) if probs.dtype == np.float16 else probs
    row = np.arange(len(values))
    known = labels >= 0
    given = np.where(known, labels, 0)
    own = np.where(known, values[row, given], -1.0)
    two = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:]
    first, second = two[:, 1].astype(np.float64), two[:, 0].astype(np.float64)
    top = values.argmax(axis=1)
    rival = np.where(top == given, second, first)  # where `given` ties with `top`, both are `first`
    score = np.where(known, own / (own + np.where(known, rival, 2.0)), np.nan).astype(np.float32)
    likely = np.where(known & (own >= first), given, top)

    reached = values >= thresholds - _SLACK
    count = reached.sum(axis=1)
    confident = np.where(count > 1, top, np.where(count == 1, reached.argmax(axis=1), -1))
    doubted = known & (confident >= 0) & (confident != given) & (first > own + _SLACK)

    candidate = np.zeros(len(values), dtype=bool)
    disagree = np.flatnonzero(score < 0.5)
    candidate[disagree] = in_play(values[disagree], own[disagree])
    return Judgements(
        own_share=score,
        likely=likely.astype(np.int32),
        confident_class=confident.astype(np.int32),
        is_doubted=doubted,
        is_candidate=candidate,
        confidence=np.minimum(first, 1).astype(np.float32),
        agreement=_agreement(values, own, known),
    )


def _agreement(probs: NDArray[np.floating], own: NDArray[np.floating], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how probably two people agree on rows (n, K) whose label, where known, has probability own (n,)."""
    count = _NETWORK_READINGS
    alone = np.einsum("nk,nk->n", probs, probs)
    joined = (count * count * alone + 2 * count * own + 1) / (count + 1) ** 2
    chance: NDArray[np.float32] = np.clip(np.where(known, joined, alone), 0, 1).astype(np.float32)
    return chance


def in_play(probs: NDArray[np.floating], own: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return whether a class with probability `own` (n,) is among those in play in its row of probs (n, K), (n,).

    As many are as the exponential of the row's entropy, rounded, says: (0.8, 0.2) has two, (0.95, 0.05) one.
    """
    rows = probs.astype(np.float64)
    entropy = -np.sum(rows * np.log(rows, where=rows > 0, out=np.zeros_like(rows)), axis=1)
    among: NDArray[np.bool_] = 1 + (rows > own[:, None]).sum(axis=1) <= np.rint(np.exp(entropy))
    return among


def find_label_errors(probs: Probabilities, labels: Labels, verdicts: NDArray[np.integer] | None = None) -> LabelAudit:
    """Say which of N labels are wrong, given out-of-sample probabilities (N, K), K >= 2.

    `labels` is (N,) in 0 .. K - 1; -1 is a row without label, which is not judged. No parameter is to be set; ranking
    and cut are those of `cut.choose_cut`. The probabilities are read in chunks and never copied whole.

    `verdicts` (N,) is what people said of some labels: 1 wrong, 0 right, -1 nobody looked. Fifty of them, on the rows
    of `LabelAudit.to_review`, settle much that probabilities cannot.

    Raises:
        ProbabilitiesError: there are no rows or fewer than two classes; the shapes do not fit each other; a row is
            not finite, has a negative value or does not sum to 1; a label is out of range.
        ValueError: verdicts of another shape than the labels, or other than -1, 0 and 1.

    """
    if verdicts is not None and (verdicts.shape != labels.shape or not np.isin(verdicts, (UNSEEN, RIGHT, WRONG)).all()):
        raise ValueError("verdicts are one per label: 1 wrong, 0 right, -1 nobody looked")
    if probs.ndim != 2 or labels.shape != (len(probs),):
        raise ProbabilitiesError(
            f"probabilities {probs.shape} and labels {labels.shape} do not fit: expected (N, K) and (N,)"
        )
    if not len(probs):
        raise ProbabilitiesError("there are no probabilities: 0 rows")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ProbabilitiesError(
            f"labels must be class indices, one per image, not {labels.dtype}; several per image are not supported"
        )
    labels = labels.astype(np.int64)  # -1 must stay below 0, and unsigned types have no -1
    survey = Survey(max(1, probs.shape[1]))
    for rows in _chunks(probs):
        check_probabilities(probs[rows], labels[rows], first_row=rows.start)
        survey.add(probs[rows], labels[rows])
    standards = survey.standards()
    judged = unjudged(len(probs))
    for rows in _chunks(probs):
        judged[rows] = standards.judge(probs[rows], labels[rows])
    if verdicts is not None:
        judged["verdict"] = np.where(labels >= 0, verdicts, UNSEEN)
    score, cut = choose_cut(judged)
    return LabelAudit(
        label_score=score,
        is_error=called_wrong(judged, score, cut),
        is_in_doubt=in_doubt(judged, score, cut),
        suggested_label=judged["likely"],
        estimated_errors=cut.estimated_errors,
        errors_range=cut.errors_range,
        estimated_precision=cut.estimated_precision,
        precision_range=cut.precision_range,
        to_review=worth_a_look(score, judged["own_share"] < 0.5, judged["verdict"]),
    )


def check_probabilities(
    probs: Probabilities, labels: Labels, *, first_row: int = 0, names: Sequence[str] | None = None
) -> None:
    """Raise ProbabilitiesError, naming the first row at fault, unless rows (n, K) with labels (n,) can be judged.

    A row is named by its number, counted from `first_row`, or by `names` (n,), the images' ids.
    """

    def row(at: int) -> str:
        return f"row {first_row + at} of the probabilities" if names is None else f"the probabilities of {names[at]}"

    classes = probs.shape[1]
    if classes < 2:
        raise ProbabilitiesError(
            f"probabilities of {classes} class cannot contradict a label; at least two classes are needed"
        )
    total = probs.sum(axis=1, dtype=np.float32 if probs.dtype == np.float16 else probs.dtype)
    for wrong, what in (  # NaN fails every comparison, so it is asked for first
        (~np.isfinite(total), "with a value that is not a finite number"),
        (probs.min(axis=1) < 0, "with a negative value"),
        (np.abs(total - 1) > _ROUNDING, "not summing to 1"),
    ):
        if wrong.any():
            at = int(wrong.argmax())
            raise ProbabilitiesError(f"{row(at)}: {what} (the sum is {total[at]:.6g})")
    outside = (labels < -1) | (labels >= classes)
    if outside.any():
        at = int(outside.argmax())
        raise ProbabilitiesError(
            f"{row(at)}: label {labels[at]} is out of range; {classes} classes are 0 to {classes - 1}, -1 is no label"
        )


def _chunks(probs: Probabilities) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(1, probs.shape[1]))
    return (slice(start, min(start + step, len(probs))) for start in range(0, len(probs), step))
