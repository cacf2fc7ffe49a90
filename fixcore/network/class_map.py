"""Class maps: what an average pool over the places of a map hides, the share of each place.

Averaging is linear, so whatever weighs pooled features weighs each place alike: `mean(A) @ w = mean(A @ w)`, and
`A @ w` is the class map (Zhou et al., CAM). N images, T targets, D features, L places.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, fx

from fixcore.compiled import class_maps as compiled
from fixcore.compiled.threads import is_compiled_for
from fixcore.points import Points
from fixcore.rules.winner import winning_inputs
from fixcore.structure import arguments_by_name
from fixcore.window import Window

aten = torch.ops.aten


def averaged_places(node: fx.Node) -> tuple[int, ...]:
    """Return the dimensions over which a node averages everything; empty if it does not.

    The first dimension holds the images, or several views of each: these are no places.
    """
    if node.op != "call_function":
        return ()
    if node.target is aten.adaptive_avg_pool2d.default and node.meta["seen"].shape[2:] == (1, 1):
        return (2, 3)
    if node.target is aten.avg_pool2d.default and node.meta["seen"].shape[2:] == (1, 1):
        named = arguments_by_name(node)
        whole = tuple(named["kernel_size"]) == node.all_input_nodes[0].meta["seen"].shape[2:]
        is_sum = named["divisor_override"] is not None
        return (2, 3) if whole and not any(named["padding"]) and not is_sum else ()
    if node.target is aten.mean.dim:
        named = arguments_by_name(node)
        dims = len(node.all_input_nodes[0].meta["seen"].shape)
        places = tuple(sorted(d % dims for d in named["dim"])) if named["dim"] else ()
        return places if 0 not in places else ()
    return ()


def by_place(value: Tensor, places: tuple[int, ...], features: int) -> Tensor:
    """Return a map whose dimensions `places` were averaged as (N, L, D)."""
    kept = [d for d in range(value.dim()) if d not in places]
    moved = value.permute(kept[0], *places, *kept[1:])
    return moved.reshape(value.shape[0], -1, features)


@lru_cache(maxsize=16)
def positions(shape: torch.Size, device: torch.device, places: tuple[int, ...], features: int) -> Tensor:
    """Return where, row-major, `by_place` finds every element of one image's map of this shape: int64 (L, D)."""
    index = torch.arange(shape.numel(), device=device).view(1, *shape)
    return by_place(index, places, features)[0]


def class_map_points(value: Tensor, places: tuple[int, ...], image: Tensor, weight: Tensor, trace: Tensor) -> Points:
    """Begin on a map at the places whose class-map value lies above its mean, at one channel each.

    `value` is the map, `weight` (T, D) weighs its features for the T targets `trace` of the images `image`, both int64
    (T,). The mass of a place is its excess over the mean, of all 1; its channel the one with the largest product (ties:
    the lowest). With one place only, or one value everywhere, nothing lies above the mean: then all count the same.
    """
    features = weight.shape[1]
    row, place, channel, share = places_above_mean(by_place(value, places, features), weight, image)
    position = positions(value.shape[1:], value.device, places, features)
    return Points(image[row] * value[0].numel() + position[place, channel], trace[row], share)


def places_above_mean(by_place: Tensor, weight: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where the class maps lie above their mean, target by target, and what is strongest there.

    `by_place` is (N, L, D), `weight` (T, D), `image` int64 (T,). Of P such places: the target, int64 (P,), the place,
    the channel with the largest product (ties: the lowest), and the place's share of its map's excess, float32. A map
    that is nowhere above its mean has all of its places, in equal parts.
    """
    if is_compiled_for(by_place, weight):
        return compiled.places_above_mean(by_place, weight, image)
    return _places_above_mean(by_place, weight, image)


def _places_above_mean(by_place: Tensor, weight: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # twice as fast as with weight on the right
    share = above_mean(torch.bmm(weight[:, None], by_place.index_select(0, image).transpose(1, 2))[:, 0].float())
    row, place = (share > 0).nonzero(as_tuple=True)
    return row, place, _strongest_channel(by_place, weight, image[row], row, place), share[row, place]


def above_mean(class_map: Tensor) -> Tensor:
    """Return each place's share of what lies above the mean of its class map, float32 (T, L), of equal maps 1 / L."""
    excess = class_map - class_map.mean(1, keepdim=True)
    least = class_map.abs().mean(1, keepdim=True) * compiled.ROUNDING
    excess = torch.where(excess > least, excess, 0.0)
    total = excess.sum(1, keepdim=True)
    return torch.where(total > 0, excess / total, 1.0 / excess.shape[1])


def _strongest_channel(by_place: Tensor, weight: Tensor, image: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """Return int64 (P,): of `by_place[image, place] * weight[row]`, (P, D), the largest; ties to the lowest.

    As a convolution with a kernel per target would, so that nothing is copied.
    """
    places, features = by_place.shape[1:]
    line = (int(places), 1)
    window = Window(extent=line, out=line, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    at = (image * len(weight) + row) * places + place
    found = winning_inputs(by_place[:, :, None], weight[:, None, None], at, window, 1, at_centre=True)
    return torch.div(found, places, rounding_mode="floor") % features
