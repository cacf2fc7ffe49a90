"""The last linear layer of a classifier, and the map of features it reads.

N images, D features, K classes, L places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, fx

from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.structure import arguments_by_name

aten = torch.ops.aten

_SAME_ELEMENTS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.dropout.default,
    aten.clone.default,
    aten.alias.default,
)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits as a linear function of features: ``logits = mean over places of map @ weight.T (+ bias)``.

    Because averaging is linear, `Linear(mean(A)) = mean(Linear(A))`: each place has its own logits, the class map
    (Zhou et al., CAM). For a network without average pooling there is one place.
    """

    map: fx.Node
    """(N, D, ...): the features before they are averaged."""
    places: tuple[int, ...]
    """Dimensions of `map` that are averaged; empty if there is one place."""
    weight: Tensor
    """(K, D)."""

    def by_place(self, value: Tensor) -> Tensor:
        """Return the map as (N, L, D): features of each place."""
        return _by_place(value, self.places, self.weight.shape[1])

    def position(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return where, row-major, `by_place` finds every element in the map of one image: int64 (L, D)."""
        return _positions(shape, device, self.places, self.weight.shape[1])

    def pooled(self, value: Tensor) -> Tensor:
        """Return the features (N, D)."""
        return self.by_place(value).mean(1)


def _by_place(value: Tensor, places: tuple[int, ...], features: int) -> Tensor:
    kept = [d for d in range(value.dim()) if d not in places]
    moved = value.permute(kept[0], *places, *kept[1:])
    return moved.reshape(value.shape[0], -1, features)


@lru_cache(maxsize=16)
def _positions(shape: torch.Size, device: torch.device, places: tuple[int, ...], features: int) -> Tensor:
    index = torch.arange(shape.numel(), device=device).view(1, *shape)
    return _by_place(index, places, features)[0]


def find_head(logits: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Head | None:
    """Return the head of a network whose logits are a linear function of a map or vector; None for any other.

    Found by operation: a linear layer (or a convolution on one place) behind a global average pool or a vector, or a
    1x1 convolution, with or without ReLU, before a global average pool (SqueezeNet).
    """
    last = _skip(logits)
    weight = _weight(last, constants)
    if weight is not None:
        source = _skip(arguments_by_name(last)["input"])
        places = _averaged_places(source)
        if places:
            return _fitting(source.all_input_nodes[0], places, weight)
        return _fitting(source, (), weight)
    places = _averaged_places(last)
    if places == (2, 3):
        source = last.all_input_nodes[0]
        if source.target in (aten.relu.default, aten.relu_.default):
            source = source.all_input_nodes[0]
        weight = _weight(source, constants)
        if weight is not None and source.target in CONVOLUTIONS and _is_pointwise(source):
            return _fitting(arguments_by_name(source)["input"], places, weight)
    return None


def _fitting(source: fx.Node, places: tuple[int, ...], weight: Tensor) -> Head | None:
    shape = source.meta["seen"].shape
    if None in shape[1:]:  # images do not follow each other, one by one
        return None
    features = math.prod(shape[d] for d in range(1, len(shape)) if d not in places)
    return Head(source, places, weight) if features == weight.shape[1] else None


def _skip(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and node.target in _SAME_ELEMENTS:
        node = node.all_input_nodes[0]
    return node


def _weight(node: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """The (K, D) weight of a linear layer, or of a convolution with a 1x1 kernel; None for anything else."""
    if node.target is not aten.linear.default and node.target not in CONVOLUTIONS:
        return None
    weight = constants.get(arguments_by_name(node)["weight"])
    if weight is None or weight.dim() == 2:
        return weight
    return weight[:, :, 0, 0] if weight.shape[2:] == (1, 1) and arguments_by_name(node)["groups"] == 1 else None


def _is_pointwise(node: fx.Node) -> bool:
    named = arguments_by_name(node)
    return all(step == 1 for step in named["stride"]) and all(amount == 0 for amount in named["padding"])


def _averaged_places(node: fx.Node) -> tuple[int, ...]:
    """Dimensions over which a node averages everything; empty if it does not."""
    if node.op != "call_function":
        return ()
    if node.target is aten.adaptive_avg_pool2d.default and node.meta["seen"].shape[2:] == (1, 1):
        return (2, 3)
    if node.target is aten.avg_pool2d.default and node.meta["seen"].shape[2:] == (1, 1):
        named = arguments_by_name(node)
        whole = tuple(named["kernel_size"]) == node.all_input_nodes[0].meta["seen"].shape[2:]
        return (2, 3) if whole and not any(named["padding"]) else ()
    if node.target is aten.mean.dim:
        named = arguments_by_name(node)
        dims = len(node.all_input_nodes[0].meta["seen"].shape)
        return tuple(sorted(d % dims for d in named["dim"])) if named["dim"] else ()
    return ()
