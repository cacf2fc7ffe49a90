"""Linear heads on the features of any network, one per fold, each fitted without the images it will judge.

N images, D features, K classes, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.errors import DatasetError, RunFolderError
from pipeline.files import replacing
from pipeline.judging.logistic import Part, Scale, fit_logistic

ABSENT_BIAS = -30.0
"""Bias of a class that the training part lacks: probability below 1e-13, yet finite."""

_CHUNK_ROWS = 8192


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single ==
class Heads:
    """One linear layer on raw features per fold; head f has never seen an image of fold f."""

    weight: npt.NDArray[np.float32]
    """(F, K, D)."""
    bias: npt.NDArray[np.float32]
    """(F, K)."""

    def logits(self, features: npt.NDArray[np.float32], folds: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """Return (N, K): image i, with features (N, D), seen by the head of its fold; NaN rows stay NaN."""
        if len(features) != len(folds):
            raise ValueError(f"{len(features)} feature rows but {len(folds)} folds")
        if len(folds) and not 0 <= folds.min() <= folds.max() < len(self.weight):
            raise ValueError(
                f"folds reach from {folds.min()} to {folds.max()}, the heads from 0 to {len(self.weight) - 1}"
            )
        result = np.empty((len(features), self.weight.shape[1]), dtype=np.float32)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            result[rows] = features[rows] @ self.weight[fold].T + self.bias[fold]
        return result

    def probabilities(
        self, features: npt.NDArray[np.float32], folds: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.float32]:
        """Return the softmax of `logits`, (N, K); rows sum to 1."""
        logits = self.logits(features, folds)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        result: npt.NDArray[np.float32] = odds / odds.sum(axis=1, keepdims=True)
        return result

    def save(self, path: Path) -> None:
        """Write safetensors, whole or not at all."""
        with replacing(path) as partial:
            save_file({"weight": self.weight, "bias": self.bias}, partial)

    @classmethod
    def load(cls, path: Path) -> Heads:
        """Read what `save` wrote; a file that is missing or broken raises RunFolderError."""
        try:
            tensors = load_file(path)
            return cls(tensors["weight"], tensors["bias"])
        except (OSError, SafetensorError, KeyError) as error:
            raise RunFolderError(f"cannot read the heads in {path}: {error}; run the audit again") from error


def fit_heads(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    folds: npt.NDArray[np.integer],
    *,
    class_count: int,
    seed: int,
    device: str = "cpu",
) -> Heads:
    """Fit one head per fold on the images of the other folds.

    Head f depends on no feature and no label of fold f: scaling, strength of the penalty and weights all come from the
    other folds. Labels are taken to be noisy, so the strength is chosen by held-out log loss inside the training part,
    anew for every fold. A class that a training part lacks keeps its output, with weight 0 and bias `ABSENT_BIAS`.

    Args:
        features: (N, D), may be a memory map; rows that are not finite (unreadable images) are never used.
        labels: (N,) class index; -1 is unknown and never used.
        folds: (N,) 0 <= fold < F.
        class_count: K; labels lie below it.
        seed: for the inner split where there are only two folds.
        device: where torch computes.

    Raises:
        DatasetError: a fold has no readable labelled image outside itself.

    """
    if not len(features) == len(labels) == len(folds):
        raise ValueError(f"{len(features)} feature rows, {len(labels)} labels, {len(folds)} folds")
    fold_count = int(folds.max()) + 1
    usable = (labels >= 0) & (folds >= 0) & _finite_rows(features)
    weight = np.zeros((fold_count, class_count, features.shape[1]), dtype=np.float32)
    bias = np.full((fold_count, class_count), ABSENT_BIAS, dtype=np.float32)
    for fold in range(fold_count):
        rows = np.flatnonzero(usable & (folds != fold))
        if not len(rows):
            raise DatasetError(f"no readable labelled image outside fold {fold}; add images or lower --folds")
        present, targets = np.unique(labels[rows], return_inverse=True)
        part = Part(features, rows, targets, len(present), Scale.of(features, rows, torch.device(device)))
        head = fit_logistic(part, _inner_validation(folds[rows], seed)).double()
        raw = head[:, :-1] / part.scale.divisor  # the same function of features that are not scaled
        weight[fold, present] = raw.cpu().numpy()
        bias[fold, present] = (head[:, -1] - raw @ part.scale.mean.double()).cpu().numpy()
    return Heads(weight, bias)


def _finite_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    result = np.empty(len(features), dtype=bool)
    for start in range(0, len(features), _CHUNK_ROWS):
        piece = slice(start, start + _CHUNK_ROWS)
        result[piece] = np.isfinite(features[piece]).all(axis=1)
    return result


def _inner_validation(folds: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.bool_]:
    """Mark the images of a training part that choose the penalty.

    They are one of its folds, since copies share a fold and so none of them validates itself; a random third where the
    part is a single fold.
    """
    names = np.unique(folds)
    part = folds == names[0] if len(names) > 1 else np.random.default_rng(seed).permutation(len(folds)) % 3 == 0
    return np.asarray(part)
