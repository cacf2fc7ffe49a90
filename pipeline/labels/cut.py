"""Where the ranking of labels is cut: four explanations of every disagreement, weighed alike, or by what people said.

n images, of each of which `label_errors.JUDGED` is known. Labels and probabilities do not tell a wrong label from a
mistake of the model (`noise`), so the cut does not stake all on one explanation: it is where the mean of the F1 that
each expects is largest. Where somebody has looked at some of the images, that decides between them (`verdicts`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.labels.verdicts import UNSEEN, WRONG, weighed

EXPLANATIONS = ("scattered", "transitions", "confident", "two opinions")
"""Why a label and a prediction differ, each a probability that the label is wrong:

- *scattered*: wrong labels fall anywhere, whatever the image shows; all else is the model's mistake (`noise`);
- *transitions*: the same, with a rate for each pair of classes;
- *confident*: of each class as many labels are wrong as confident learning counts, those that another class outdoes
  most, each as far as it does;
- *two opinions*: who labels and who predicts find the same images hard. Where a share d of the images as clear as this
  one is not predicted as labelled, the label is wrong with 1 - d: the prediction is as reliable as it is confirmed.

The last two are never taken to be less than *scattered*, which asks the least of the data.
"""

_BLOCK_ROWS, _BLOCKS = 100, 50
"""Images counted as equally clear for *two opinions*: at least so many, in at most so many blocks."""

_EQUAL_F1 = 1e-6
"""Closer than this, two cuts count as equally good, and the one with fewer flags is taken."""

_RANGE = (0.05, 0.95)
"""Quantiles that a range spans where people's verdicts leave many opinions possible; of four explanations, all."""


@dataclass(frozen=True, slots=True)
class LabelCut:
    """Where the ranking by `label_score` is cut: a label that another class outdoes is called wrong up to `limit`."""

    limit: float
    """In [0, 1], or -1: no row that nobody looked at is called an error."""
    doubt_limit: float
    """In [0, 1], or -1: the same for the labels in doubt beyond."""
    estimated_errors: float
    errors_range: tuple[float, float]
    estimated_precision: float
    precision_range: tuple[float, float]
    """As in `LabelAudit`."""


