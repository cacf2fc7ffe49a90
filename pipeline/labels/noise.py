"""Where wrong labels come from: explanations of why labels and out-of-sample probabilities disagree, fitted to both.

n images, K classes. Labels alone cannot tell a wrong label from a mistake of the model: a model trained on labels that
are wrong in the same way as it is itself uncertain is calibrated and yet wrong (docs/algorithm.md, "Which labels are
wrong"). What can be fitted is each explanation by itself. Here are the two with parameters; both say

    P(label y | image) = sum over true classes z of P(z | image) T[z, y],

P(z | image) is the model's, sharpened (`sharpness` > 1: the model is surer of the true class than of the labels it was
trained on) and shifted by class, and T is the noise. They differ in T:

- *scattered*: wrong labels fall on all other classes alike (one number);
- *transitions*: class z is labelled y at a rate of its own.

Fitted by expectation maximisation on a sample. Source of T: Patrini et al., "Making Deep Neural Networks Robust to
Label Noise", CVPR 2017; of sharpening: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SAMPLE_ROWS = 20_000
_SAMPLE_VALUES = 1 << 23
"""A few numbers are fitted, so a sample is enough: 32 MB in float32."""

_MOST_CLASSES = 2048
"""Classes up to which each pair has a rate of its own: 16 MB of rates; of more, a sample says nothing of most pairs."""

_SMALLEST = 1e-6
"""Probabilities below count as this: float16 rounds there, and a 0 would veto a class whatever the label says."""

_FIRST_NOISE = 0.05
_ITERATIONS = 100
_ENOUGH = 1e-6  # gain of the mean log-likelihood at which fitting ends
_STEP = 0.5  # largest change of the sharpness in one Newton step
_SHARPNESS = (0.2, 6.0)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseModel:
    """One explanation, fitted."""

    sharpness: float
    bias: Tensor
    """float32 (K,): log-odds that each class gains."""
    noise: Tensor
    """float32 (K, K): T[z, y], rows sum to 1; or (1,): the share of labels that is scattered over the other classes."""

    def error_probability(self, probs: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the probability that each given label is wrong, float32 (n,) in [0, 1]; labels are 0 .. K-1."""
        given = torch.from_numpy(labels.astype(np.int64))
        true = self.of_classes(logarithms(probs))
        own, other = _joint(true, given, self.noise)
        return (other / (own + other).clamp_min(1e-30)).numpy()

    def of_classes(self, logs: Tensor) -> Tensor:
        """Return P(true class | image), float32 (n, K), from the logarithms of the model's probabilities."""
        return torch.softmax(logs * self.sharpness + self.bias, 1)


