"""Halves: what a judge says of either side of an image alone, and how far the odds swing between the two.

n images of S x S network pixels, parted in two by where the evidence of two classes lies.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.judge import Judge


def swing(judge: Judge, images: Tensor, folds: NDArray[np.int16], first_half: Tensor, classes: Tensor) -> Tensor:
    """Return how much more likely each of two classes is in its own half than in the other's, float32 (n,), in nats.

    For uint8 images (n, 3, S, S), the halves of the first class as bool (n, S, S) (`fixcore.evidence_halves`) and the
    two classes (n, 2): the log-odds of either class where only its own half is shown, less those where only the other
    half is shown, summed over both. Far above 0 where each half shows one of two objects; of one object, either half
    says the same or nothing. Two classes alone, K = 2, count twice: what one gains the other loses.
    """
    own, other = (judge.log_odds(only(images, half), folds, classes) for half in (first_half, ~first_half))
    return own[:, 0] - other[:, 0] + other[:, 1] - own[:, 1]


def only(images: Tensor, shown: Tensor) -> Tensor:
    """Return uint8 images (n, 3, S, S) of which only the pixels `shown`, bool (n, S, S), are kept.

    The others take the median of the whole image in each channel, which on most pictures is a colour of the background:
    a colour that the picture does not have, such as the mean of black and white, would be an object of its own.
    """
    background = images.flatten(2).median(2).values[:, :, None, None]
    return torch.where(shown[:, None], images, background)
