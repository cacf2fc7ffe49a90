"""How well the `ambiguity_score` tells the images that annotators disagree on: `python -m benchmarks.ambiguity`.

AUROC on CIFAR-10N, where three people named each image, by the out-of-sample probabilities of a ResNet-18: given the
aggregate of the three, the labels of one of them alone, or true labels of which a fifth was flipped at random. One
person's labels say part of the answer themselves, so the last column asks whether the other two disagree. Beside it
what others' scores reach, what could be learned from the very answers, and what an image's own rate of wrong answers
would reach if it were known. Two minutes on 2 cores; needs the benchmark data (../shared/data).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from pipeline.labels.label_errors import judge_labels

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_PEOPLE = ("random1", "random2", "random3")


def main(data: Path = _DATA) -> None:
    """Print a row for each kind of given labels, then the bound."""
    path = data / "noise_probs" / "aggregate_resnet18.npz"
    if not path.is_file():
        print(f"left out, not there: {path.name}")
        return
    labels = np.load(data / "cifar10" / "cifar10n.npz")
    named = np.stack([labels[one] for one in _PEOPLE])
    differ = (named != named[0]).any(axis=0)
    print(f"annotators disagree on {differ.mean():.1%} of CIFAR-10N's images; AUROC for it:")
    aggregate = np.load(path)
    report("the aggregate of the three", aggregate["pred_probs"], aggregate["noisy_label"], differ)
    for at, one in enumerate(_PEOPLE):
        first, second = np.delete(named, at, axis=0)
        report(f"one person, {one}", aggregate["pred_probs"], labels[one], differ, first != second)
    flipped = np.load(data / "noise_probs" / "synthetic20_resnet18.npz")
    report("a fifth flipped at random", flipped["pred_probs"], flipped["noisy_label"], differ)
    wrong = named != labels["clean"]
    rate = wrong.mean()
    both = np.mean([(wrong[a] & wrong[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))])
    print(
        f"each image's own rate of wrong answers, if it were known (Beta distribution with the mean {rate:.3f} and the "
        f"agreement {both:.4f} of two annotators' mistakes): {ideal(rate, both):.3f}"
    )


def report(
    given: str,
    probs: NDArray[np.floating],
    label: NDArray[np.integer],
    differ: NDArray[np.bool_],
    others_differ: NDArray[np.bool_] | None = None,
) -> None:
    """Print how well each score tells where people `differ` (N,), by probabilities (N, K) and given labels (N,)."""
    probs, label = probs.astype(np.float64), label.astype(np.int64)
    ranked = np.sort(probs, axis=1)
    own = probs[np.arange(len(label)), label]
    inputs = np.concatenate([probs, ranked, own[:, None], label[:, None]], axis=1)
    # What could be learned from the very answers, if they were known for most of the images.
    taught = cross_val_predict(HistGradientBoostingClassifier(), inputs, differ, cv=3, method="predict_proba")[:, 1]
    score = -judge_labels(probs, label, np.ones(probs.shape[1])).agreement
    scores = {
        "ambiguity_score": score,
        "the most probable class's lead": ranked[:, -2] - ranked[:, -1],
        "the given label's probability": -own,
        "gradient boosting on all of these, taught by the disagreement": taught,
    }
    told = [f"{what} {roc_auc_score(differ, one):.3f}" for what, one in scores.items()]
    if others_differ is not None:
        told.append(f"ambiguity_score, whether the other two disagree {roc_auc_score(others_differ, score):.3f}")
    print(f"given {given}: " + "; ".join(told), flush=True)


def ideal(rate: float, both: float) -> float:
    """Return the AUROC of each image's own rate of wrong answers: Beta, of this mean, and E[rate squared] `both`."""
    weight = rate * (1 - rate) / (both - rate**2) - 1
    rng = np.random.default_rng(0)
    rates = rng.beta(rate * weight, (1 - rate) * weight, 400_000)
    return float(roc_auc_score((rng.random((3, len(rates))) < rates).any(axis=0), rates))


if __name__ == "__main__":
    main()
