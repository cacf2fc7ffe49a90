"""Halves: what is said of either side of an image alone, and how far the odds swing between the two.

n images of S x S network pixels, parted in two by where the evidence of two classes lies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def swing(ask: Callable[[Tensor], Tensor], images: Tensor, first_half: Tensor) -> Tensor:
    """Return how much more likely each of two classes is in its own half than in the other's, float (n,), in nats.

    `first_half`, bool (n, S, S), is where the first class's evidence lies in images (n, 3, S, S)
    (`fixcore.evidence_halves`). `ask` is asked once, for the first halves and then the second ones, (2n, 3, S, S), and
    returns the log-odds of each image's two classes in them, (2n, 2). Returned are the log-odds of either class where
    only its own half is shown, less those where only the other half is shown, summed over both. Far above 0 where each
    half shows one of two objects; of one object, either half says the same or nothing.
    """
    first, second = ask(halved(images, first_half)).chunk(2)
    return first[:, 0] - second[:, 0] + second[:, 1] - first[:, 1]


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Return by how much each of some classes (n, C) is more likely than not, in nats, (n, C), for logits (n, K).

    The log-odds ln(p / (1 - p)) of softmax, exact also where a probability rounds to 1.
    """
    others = logits[:, None, :].repeat(1, classes.shape[1], 1).scatter_(2, classes[:, :, None], -torch.inf)
    return logits.gather(1, classes) - others.logsumexp(2)


def halved(images: Tensor, first_half: Tensor) -> Tensor:
    """Return images (n, 3, S, S) of which only the first half is shown, then the same with only the second, (2n, ...).

    What is hidden takes the median of the whole image in each channel, which on most pictures is a colour of the
    background: a colour that the picture does not have, such as the mean of black and white, would be an object of its
    own.
    """
    background = images.flatten(2).median(2).values[:, :, None, None]
    is_first = first_half[:, None]
    return torch.cat([torch.where(is_first, images, background), torch.where(is_first, background, images)])
