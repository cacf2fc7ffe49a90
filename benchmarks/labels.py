"""How good the label flags are where the truth is known: `python -m benchmarks.labels [--cifar] [--data FOLDER]`.

One line per data set: F1 of `find_label_errors`, of cleanlab's default filter, of "the prediction is another class",
and of the best cut of our score, which needs the truth; then what was estimated without the truth: the precision, in
brackets the range by the four explanations, and the number of errors. No parameter is set. Then, over all lines: how
often the aims are reached, also after rounds of 50 verdicts (`--rounds`, `--mistakes`). Noise is planted at 0.5 to
40 %: uniform, asymmetric (always the next class) and depending on the image (hard ones, as their most probable other
class). About 2 minutes on 4 cores; `--cifar` adds linear models on CIFAR-10 features with planted noise and four sets
of human labels (10 minutes). At the end, how well the `ambiguity_score` tells the images that annotators disagree on,
and how well that could be told at all.

The benchmark data (../shared/data) is optional; scikit-learn's own data sets need none.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import ambiguity
from pipeline.labels.label_errors import LabelAudit, find_label_errors
from pipeline.labels.verdicts import UNSEEN

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_CIFAR_IMAGES = 10_000
_KINDS = {
    "uniform": ("uniform",),
    "asymmetric": ("asymmetric",),
    "by image": ("by image",),
    "human": ("aggregate", "random1", "random2", "random3"),
}
"""How the names of cases end."""
_NOISE = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A data set whose wrong labels are known."""

    name: str
    probs: NDArray[np.floating]
    """(N, K), out of sample."""
    labels: NDArray[np.int64]
    is_error: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case."""

    name: str
    looks: int
    f1: float
    cleanlab: float
    argmax: float
    best: float
    flags: int
    cleanlab_flags: int
    precision: float
    recall: float
    cleanlab_recall: float
    first_100: float
    cleanlab_first_100: float
    estimated: float
    low: float
    high: float
    errors: int
    estimated_errors: float
    unseen: tuple[float, float, float]
    """F1 of ours, cleanlab's and argmax among the images that nobody looked at."""

    @property
    def other(self) -> float:
        """The better F1 of cleanlab's default and of plain disagreement."""
        return max(self.cleanlab, self.argmax)

    def row(self) -> str:
        """Return the line of the table."""
        cells = (
            self.name,
            *(f"{one:.3f}" for one in (self.f1, self.cleanlab, self.argmax, self.best)),
            str(self.flags),
            f"{self.precision:.2f}",
            f"{self.recall:.2f}",
            f"{self.estimated:.2f} ({self.low:.2f} to {self.high:.2f})",
            str(self.errors),
            f"{self.estimated_errors:.0f}",
        )
        return "| " + " | ".join(cells) + " |"


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
    """Yield scikit-learn's data sets with planted noise, judged by models trained on that noise."""
    digits, cancer = (load(return_X_y=True) for load in (load_digits, load_breast_cancer))
    weak = GaussianNB(var_smoothing=0.1)
    forest = RandomForestClassifier(100, random_state=0, n_jobs=-1)
    yield from _planted("digits, strong", *digits, LogisticRegression(C=0.01, max_iter=2000))
    yield from _planted("digits, weak", *digits, weak)
    yield from _planted("digits, forest", *digits, forest)
    yield from _planted("cells, linear", *cancer, _linear(1.0))
    yield from _planted("cells, forest", *cancer, forest)


def cifar_cases(data: Path) -> Iterator[Case]:
    """Yield 10,000 CIFAR-10 images, planted noise and human labels, by linear models on features weak and strong."""
    labels = np.load(data / "cifar10" / "cifar10n.npz")
    truth = labels["clean"][:_CIFAR_IMAGES].astype(np.int64)
    squeezenet, resnet = _cifar_features(data)
    judges = (
        ("CIFAR-10, weakest", PCA(12, random_state=0).fit_transform(squeezenet), 0.1),
        ("CIFAR-10, weak", PCA(96, random_state=0).fit_transform(squeezenet), 0.01),
        ("CIFAR-10, strong", resnet, 0.01),
    )
    for name, features, penalty in judges:
        yield from _planted(name, features, truth, _linear(penalty))
        for who in _KINDS["human"]:
            given = labels[who][:_CIFAR_IMAGES].astype(np.int64)
            yield Case(f"{name}, {who}", _out_of_sample(_linear(penalty), features, given), given, given != truth)


