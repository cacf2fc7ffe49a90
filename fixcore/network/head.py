"""The last linear layer of a classifier, and the map of features it reads.

N images, D features, K classes, L places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional

from fixcore.network.class_map import averaged_places, by_place, positions
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
class Norm:
    """A layer norm between the pooled features and the last linear layer."""

    weight: Tensor | None
    """(D,), as `bias`; None: nothing is learned."""
    bias: Tensor | None
    eps: float

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return the features (N, D) normalised."""
        return functional.layer_norm(pooled, pooled.shape[1:], self.weight, self.bias, self.eps)

    def before(self, weight: Tensor) -> Tensor:
        """Return weights (T, D) of what it gives as weights of what it reads, but for each image's own factor."""
        if self.weight is not None:
            weight = weight * self.weight.to(weight.dtype)
        return weight - weight.mean(1, keepdim=True)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Logits as a linear function of features: ``logits = norm(mean over places of map) @ weight.T (+ bias)``.

    Because averaging is linear, `Linear(mean(A)) = mean(Linear(A))`: each place has its own logits, the class map
    (Zhou et al., CAM). For a network without average pooling there is one place, for most there is no norm.
    """

    map: fx.Node
    """(N, D, ...): the features before they are averaged."""
    places: tuple[int, ...]
    """Dimensions of `map` that are averaged; empty if there is one place."""
    weight: Tensor
    """(K, D)."""
    norm: Norm | None = None

    def by_place(self, value: Tensor) -> Tensor:
        """Return the map as (N, L, D): features of each place."""
        return by_place(value, self.places, self.weight.shape[1])

    def position(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return where, row-major, `by_place` finds every element in the map of one image: int64 (L, D)."""
        return positions(shape, device, self.places, self.weight.shape[1])

    def features(self, value: Tensor) -> Tensor:
        """Return what the linear layer reads, (N, D): the map's mean over its places, normalised where it is."""
        pooled = self.by_place(value).mean(1)
        return pooled if self.norm is None else self.norm(pooled)

    def on_map(self, weight: Tensor) -> Tensor:
        """Return weights of the features, (T, D), as weights of the map at each place, (T, D).

        The mean over places of `map @ on_map(w)` is `features @ w` but for a shift, and for the factor above 0 by which
        a layer norm scales an image: neither moves a class map's peaks, nor what lies above its mean.
        """
        return weight if self.norm is None else self.norm.before(weight)


def find_head(logits: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Head | None:
    """Return the head of a network whose logits are a linear function of a map or vector; None for any other.

    Found by operation: a linear layer (or a convolution on one place) behind a global average pool, with or without a
    layer norm between (ConvNeXt), or behind a vector; or a 1x1 convolution, with or without ReLU, before
    a global average pool (SqueezeNet). There is none where parts of an image go through the network as images of their
    own, and their logits stand side by side.
    """
    head = _linear_head(_skip(logits), constants)
    each = logits.meta["seen"].shape[1:]
    return head if head is not None and None not in each and math.prod(each) == len(head.weight) else None


def _linear_head(last: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Head | None:
    weight = _weight(last, constants)
    if weight is not None:
        source = _skip(arguments_by_name(last)["input"])
        places = averaged_places(source)
        norm = None if places else _norm(source, weight.shape[1], constants)
        if norm is not None:
            places = averaged_places(pooled := _skip(arguments_by_name(source)["input"]))
            source = pooled if places else source
        if places:
            return _fitting(source.all_input_nodes[0], places, weight, norm)
        return _fitting(source, (), weight)
    places = averaged_places(last)
    if places == (2, 3):
        source = last.all_input_nodes[0]
        if source.target in (aten.relu.default, aten.relu_.default):
            source = source.all_input_nodes[0]
        weight = _weight(source, constants)
        if weight is not None and source.target in CONVOLUTIONS and _is_pointwise(source):
            return _fitting(arguments_by_name(source)["input"], places, weight)
    return None


def _fitting(source: fx.Node, places: tuple[int, ...], weight: Tensor, norm: Norm | None = None) -> Head | None:
    shape = source.meta["seen"].shape
    if None in shape[1:]:  # images do not follow each other, one by one
        return None
    features = math.prod(shape[d] for d in range(1, len(shape)) if d not in places)
    return Head(source, places, weight, norm) if features == weight.shape[1] else None


def _skip(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and (node.target in _SAME_ELEMENTS or _turns_vector(node)):
        node = node.all_input_nodes[0]
    return node


def _turns_vector(node: fx.Node) -> bool:
    """Whether a node only says of vectors, one per image, along which of several dimensions they lie."""
    if node.target not in (aten.permute.default, aten.transpose.int):
        return False
    before, after = node.all_input_nodes[0].meta["seen"].shape, node.meta["seen"].shape
    return before[0] is None and after[0] is None and sum(extent != 1 for extent in after[1:]) <= 1


def _norm(node: fx.Node, features: int, constants: Mapping[fx.Node, Tensor]) -> Norm | None:
    """The layer norm of vectors of so many features that a node is; None for anything else."""
    if node.target is not aten.layer_norm.default:
        return None
    named = arguments_by_name(node)
    learned = {name: named[name] for name in ("weight", "bias") if named[name] is not None}
    if tuple(named["normalized_shape"]) != (features,) or not all(value in constants for value in learned.values()):
        return None
    weight, bias = (constants[learned[name]] if name in learned else None for name in ("weight", "bias"))
    return Norm(weight, bias, named["eps"])


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