def explanations(judged: NDArray[np.void]) -> NDArray[np.float32]:
    """Return how probably each row's label is wrong by each of `EXPLANATIONS`, (4, n); NaN: nothing to judge."""
    share, scattered = judged["own_share"], judged["scattered"]
    confident = np.where(_confidently_wrong(judged), 1 - share, 0)
    disagrees = share < 0.5
    edges = np.zeros(0, np.float32)
    known = ~np.isnan(share)
    blocks = min(_BLOCKS, int(np.count_nonzero(known)) // _BLOCK_ROWS)
    if blocks > 1:
        # Edges are values, so that equal rows are in the same block whatever their order.
        edges = np.unique(np.quantile(judged["confidence"][known], np.arange(1, blocks) / blocks, method="lower"))
    block = np.searchsorted(edges, judged["confidence"])
    rows, differ = (np.bincount(block[chosen], minlength=len(edges) + 2) for chosen in (known, known & disagrees))
    opinion = np.where(disagrees, 1 - (differ / np.maximum(rows, 1))[block], 0)
    wrong = np.stack([scattered, judged["transitions"], np.fmax(confident, scattered), np.fmax(opinion, scattered)])
    wrong[:, ~known] = np.nan
    return wrong.astype(np.float32)


def choose_cut(judged: NDArray[np.void]) -> tuple[NDArray[np.float32], LabelCut]:
    """Return each row's `label_score` (n,), and where to cut it.

    Rows that another class outdoes (own share below 0.5) are flagged from the most suspicious on. With m flags an
    opinion that gives row i an error with probability q_i expects F1 = 2 sum(q of the flagged) / (m + sum(q)); the cut
    is where the mean over the opinions is largest. No parameter is to be set. Rows of equal score are treated alike.

    The opinions are the four explanations; with verdicts, those that the verdicts leave possible. A row that a person
    called wrong has score 0 and is flagged, one that was called right has score 1 and is not, whatever the cut.
    """
    wrong = explanations(judged)
    known = ~np.isnan(judged["own_share"])
    verdict, outdone = judged["verdict"], judged["own_share"] < 0.5
    told = bool((verdict != UNSEEN).any())
    if told:
        wrong = weighed(wrong, verdict, outdone)
    score: NDArray[np.float32] = 1 - wrong.mean(axis=0)
    errors: NDArray[np.float64] = np.add.reduce(wrong, axis=1, dtype=np.float64, where=known)
    all_errors, all_range = float(errors.mean()), _range(errors, told)

    certain = int(np.count_nonzero(verdict == WRONG))
    rows = np.flatnonzero(outdone & (verdict == UNSEEN))
    rows = rows[np.argsort(score[rows], kind="stable")]
    flags, right = 0, np.zeros(len(wrong))
    if len(rows):
        f1 = _mean_f1(wrong, rows, errors, certain)
        f1[:-1][np.diff(score[rows]) == 0] = 0  # only where the next score is another one
        flags = 1 + int(np.argmax(f1 >= f1.max() - _EQUAL_F1))
        # At least one right flag is to be expected; where people found hardly an error, by nearly all opinions.
        right = wrong[:, rows[:flags]].sum(axis=1, dtype=np.float64)
        worth = round(_range(right, told)[0] if told else float(right.mean())) > 0
        without = float((2 * certain / np.maximum(certain + errors, 1e-9)).mean())
        if not worth or f1[flags - 1] < without + _EQUAL_F1:
            flags, right = 0, np.zeros(len(wrong))
    left = all_errors - certain - float(right.mean())
    last = min(flags + math.ceil(max(left, 0.0)), len(rows)) - 1
    limit = float(score[rows[flags - 1]]) if flags else -1.0
    doubt = float(score[rows[last]]) if last >= flags else limit
    precision, share = math.nan, (math.nan, math.nan)
    if certain + flags:
        shares = (certain + right) / (certain + flags)
        precision, share = float(shares.mean()), _range(shares, told)
    return score, LabelCut(limit, doubt, all_errors, all_range, precision, share)


def _mean_f1(
    wrong: NDArray[np.float32], rows: NDArray[np.int64], errors: NDArray[np.float64], certain: int
) -> NDArray[np.float64]:
    """Return the mean of the F1 that the opinions expect of the first 1, 2, ... of the rows as flags, (rows,)."""
    count = certain + np.arange(1, len(rows) + 1)
    total = np.zeros(len(rows))
    for opinion, all_errors in zip(wrong, errors, strict=True):  # one by one: of a million images each takes megabytes
        found = certain + np.cumsum(opinion[rows], dtype=np.float64)
        total += 2 * found / np.maximum(count + all_errors, 1e-9)
    return total / len(wrong)


def called_wrong(judged: NDArray[np.void], score: NDArray[np.float32], cut: LabelCut) -> NDArray[np.bool_]:
    """Return which rows' labels are called wrong, (n,): by a person, or by the probabilities where nobody looked."""
    by_cut = (judged["own_share"] < 0.5) & (score <= np.float32(cut.limit))
    flags: NDArray[np.bool_] = (judged["verdict"] == WRONG) | (by_cut & (judged["verdict"] == UNSEEN))
    return flags


def in_doubt(judged: NDArray[np.void], score: NDArray[np.float32], cut: LabelCut) -> NDArray[np.bool_]:
    """Return which rows' labels are in doubt without being called wrong, (n,); none that a person has seen."""
    beyond = (score > np.float32(cut.limit)) & (score <= np.float32(cut.doubt_limit))
    flags: NDArray[np.bool_] = (judged["own_share"] < 0.5) & beyond & (judged["verdict"] == UNSEEN)
    return flags


def _range(values: NDArray[np.float64], told: bool) -> tuple[float, float]:
    low, high = np.quantile(values, _RANGE) if told else (values.min(), values.max())
    return min(float(low), float(values.mean())), max(float(high), float(values.mean()))


def _confidently_wrong(judged: NDArray[np.void]) -> NDArray[np.bool_]:
    """Return the rows that confident learning prunes, (n,): of each class as many as its calibrated joint counts.

    Of the rows labelled i that confidently show any class, a share shows another one; that share of all rows labelled i
    is wrong (Northcutt, Jiang, Chuang, JAIR 2021, 3.1 and 3.2), here those with the lowest own share.
    """
    label, share = judged["label"], judged["own_share"]
    classes = int(label.max(initial=-1)) + 1
    images, counted, doubted = (
        np.bincount(label[(label >= 0) & chosen], minlength=classes)
        for chosen in (~np.isnan(share), judged["is_counted"], judged["is_doubted"])
    )
    wrong = np.rint(images * doubted / np.maximum(counted, doubted + 1))
    rows = np.flatnonzero(share < 0.5)
    rows = rows[np.lexsort((share[rows], label[rows]))]
    starts = np.searchsorted(label[rows], np.arange(classes))
    place = np.arange(len(rows)) - starts[label[rows]]
    found = np.zeros(len(judged), dtype=bool)
    found[rows[place < wrong[label[rows]]]] = True
    return found