def compare(case: Case, rounds: int, mistakes: float) -> list[Outcome]:
    """Judge the case in every way: alone, and after each round of verdicts on the images that are worth a look.

    The verdicts are the known truth; a share `mistakes` of them is the opposite.
    """
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))  # so that not all cases have the same mistakes
    verdicts = np.full(len(case.labels), UNSEEN)
    found = find_label_errors(case.probs, case.labels)
    probs = case.probs.astype(np.float64)
    probs /= probs.sum(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on classes with few images
        default = find_label_issues(case.labels, probs, n_jobs=1)
    disagrees = probs.argmax(1) != case.labels
    quality = get_label_quality_scores(case.labels, probs)
    outcomes = [_outcome(case, found, default, disagrees, quality, verdicts != UNSEEN)]
    for _ in range(rounds):
        asked = found.to_review
        verdicts[asked] = case.is_error[asked] ^ (rng.random(len(asked)) < mistakes)
        found = find_label_errors(case.probs, case.labels, verdicts)
        outcomes.append(_outcome(case, found, default, disagrees, quality, verdicts != UNSEEN))
    return outcomes


def _outcome(
    case: Case,
    ours: LabelAudit,
    default: NDArray[np.bool_],
    disagrees: NDArray[np.bool_],
    quality: NDArray[np.float64],
    seen: NDArray[np.bool_],
) -> Outcome:
    hits = int((ours.is_error & case.is_error).sum())
    return Outcome(
        name=case.name,
        looks=int(seen.sum()),
        f1=_f1(ours.is_error, case.is_error),
        cleanlab=_f1(default, case.is_error),
        argmax=_f1(disagrees, case.is_error),
        best=_best_f1(ours.label_score, case.is_error),
        flags=int(ours.is_error.sum()),
        cleanlab_flags=int(default.sum()),
        precision=hits / max(1, int(ours.is_error.sum())),
        recall=hits / max(1, int(case.is_error.sum())),
        cleanlab_recall=float((default & case.is_error).sum() / max(1, case.is_error.sum())),
        first_100=float(case.is_error[np.argsort(ours.label_score, kind="stable")[:100]].mean()),
        cleanlab_first_100=float(case.is_error[np.argsort(quality, kind="stable")[:100]].mean()),
        estimated=ours.estimated_precision,
        low=ours.precision_range[0],
        high=ours.precision_range[1],
        errors=int(case.is_error.sum()),
        estimated_errors=ours.estimated_errors,
        unseen=(
            _f1(ours.is_error[~seen], case.is_error[~seen]),
            _f1(default[~seen], case.is_error[~seen]),
            _f1(disagrees[~seen], case.is_error[~seen]),
        ),
    )


def summarise(which: str, outcomes: Sequence[Outcome]) -> None:
    """Print how often the aims are reached, and the mean F1."""
    if not outcomes:
        return
    looks = np.mean([one.looks for one in outcomes])
    print(f"{len(outcomes)} cases, {which}" + (f", after {looks:.0f} looks on average:" if looks else ":"))
    for aim, reached in (
        ("F1 at least the better of cleanlab and argmax, less 0.005", lambda one: one.f1 >= one.other - 0.005),
        ("cleanlab's own share of that", lambda one: one.cleanlab >= one.other - 0.005),
        ("F1 within 0.02 of the best cut", lambda one: one.best - one.f1 <= 0.02),
        ("cleanlab's F1 within 0.02 of the best cut", lambda one: one.best - one.cleanlab <= 0.02),
        ("estimated precision within 0.1", lambda one: abs(one.estimated - one.precision) <= 0.1),
        ("estimated number of errors within a quarter", lambda one: 0.8 <= one.estimated_errors / one.errors <= 1.25),
        ("precision inside the range", lambda one: one.low - 0.02 <= one.precision <= one.high + 0.02),
    ):
        count = sum(reached(one) for one in outcomes)
        print(f"  {aim}: {count} ({count / len(outcomes):.2f})")
    if looks:
        ours, *others = np.mean([one.unseen for one in outcomes], axis=0)
        kept = sum(one.unseen[0] >= max(one.unseen) - 0.005 for one in outcomes)
        print(
            f"  among images that nobody looked at: mean F1 {ours:.3f}, cleanlab {others[0]:.3f}, argmax "
            f"{others[1]:.3f}; at least the better of both, less 0.005: {kept} ({kept / len(outcomes):.2f})"
        )
    mean = {name: np.mean([getattr(one, name) for one in outcomes]) for name in ("f1", "cleanlab", "argmax", "best")}
    print("  mean F1: " + ", ".join(f"{name} {value:.3f}" for name, value in mean.items()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA, help="folder with noise_probs and label_errors")
    parser.add_argument("--cifar", action="store_true", help="also CIFAR-10, planted and human noise")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of verdicts, 50 looks each [2]")
    parser.add_argument("--mistakes", type=float, default=0.0, help="share of verdicts that are mistaken [0]")
    options = parser.parse_args()
    print(
        "| data | ours | cleanlab | argmax | best cut | flags | precision | recall | estimated | errors | estimated |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rounds: list[list[Outcome]] = [[] for _ in range(options.rounds + 1)]
    cases = [measured_cases(options.data), planted_cases()]
    if options.cifar:
        cases.append(cifar_cases(options.data))
    for case in itertools.chain(*cases):
        for outcomes, outcome in zip(rounds, compare(case, options.rounds, options.mistakes), strict=True):
            outcomes.append(outcome)
        print(rounds[0][-1].row(), flush=True)
    print()
    outcomes = rounds[0]
    for one in outcomes:
        if "reviewed" in one.name:
            print(
                f"{one.name}: first 100 {one.first_100:.2f} (cleanlab {one.cleanlab_first_100:.2f}); {one.flags} flags "
                f"(cleanlab {one.cleanlab_flags}), recall {one.recall:.2f} (cleanlab {one.cleanlab_recall:.2f})"
            )
    for outcomes in rounds:
        summarise("at least 10 errors", [one for one in outcomes if one.errors >= 10])
        for kind, endings in _KINDS.items():
            summarise(kind, [one for one in outcomes if one.name.endswith(endings)])
    ambiguity.main(options.data)


def _planted(name: str, features: NDArray[Any], truth: NDArray[Any], model: Any) -> Iterator[Case]:
    classes = int(truth.max()) + 1
    hardness = _out_of_sample(_linear(0.1), features, truth).astype(np.float64)
    own = hardness[np.arange(len(truth)), truth].copy()
    hardness[np.arange(len(truth)), truth] = -1
    second, chance = hardness.argmax(axis=1), np.sqrt(np.clip(1 - own, 1e-3, 1))
    for kind in ("uniform", "asymmetric", "by image"):
        for rate in _NOISE:
            rng = np.random.default_rng(round(rate * 1000) + len(kind))
            flips: NDArray[Any] = np.full(len(truth), rate)
            wrong = (truth + (rng.integers(1, classes, len(truth)) if kind == "uniform" else 1)) % classes
            if kind == "by image":
                scales = np.geomspace(1e-3, 1e3, 2000)
                means = np.array([np.minimum(0.9, scale * chance).mean() for scale in scales])
                flips = np.minimum(0.9, scales[np.abs(means - rate).argmin()] * chance)
                wrong = second
            flipped = rng.random(len(truth)) < flips
            labels = np.where(flipped, wrong, truth).astype(np.int64)
            yield Case(f"{name}, {rate:.1%} {kind}", _out_of_sample(model, features, labels), labels, flipped)


def _linear(penalty: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300))


def _out_of_sample(model: Any, features: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float16]:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimisers that stop early
        found = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    return found.astype(np.float16)


def _cifar_features(data: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what SqueezeNet (ImageNet) and ResNet-20 (trained on these very images) see in each, (n, D)."""
    import torch
    from PIL import Image

    from benchmarks import cifar
    from benchmarks.photographs import read_networks

    pixels = cifar.training_pixels(_CIFAR_IMAGES, data / "cifar10")
    squeezenet = read_networks()[0]
    published = cifar.resnets(data / "cifar10")
    resnet = published.load(str(data / "cifar10" / "resnet20.pt"))
    seen: tuple[list[Any], list[Any]] = ([], [])
    with torch.inference_mode():
        for start in range(0, len(pixels), 100):
            some = pixels[start : start + 100]
            large = np.stack([np.asarray(Image.fromarray(one).resize((128, 128))) for one in some])
            seen[0].append(squeezenet.module.features(squeezenet.prepared(large)).mean((2, 3)))
            inside = torch.relu(resnet.bn1(resnet.conv1(published.preprocess(some))))
            seen[1].append(resnet.layer3(resnet.layer2(resnet.layer1(inside))).mean((2, 3)))
    first, second = (torch.cat(one).numpy() for one in seen)
    return first, second


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
