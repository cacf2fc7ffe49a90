"""Multinomial logistic regression with an L2 penalty whose strength it chooses by itself.

n images to learn from, D features, K' classes among them.

Fitted by torch's L-BFGS and not by scikit-learn. Both reach the same optimum (a test compares them), but here the steps
are preconditioned by the features' covariance, so that a quarter of the passes over the data is enough; the features
may be a memory map larger than memory, read in chunks; and the same code runs on a GPU.

Features are centred and divided by the square root of their standard deviation, not by the deviation itself (Pareto
scaling, van den Berg et al., BMC Genomics 2006): among the features behind a ReLU are many that fire once in a thousand
images, and at unit variance a single image could then swing a logit by 80.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SWINGS = tuple(10.0 ** (k / 2) for k in range(-4, 7))  # see fit_logistic
_ROUGH, _FINE = 1e-2, 1e-3  # how far the gradient must fall: to compare penalties; for the head that stays
_MAX_ITERATIONS = 200
_CHUNK_ROWS = 8192
_KEEP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """What is known of the features of a training part, without its labels."""

    mean: Tensor  # (D,)
    divisor: Tensor  # (D,); infinite for a constant feature, which so drops out

    @classmethod
    def of(cls, features: npt.NDArray[np.float32], rows: npt.NDArray[np.intp], device: torch.device) -> Scale:
        """Measure `rows`; scaled features have a mean variance of 1."""
        chunks = [rows[start : start + _CHUNK_ROWS] for start in range(0, len(rows), _CHUNK_ROWS)]
        mean = sum(features[chunk].sum(axis=0, dtype=np.float64) for chunk in chunks) / len(rows)
        variance = sum(np.square(features[chunk] - mean).sum(axis=0) for chunk in chunks) / len(rows)
        deviation = np.sqrt(variance)
        deviation[deviation <= 1e-6 * np.abs(mean)] = 0  # constant up to the rounding of float32
        divisor = np.sqrt(deviation * deviation[deviation > 0].mean()) if deviation.any() else deviation
        divisor[divisor == 0] = np.inf
        return cls(*(torch.from_numpy(array.astype(np.float32)).to(device) for array in (mean, divisor)))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Images to learn from: scaled features and classes numbered 0 .. K'-1, in chunks."""

    features: npt.NDArray[np.float32]
    rows: npt.NDArray[np.intp]
    targets: npt.NDArray[np.intp]
    class_count: int
    scale: Scale
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # all chunks, if they fit in memory

    def subset(self, which: npt.NDArray[np.bool_]) -> Part:
        """Return the chosen rows under the same scaling and class numbers."""
        return Part(self.features, self.rows[which], self.targets[which], self.class_count, self.scale)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield scaled features (n, D) and targets (n,)."""
        if self.kept:
            yield from self.kept
            return
        device = self.scale.mean.device
        keep = self.rows.size * self.features.shape[1] * 4 <= _KEEP_BYTES
        fresh = []
        for start in range(0, len(self.rows), _CHUNK_ROWS):
            piece = slice(start, start + _CHUNK_ROWS)
            raw = torch.from_numpy(np.ascontiguousarray(self.features[self.rows[piece]], dtype=np.float32)).to(device)
            chunk = ((raw - self.scale.mean) / self.scale.divisor, torch.from_numpy(self.targets[piece]).to(device))
            if keep:
                fresh.append(chunk)
            yield chunk
        self.kept.extend(fresh)


@dataclass(frozen=True, slots=True, eq=False)
class _Axes:
    """Principal axes of scaled features: along them the log loss curves by about `variance` times a constant."""

    direction: Tensor  # (D, D), axes in columns
    variance: Tensor  # (D,)

    @classmethod
    def of(cls, part: Part) -> _Axes:
        covariance = part.scale.mean.new_zeros(part.scale.mean.numel(), part.scale.mean.numel())
        for features, _ in part.chunks():
            covariance.addmm_(features.T, features)
        variance, direction = torch.linalg.eigh(covariance / len(part))
        return cls(direction, variance.clamp(min=0))


def fit_logistic(part: Part, inner: npt.NDArray[np.bool_]) -> Tensor:
    """Return the head (K', D + 1), bias last, on scaled features.

    The strength is a prior on how far a class's logit swings between images: its variance, whatever D is, so that one
    grid serves all networks. It is walked from rigid to loose, each fit starting at the last, until the held-out log
    loss rises; the rows kept out for that join in the final fit.
    """
    axes = _Axes.of(part)
    learn, judge = part.subset(~inner), part.subset(inner)
    frequency = np.bincount(part.targets, minlength=part.class_count) / len(part)
    head = axes.variance.new_zeros(part.class_count, axes.variance.numel() + 1)
    head[:, -1] = torch.from_numpy(np.log(frequency)).to(head)
    best, best_swing, best_loss = head, _SWINGS[0], math.inf
    if len(learn) and len(judge):
        for swing in _SWINGS:
            head = _fit(learn, head, swing, axes, _ROUGH)
            loss = _log_loss(judge, head)
            if loss >= best_loss:
                break
            best, best_swing, best_loss = head, swing, loss
    return _fit(part, best, best_swing, axes, _FINE)


def _fit(part: Part, start: Tensor, swing: float, axes: _Axes, tolerance: float) -> Tensor:
    """Minimise mean log loss plus penalty from `start`, until the largest slope is `tolerance` times the first.

    The bias is not penalised. The walk runs in coordinates in which the loss curves about equally in all directions.
    """
    penalty = axes.variance.numel() / (swing * len(part))
    curvature = max(_mean_variance(part, start), 1e-6)
    stretch = (curvature * axes.variance + penalty).rsqrt()
    stretch_bias = curvature**-0.5

    def to_head(point: Tensor) -> Tensor:
        return torch.cat([(point[:, :-1] * stretch) @ axes.direction.T, point[:, -1:] * stretch_bias], dim=1)

    def closure() -> Tensor:
        head = to_head(point)
        weight, bias = head[:, :-1], head[:, -1]
        slope = torch.zeros_like(head)
        loss = weight.new_zeros((), dtype=torch.float64)
        for features, target in part.chunks():
            log_p = torch.addmm(bias, features, weight.T).log_softmax(dim=1)
            picked = target[:, None]
            loss -= log_p.gather(1, picked).sum(dtype=torch.float64)
            residual = log_p.exp_().scatter_add_(1, picked, -torch.ones_like(picked, dtype=log_p.dtype))
            slope[:, :-1].addmm_(residual.T, features)
            slope[:, -1] += residual.sum(dim=0)
        slope /= len(part)
        slope[:, :-1] += penalty * weight
        point.grad = torch.cat([slope[:, :-1] @ axes.direction * stretch, slope[:, -1:] * stretch_bias], dim=1)
        return loss / len(part) + 0.5 * penalty * weight.square().sum(dtype=torch.float64)

    point = torch.cat([start[:, :-1] @ axes.direction / stretch, start[:, -1:] / stretch_bias], dim=1)
    closure()
    assert point.grad is not None
    optimiser: Any = torch.optim.LBFGS(  # its step has no types
        [point],
        max_iter=_MAX_ITERATIONS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance * float(point.grad.abs().max()),
        tolerance_change=1e-9,
    )
    optimiser.step(closure)
    return to_head(point)


def _log_loss(part: Part, head: Tensor) -> float:
    """Return the mean log loss."""
    total = 0.0
    for features, target in part.chunks():
        log_p = torch.addmm(head[:, -1], features, head[:, :-1].T).log_softmax(dim=1)
        total -= float(log_p.gather(1, target[:, None]).sum(dtype=torch.float64))
    return total / len(part)


def _mean_variance(part: Part, head: Tensor) -> float:
    """Return the mean of p (1 - p), which is how much the log loss curves in a logit."""
    total = 0.0
    for features, _ in part.chunks():
        p = torch.addmm(head[:, -1], features, head[:, :-1].T).softmax(dim=1)
        total += float((p * (1 - p)).sum(dtype=torch.float64))
    return total / (len(part) * len(head))
