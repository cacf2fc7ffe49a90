"""What a few looks settle: people's verdicts on some labels, and which labels are worth a look.

n images. Four explanations say of each label how probably it is wrong (`cut`); which of them to believe cannot
be told from labels and probabilities, but fifty verdicts tell much of it. They are weighed by a regression whose
inputs are the explanations' log-odds,

    log-odds(label i is wrong) = a + sum over explanations e of b_e log-odds(q_e of i),

with a Gaussian prior: a around 0, each b_e around 1/4 (the explanations' mean), all with deviation 1. What the verdicts
leave possible is drawn from the posterior, so that an estimate comes with its range.

Sources: MacKay, "The Evidence Framework Applied to Classification Networks", Neural Computation 1992 (posterior by
Laplace's approximation); Neyman, "On the Two Different Aspects of the Representative Method", JRSS 1934 (whom to ask).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

Floats = NDArray[np.float64]

UNSEEN, RIGHT, WRONG = -1, 0, 1
"""Nobody looked; a person says that the label is right; wrong."""

WORDS = ("right", "wrong")
"""The last two as they stand in files."""

ASKED = 50
"""Images to look at in one round: some ten minutes, and what the benchmarks measure (`benchmarks/labels.py`)."""

DRAWS = 32
"""Opinions drawn from the posterior."""

_SUREST = 0.99
"""An explanation is a belief: it counts as no surer than 99 to 1, or one verdict against it outweighed any number."""


def weighed(
    explained: NDArray[np.float32], verdict: NDArray[np.integer], outdone: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return how probably each label is wrong by each opinion that the verdicts leave possible, (DRAWS, n).

    Args:
        explained: probabilities of an error by each of E explanations, (E, n); NaN rows have nothing to judge.
        verdict: `UNSEEN`, `RIGHT` or `WRONG`, (n,).
        outdone: another class is more probable than the given one, (n,). Only those labels are regressed, since only
            of those anybody is asked; of the others each opinion repeats one explanation, in turns.

    """
    seen = np.flatnonzero(outdone & (verdict != UNSEEN))
    mean, spread = _posterior(_log_odds(explained[:, seen]), verdict[seen] == WRONG)
    noise = np.random.default_rng(0).standard_normal((DRAWS // 2, len(mean)))
    drawn = mean + np.concatenate([noise, -noise]) @ spread.T  # in pairs, so that their mean is the posterior's
    beliefs = explained[np.arange(DRAWS) % len(explained)]
    rows = np.flatnonzero(outdone)
    beliefs[:, rows] = expit(drawn.astype(np.float32) @ _log_odds(explained[:, rows]).astype(np.float32))
    told = np.flatnonzero((verdict != UNSEEN) & ~np.isnan(explained[0]))
    beliefs[:, told] = verdict[told] == WRONG
    return beliefs


def worth_a_look(
    score: NDArray[np.float32], outdone: NDArray[np.bool_], verdict: NDArray[np.integer], count: int = ASKED
) -> NDArray[np.int64]:
    """Return up to `count` rows whose verdicts would settle most, the most suspicious first.

    Of the labels that another class outdoes and nobody has looked at, one is taken at equal steps down the ranking by
    `score` (n,), where each counts sqrt(p (1 - p)), the deviation of its verdict: most where the estimate is unsure,
    few where it is sure, and some everywhere. The same images give the same rows; ties go to the lower row.
    """
    rows = np.flatnonzero(outdone & (verdict == UNSEEN))
    rows = rows[np.argsort(score[rows], kind="stable")]
    if len(rows) <= count:
        return rows
    wrong = 1 - score[rows].astype(np.float64)
    weight = np.sqrt(np.clip(wrong * (1 - wrong), 1e-12, None))
    step = np.arange(count)
    chosen = np.searchsorted(np.cumsum(weight), (step + 0.5) / count * weight.sum())
    # Nobody is asked twice: where one label fills several steps, the next ones are taken, and before the last too few.
    chosen = np.minimum(np.maximum.accumulate(chosen - step), len(rows) - count) + step
    asked: NDArray[np.int64] = rows[chosen]
    return asked


def _log_odds(explained: NDArray[np.float32]) -> Floats:
    """Return a constant and the explanations' log-odds, (1 + E, m)."""
    bounded = np.clip(explained.astype(np.float64), 1 - _SUREST, _SUREST)
    return np.concatenate([np.ones((1, explained.shape[1])), logit(bounded)])


def _posterior(inputs: Floats, wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the posterior's mean (F,) and a root of its covariance (F, F), from inputs (F, m) and verdicts (m,)."""
    prior = np.full(len(inputs), 1 / (len(inputs) - 1))
    prior[0] = 0

    def loss(weights: Floats) -> tuple[float, Floats]:
        odds = weights @ inputs
        gap = weights - prior
        value = np.logaddexp(0, odds).sum() - odds[wrong].sum() + gap @ gap / 2
        return float(value), inputs @ (expit(odds) - wrong) + gap

    mean = minimize(loss, prior, jac=True, method="BFGS").x
    likely = expit(mean @ inputs)
    curvature = (inputs * (likely * (1 - likely))) @ inputs.T + np.eye(len(inputs))
    spread: Floats = np.linalg.cholesky(np.linalg.inv(curvature))
    return mean, spread
