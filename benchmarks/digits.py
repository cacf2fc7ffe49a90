"""scikit-learn's handwritten digits on larger pictures, and small networks that learn from them in a minute or two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SIDE = 40
"""Pixels of a picture's side."""
DIGIT = 16
"""Pixels of a digit's side."""
_TEST = 397
"""Scans, of 1,797, that no network learns."""


def scans() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return digits (n, DIGIT, DIGIT) in [0, 1] and their labels: those to learn, and those held out."""
    data = load_digits()
    digits = torch.from_numpy(data.images).float().div(16).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    seen, held_out = order[_TEST:], order[:_TEST]
    return digits[seen], labels[seen], digits[held_out], labels[held_out]


def put(digits: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return pictures (n, 1, SIDE, SIDE) of digits at these upper left corners."""
    count, inside = len(digits), torch.arange(DIGIT)
    pictures = torch.zeros(count, 1, SIDE, SIDE)
    row, col = rows[:, None, None] + inside[:, None], cols[:, None, None] + inside
    pictures[torch.arange(count)[:, None, None], 0, row, col] = digits
    return pictures


def put_pair(digits: Tensor, corners: Tensor) -> Tensor:
    """Return pictures of two digits (n, 2, DIGIT, DIGIT) that do not touch, at `corners` (see `corners_apart`)."""
    first, second = (put(digits[:, side], corners[:, side, 0], corners[:, side, 1]) for side in (0, 1))
    return first + second


def corners_apart(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return whether the first digit lies above the second, else left of it, bool (n,), and their corners.

    `corners` is int64 (n, 2, 2): row and column of each digit's upper left corner.
    """

    def below(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator)

    half = SIDE // 2
    is_above, along = below(2).bool(), torch.stack([below(half - DIGIT + 1), half + below(half - DIGIT + 1)], 1)
    across = torch.stack([below(SIDE - DIGIT + 1), below(SIDE - DIGIT + 1)], 1)
    rows, cols = torch.where(is_above[:, None], along, across), torch.where(is_above[:, None], across, along)
    return is_above, torch.stack([rows, cols], 2)


def fit_single(
    classifier: nn.Module, digits: Tensor, labels: Tensor, seconds: float = math.inf, steps: float = math.inf
) -> None:
    """Let a classifier learn single digits at random places, for so many seconds or steps of 128."""
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        chosen, rows, cols = (
            torch.randint(limit, (128,), generator=generator) for limit in (len(digits), *[SIDE - DIGIT + 1] * 2)
        )
        return functional.cross_entropy(classifier(put(digits[chosen], rows, cols)), labels[chosen])

    fit(classifier, loss, seconds, steps)


def on_digit(maps: Tensor, corners: Tensor) -> Tensor:
    """Return whether the peak of each map (n, SIDE, SIDE) lies on the digit at `corners` (n, 2), bool (n,)."""
    peak = maps.flatten(1).argmax(1)
    beyond = torch.stack([torch.div(peak, SIDE, rounding_mode="floor"), peak % SIDE], 1) - corners
    return ((beyond >= 0) & (beyond < DIGIT)).all(1)


def fit(network: nn.Module, loss: Callable[[], Tensor], seconds: float = math.inf, steps: float = math.inf) -> None:
    """Train for about so many seconds, or steps, with a learning rate that falls to zero; `loss` draws a batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    began, step = time.perf_counter(), 0
    while (passed := max((time.perf_counter() - began) / seconds, step / steps)) < 1:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - passed)
        wrong = loss()
        optimizer.zero_grad()
        wrong.backward()
        optimizer.step()
    network.eval()
