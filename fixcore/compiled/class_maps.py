"""Where the class maps of many images lie above their mean, each of its own class, in one pass over the features."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fixcore.compiled.threads import on_all, on_threads, reordered
from fixcore.compiled.windows import first_largest

ROUNDING = 1e-6
"""Of a class map's mean size: what lies no further above the mean is there by rounding alone."""


def places_above_mean(by_place: Tensor, weight: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `class_map.places_above_mean`, for float32 on a CPU."""
    targets, (_, places, features) = len(weight), by_place.shape
    channel = torch.full((targets, places), -1)
    share = torch.empty(targets, places)
    given = (by_place.numpy(), weight.numpy(), image.numpy(), channel.numpy(), share.numpy())
    on_threads(_find, _find_on_threads, given, targets, targets * places * features)
    row, place = (channel >= 0).nonzero(as_tuple=True)
    return row, place, channel[row, place], share[row, place]


@reordered
def _find(by_place: Any, weight: Any, image: Any, channel: Any, share: Any, begin: int, end: int) -> None:
    """Write the channel and share of each target's places above the mean."""
    places, features = by_place.shape[1:]
    product = np.empty(features, dtype=np.float32)
    for target in range(begin, end):
        own, factor, class_map = by_place[image[target]], weight[target], share[target]
        added, size = np.float64(0), np.float64(0)
        for place in range(places):
            value = np.float32(0)
            for feature in range(features):
                value += own[place, feature] * factor[feature]
            class_map[place] = value
            added += value
            size += abs(value)
        mean = np.float32(added / places)
        least, total = np.float32(size / places * ROUNDING), np.float32(0)
        for place in range(places):
            excess = class_map[place] - mean
            class_map[place] = excess if excess > least else np.float32(0)
            total += class_map[place]
        for place in range(places):
            class_map[place] = class_map[place] / total if total > 0 else np.float32(1 / places)
            if class_map[place] > 0:
                for feature in range(features):
                    product[feature] = 0 + own[place, feature] * factor[feature]  # -0 is no less than 0
                channel[target, place] = first_largest(product)


@on_all
def _find_on_threads(parts: int, by_place: Any, weight: Any, image: Any, channel: Any, share: Any, count: int) -> None:
    for part in numba.prange(parts):
        _find(by_place, weight, image, channel, share, count * part // parts, count * (part + 1) // parts)
