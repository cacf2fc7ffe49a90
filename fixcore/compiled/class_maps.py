"""Class maps of many images, each of its own class, without copying the features of one."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import on_all, on_threads, reordered


def class_maps(by_place: Tensor, weight: Tensor, image: Tensor) -> Tensor:
    """As `start.class_maps`, for float32 on a CPU."""
    targets, (_, places, features) = len(weight), by_place.shape
    given = (by_place.numpy(), weight.numpy(), image.numpy())
    index = torch.arange(targets * places)
    found = on_threads(_add, _add_on_threads, given, index, len(index) * features, torch.float32)
    return found.view(targets, places)


@reordered
def _add(by_place: Any, weight: Any, image: Any, index: Any, found: Any) -> None:
    places, features = by_place.shape[1:]
    for point in range(index.shape[0]):
        target, place = divmod(index[point], places)
        own, factor = by_place[image[target], place], weight[target]
        total = np.float32(0)
        for feature in range(features):
            total += own[feature] * factor[feature]
        found[point] = total


@on_all
def _add_on_threads(parts: int, by_place: Any, weight: Any, image: Any, index: Any, found: Any) -> None:
    for part in numba.prange(parts):
        own = slice(len(index) * part // parts, len(index) * (part + 1) // parts)
        _add(by_place, weight, image, index[own], found[own])
