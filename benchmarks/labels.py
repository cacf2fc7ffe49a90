"""How good the label flags are where the truth is known: `python benchmarks/labels.py [--data FOLDER]`.

One line per data set: F1 of `find_label_errors`, of cleanlab's default filter, of "the prediction is another class",
and of the best cut of our score, which needs the truth; then what was estimated without the truth. No parameter is set.
About 1 minute on 2 cores. The benchmark data (../shared/data) is optional; the digits with planted noise need none.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB

from pipeline.labels import find_label_errors

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_NOISE = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A data set whose wrong labels are known."""

    name: str
    probs: NDArray[np.floating]
    """(N, K), out of sample."""
    labels: NDArray[np.int64]
    is_error: NDArray[np.bool_]


def measured_cases(data: Path) -> Iterator[Case]:
    """Yield the data sets of the benchmark folder; those that are absent are named and left out."""
    for name, about in (
        ("aggregate_resnet18", "CIFAR-10N, human noise"),
        ("synthetic20_resnet18", "CIFAR-10, synthetic noise"),
    ):
        path = data / "noise_probs" / f"{name}.npz"
        if _there(path):
            arrays = np.load(path)
            labels = arrays["noisy_label"].astype(np.int64)
            yield Case(about, arrays["pred_probs"], labels, labels != arrays["true_label"])
    for name in ("mnist", "cifar100"):
        path = data / "label_errors" / f"{name}.npz"
        if _there(path):
            arrays = np.load(path)
            is_error = np.zeros(len(arrays["given_label"]), dtype=bool)
            is_error[arrays["reviewed_index"][arrays["is_error"]]] = True
            yield Case(f"{name} test, reviewed", arrays["pred_probs"], arrays["given_label"].astype(np.int64), is_error)


def planted_cases() -> Iterator[Case]:
    """Yield scikit-learn's digits with planted noise, judged by a strong and by a weak model trained on that noise."""
    images, truth = load_digits(return_X_y=True)
    models = {"strong": LogisticRegression(C=0.01, max_iter=2000), "weak": GaussianNB(var_smoothing=0.1)}
    for model, network in models.items():
        for kind in ("uniform", "asymmetric"):
            for rate in _NOISE:
                rng = np.random.default_rng(round(rate * 1000))
                flipped = rng.random(len(truth)) < rate
                step = rng.integers(1, 10, len(truth)) if kind == "uniform" else 1
                labels = np.where(flipped, (truth + step) % 10, truth)
                probs = cross_val_predict(network, images, labels, cv=5, method="predict_proba")
                yield Case(f"digits, {model}, {rate:.1%} {kind}", probs.astype(np.float16), labels, flipped)


def compare(case: Case) -> str:
    """Return the case's line of the table."""
    ours = find_label_errors(case.probs, case.labels)
    probs = case.probs.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes with few images
        default = find_label_issues(case.labels, probs, n_jobs=1)
    disagrees = probs.argmax(1) != case.labels
    hits = int((ours.is_error & case.is_error).sum())
    cells = (
        f"{_f1(ours.is_error, case.is_error):.3f}",
        f"{_f1(default, case.is_error):.3f}",
        f"{_f1(disagrees, case.is_error):.3f}",
        f"{_best_f1(ours.label_score, case.is_error):.3f}",
        f"{ours.is_error.sum()}",
        f"{hits / max(1, ours.is_error.sum()):.2f}",
        f"{hits / case.is_error.sum():.2f}",
        f"{ours.estimated_precision:.2f}",
        f"{case.is_error.sum()}",
        f"{ours.estimated_errors:.0f}",
    )
    return f"{case.name:36}" + "".join(f"{cell:>10}" for cell in cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA, help="folder with noise_probs and label_errors")
    data = parser.parse_args().data
    heads = ("ours F1", "cleanlab", "argmax", "best cut", "flags", "precision", "recall", "estimated", "errors")
    print(f"{'data':36}" + "".join(f"{head:>10}" for head in (*heads, "estimated")))
    for case in (*measured_cases(data), *planted_cases()):
        print(compare(case), flush=True)


def _there(path: Path) -> bool:
    if not path.is_file():
        print(f"left out, not there: {path.name}")
    return path.is_file()


def _f1(flags: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (flags & truth).sum() / max(1, flags.sum() + truth.sum()))


def _best_f1(score: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Return the F1 of the best threshold; rows of equal score fall on the same side."""
    order = np.argsort(score, kind="stable")
    hits, flagged = np.cumsum(truth[order]), np.arange(1, len(order) + 1)
    last_of_its_score = np.append(np.diff(score[order]) > 0, True)
    return float((2 * hits / (flagged + truth.sum()))[last_of_its_score].max())


if __name__ == "__main__":
    main()