class Sample:
    """A sample of the rows that pass by, of bounded size, the same for the same rows in the same order."""

    def __init__(self, class_count: int) -> None:
        self._limit = min(_SAMPLE_ROWS, _SAMPLE_VALUES // class_count)
        self._draw = np.random.default_rng(0)
        self._priority = np.zeros(0)
        self._probs = np.zeros((0, class_count), np.float16)
        self._labels = np.zeros(0, np.int64)

    def add(self, probs: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Take rows (n, K) with labels (n,) into account; label -1 is left out."""
        priority = self._draw.random(len(labels))
        worst = np.inf if len(self._priority) < self._limit else self._priority.max()
        rows = np.flatnonzero((labels >= 0) & (priority < worst))
        merged = np.concatenate([self._priority, priority[rows]])
        kept = np.sort(np.argpartition(merged, self._limit - 1)[: self._limit] if len(merged) > self._limit else
                       np.arange(len(merged)))  # fmt: skip
        self._priority = merged[kept]
        new = rows[kept[kept >= len(self._labels)] - len(self._labels)]
        old = kept[kept < len(self._labels)]
        self._probs = np.concatenate([self._probs[old], probs[new].astype(np.float16)])
        self._labels = np.concatenate([self._labels[old], labels[new]])

    def fit(self, *, by_class: bool) -> NoiseModel:
        """Fit an explanation: *transitions* with `by_class`, else *scattered*, as with more than 2,048 classes."""
        by_class = by_class and self._probs.shape[1] <= _MOST_CLASSES
        order = np.argsort(self._labels, kind="stable")  # so that sums by label are sums of neighbours
        return _fit(logarithms(self._probs[order]), torch.from_numpy(self._labels[order]), by_class)


def logarithms(probs: NDArray[np.floating]) -> Tensor:
    """Return log probabilities, float32 (n, K), for which 0 is only very small."""
    return torch.from_numpy(probs.astype(np.float32)).clamp_min(_SMALLEST).log()


def _fit(logs: Tensor, labels: Tensor, by_class: bool) -> NoiseModel:
    classes = logs.shape[1]
    sharpness, bias = 1.0, torch.zeros(classes)
    noise = torch.full((1,), _FIRST_NOISE)
    if by_class:
        noise = torch.full((classes, classes), _FIRST_NOISE / max(1, classes - 1)).fill_diagonal_(1 - _FIRST_NOISE)
    # Of a class that no image is labelled with, labels say nothing: a bias would only learn that it is not among them,
    # and explain away what the images show. So those that are among them have a mean bias of 0.
    present = torch.bincount(labels, minlength=classes) > 0
    last = -torch.inf
    for _ in range(_ITERATIONS if len(labels) else 0):
        true = NoiseModel(sharpness, bias, noise).of_classes(logs)
        own, other = _joint(true, labels, noise)
        told = (own + other).clamp_min(1e-30)
        # What each true class has to do with each row, given its label.
        if by_class:
            share = true * noise.T[labels]
        else:
            share = true * (noise / (classes - 1))
            share[torch.arange(len(labels)), labels] = own
        share /= told[:, None]
        wrong = (other / told).sum()
        noise = _transitions(share, labels) if by_class else ((wrong + _FIRST_NOISE) / (len(labels) + 1)).view(1)
        # One Newton step towards the sharpness and the biases under which the model says the same. Each is pulled to
        # where it started, by the weight of one row, so that a handful of images cannot send them anywhere.
        gap = share - true
        mean = (true * logs).sum(1)
        curvature = (true * logs.square()).sum() - mean.square().sum()
        step = float(((gap * logs).sum() - (sharpness - 1)) / (curvature + 1))
        sharpness = float(np.clip(sharpness + np.clip(step, -_STEP, _STEP), *_SHARPNESS))
        bias = bias + ((gap.sum(0) - bias) / ((true * (1 - true)).sum(0) + 1)).clamp(-1, 1)
        bias = torch.where(present, bias - bias[present].mean(), 0.0)
        likelihood = float(told.log().mean())
        if likelihood - last < _ENOUGH:
            break
        last = likelihood
    return NoiseModel(sharpness, bias, noise)


def _joint(true: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return P(label, it is right) and P(label, it is wrong), each (n,)."""
    right = true.gather(1, labels[:, None]).squeeze(1)
    if noise.ndim == 1:
        return right * (1 - noise), (1 - right).clamp_min(0) * noise / max(1, true.shape[1] - 1)
    own = right * noise.diagonal()[labels]
    return own, ((true * noise.T[labels]).sum(1) - own).clamp_min(0)


def _transitions(share: Tensor, labels: Tensor) -> Tensor:
    """Return T (K, K) from what each class has to do with each row; labels ascend.

    A class that has little to do with any row is taken to be as noisy as all are, by the weight of one row.
    """
    classes = share.shape[1]
    count = torch.bincount(labels, minlength=classes)
    moved = torch.segment_reduce(share, "sum", lengths=count, initial=0.0).T.clone()  # (true class, label)
    total = moved.sum(1)
    moved.fill_diagonal_(0)
    prior = moved.sum() / total.sum()
    noise = (moved + prior / max(1, classes - 1)) / (total + 1)[:, None]
    noise.fill_diagonal_(0)
    return noise + torch.diag(1 - noise.sum(1))
