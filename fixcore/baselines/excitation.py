"""Excitation backpropagation: every neuron shares what it received among the inputs that excited it, all of them.

N images, C channels, h x w places, H x W pixels. It is the dense relative of the fixations: probabilities instead of
winners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.baselines.class_maps import enlarged, features_first, map_places
from fixcore.baselines.replay import gradients_allowed, replay
from fixcore.errors import CaptureError, MissingRule
from fixcore.network.graph import Graph
from fixcore.network.products import PRODUCTS
from fixcore.rules import LAYOUT
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.rules.elementwise import PASSES, SCALES
from fixcore.start import class_of_each

aten = torch.ops.aten

_WEIGHTED = (aten.linear.default, *CONVOLUTIONS)
_PRODUCTS = {one: PRODUCTS[one] for one in (aten.matmul.default, aten.bmm.default, aten.mm.default)}
"""Products of matrices, and their operands' names: with a constant they are layers with weights, too."""
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_MEANS = (
    aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.sum.dim_IntList, *_SUMS,
)  # fmt: skip
_MAXIMA = (aten.max_pool2d.default, aten.amax.default, aten.amin.default, aten.logsumexp.default)
_READ = (aten.gather.default, aten.grid_sampler_2d.default)
"""Operations that read their first argument at places that the others name."""
_SELECTS = LAYOUT.union(_MAXIMA)
_NORMALISES = (aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default, *PASSES, *SCALES)

Passed = list[tuple[fx.Node, Tensor]]


def excitation_backprop(graph: Graph, images: Tensor, target: Tensor, *, layer: str | None = None) -> Tensor:
    """Return the marginal winning probability of each pixel, float32 (N, H, W), summed over channels.

    A neuron j passes on its probability to its inputs i in proportion to the products a_i w_ji that are positive; the
    bias gets nothing, and what nothing excited ends there. Where inputs are never negative, as behind a ReLU, these are
    the published a_i w+_ji. Pools by average and sums share among what is positive; a maximum goes to its winner;
    a product with a gate goes past the gate.

    `layer` (see `Graph.layer`, or the name of `graph.images`) reads the probabilities there, enlarged to the image; by
    default at the last map that is at least a quarter of the image's size. (Its authors read an inner layer too, which
    depends on the network.) Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, 3.2. Raises
    MissingRule for an operation without one.
    """
    return _read(graph, images, target, layer, contrastive=False)


def contrastive_excitation_backprop(
    graph: Graph, images: Tensor, target: Tensor, *, layer: str | None = None
) -> Tensor:
    """Return the contrastive marginal winning probability (c-MWP) of each pixel, float32 (N, H, W), where positive.

    Below the first layer with weights, what the class excited less what a class of opposite weights excited, each
    scaled to sum to what arrived there, all of 1. Where several layers are the first on their ways (heads that are
    averaged), each of them is contrasted. Source: Zhang et al., 3.3. Otherwise as `excitation_backprop`.
    """
    return _read(graph, images, target, layer, contrastive=True)


def _read(graph: Graph, images: Tensor, target: Tensor, layer: str | None, *, contrastive: bool) -> Tensor:
    places = {graph.images: (2, 3), **map_places(graph)}
    end = _fine_map(graph, places) if layer is None else graph.images
    if layer is not None and layer != graph.images.name:
        end = graph.layer(layer)
    if end not in places:
        raise CaptureError(f"{end.name!r} is not known to give a map (N, D, h, w), which has places to show")
    with gradients_allowed():
        with torch.no_grad():
            values = replay(graph, images)
        target = class_of_each(values[graph.logits], target)
        asked = torch.zeros_like(values[graph.logits]).scatter_(1, target[:, None], 1.0)
        waiting: dict[fx.Node, Tensor] = {graph.logits: asked}
        below: set[fx.Node] = set()  # a layer that was contrasted
        for node in reversed(graph.nodes):
            if node is end:
                break
            arrived = waiting.pop(node, None)
            if arrived is None or node.meta["is_constant"]:
                continue
            passed = _passed(graph, node, values, arrived)
            if node in below:
                below.update(source for source, _ in passed)
            elif contrastive and _weighs(node, graph.arguments[node]) is not None:
                ((source, own),), ((_, other),) = passed, _passed(graph, node, values, arrived, -1.0)
                whole = _sums(node, arrived)
                passed = [(source, _scaled(source, own, whole) - _scaled(source, other, whole))]
                below.add(source)
            for source, share in passed:
                waiting[source] = waiting[source] + share if source in waiting else share
    found = waiting.get(end)
    if found is None:
        raise CaptureError(f"nothing goes back from the logits to {end.name!r}")
    return enlarged(features_first(found, places[end]).sum(1).clamp(min=0), images)


def _fine_map(graph: Graph, places: Mapping[fx.Node, tuple[int, int]]) -> fx.Node:
    """The last map of at least a quarter of the image's size; the image itself if there is none."""
    _, height, width = graph.input_shape
    for node in reversed(graph.nodes):
        rows, cols = (node.meta["seen"].shape[dim] for dim in places[node]) if node in places else (0, 0)
        if rows and cols and round(height / rows) <= 4 and round(width / cols) <= 4:  # unpadded stems lose a little
            return node
    return graph.images


def _passed(graph: Graph, node: fx.Node, values: Mapping[fx.Node, Any], arrived: Tensor, sign: float = 1.0) -> Passed:
    """Say what each input of a node receives of what arrived at its output."""
    operation, named = node.target, graph.arguments[node]
    weighs = _weighs(node, named)
    if weighs is not None:
        source, weight = (named[name] for name in weighs)
        layer = _bound(node, named, values, *weighs, bias=None)
        return [(source, _by_weight(layer, values[source], values[weight] * sign, arrived))]
    if operation in _MEANS:
        sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
        if operation in _SUMS and len(sources) == 1:  # and a bias, which gets nothing
            return [(sources[0], arrived.sum_to_size(values[sources[0]].shape))]
        parts = [values[source].clamp(min=0) for source in sources]
        return list(zip(sources, _by_share(_of_sources(node, values, sources), parts, arrived), strict=True))
    if operation in _READ:
        first, *_ = named
        source = named[first]
        return [(source, *_vjp(_bound(node, named, values, first), [values[source]], arrived))]
    if operation in _SELECTS:
        sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
        parts = [values[source] for source in sources]
        return list(zip(sources, _vjp(_of_sources(node, values, sources), parts, arrived), strict=True))
    if operation in _NORMALISES:
        return [(named["self"] if "self" in named else named["input"], arrived)]
    if operation is aten.mul.Tensor or operation is aten.div.Tensor:
        return _past_gate(named, values, arrived)
    if operation in _PRODUCTS or operation is aten.scaled_dot_product_attention.default:
        name = _PRODUCTS[operation][1] if operation in _PRODUCTS else "value"  # what was looked at, not how much
        looked = _bound(node, named, values, name)
        return [(named[name], _by_share(looked, [values[named[name]].clamp(min=0)], arrived)[0])]
    raise MissingRule(f"excitation backprop has no rule for {operation} at node '{node.name}'")


def _weighs(node: fx.Node, named: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name what a layer with weights reads, and its weights; None for any other operation."""
    if node.target in _WEIGHTED:
        return "input", "weight"
    if node.target not in _PRODUCTS:
        return None
    first, second = _PRODUCTS[node.target]
    if named[second].meta["is_constant"]:
        return first, second
    return (second, first) if named[first].meta["is_constant"] else None


def _by_weight(layer: Callable[[Tensor, Tensor], Tensor], value: Tensor, weight: Tensor, arrived: Tensor) -> Tensor:
    """Share in proportion to the positive products: of what is positive with w+, of what is negative with w-."""
    sides = [(value.clamp(min=0), weight.clamp(min=0)), (value.clamp(max=0), weight.clamp(max=0))]
    if not bool((value < 0).any()):
        sides = sides[:1]
    inputs = [side.requires_grad_() for side, _ in sides]
    with torch.enable_grad():
        driven = torch.stack([layer(side, own) for side, (_, own) in zip(inputs, sides, strict=True)]).sum(0)
        slopes = torch.autograd.grad(driven, inputs, _ratio(arrived, driven.detach()))
    return torch.stack([side.detach() * slope for side, slope in zip(inputs, slopes, strict=True)]).sum(0)


def _by_share(operation: Callable[..., Tensor], parts: list[Tensor], arrived: Tensor) -> list[Tensor]:
    """Share what a sum or a mean received in proportion to its terms, none of which is negative."""
    with torch.no_grad():
        ratio = _ratio(arrived, operation(*parts))
    return [part * slope for part, slope in zip(parts, _vjp(operation, parts, ratio), strict=True)]


def _past_gate(named: Mapping[str, Any], values: Mapping[fx.Node, Any], arrived: Tensor) -> Passed:
    """Follow the factor that was not broadcast; two of one size take a half each."""
    factors = [named[name] for name in ("self", "other")]
    factors = [one for one in factors if isinstance(one, fx.Node) and not one.meta["is_constant"]]
    largest = max(values[one].numel() for one in factors)
    factors = [one for one in factors if values[one].numel() == largest]
    return [(one, arrived.sum_to_size(values[one].shape) / len(factors)) for one in factors]


def _vjp(operation: Callable[..., Tensor], parts: list[Tensor], above: Tensor) -> tuple[Tensor, ...]:
    inputs = [part.detach().clone().requires_grad_() for part in parts]
    with torch.enable_grad():
        return torch.autograd.grad(operation(*inputs), inputs, above)


def _of_sources(node: fx.Node, values: Mapping[fx.Node, Any], sources: list[fx.Node]) -> Callable[..., Tensor]:
    """The node's operation as a function of some of its inputs."""

    def operation(*parts: Tensor) -> Tensor:
        given = dict(zip(sources, parts, strict=True))

        def fetch(one: fx.Node) -> Any:
            return given[one] if one in given else values[one]

        assert callable(node.target)
        result = node.target(*fx.node.map_arg(node.args, fetch), **fx.node.map_arg(node.kwargs, fetch))
        assert isinstance(result, Tensor)
        return result

    return operation


def _bound(
    node: fx.Node, named: Mapping[str, Any], values: Mapping[fx.Node, Any], *free: str, **fixed: Any
) -> Callable[..., Tensor]:
    """The node's operation as a function of the arguments `free`; `fixed` are given other values."""
    rest = {
        name: fixed.get(name) if name in fixed else fx.node.map_arg(value, values.__getitem__)
        for name, value in named.items()
        if name not in free
    }

    def operation(*parts: Tensor) -> Tensor:
        assert callable(node.target)
        result = node.target(**dict(zip(free, parts, strict=True)), **rest)
        assert isinstance(result, Tensor)
        return result

    return operation


def _ratio(arrived: Tensor, driven: Tensor) -> Tensor:
    return torch.where(driven > 0, arrived / driven, 0.0)


def _scaled(node: fx.Node, share: Tensor, whole: Tensor) -> Tensor:
    """Scale each image's share to sum to its whole."""
    total = _sums(node, share)
    wanted = [extent if seen is None else 1 for extent, seen in zip(share.shape, node.meta["seen"].shape, strict=True)]
    return share * torch.where(total > 0, whole / total, 0.0).view(wanted)


def _sums(node: fx.Node, share: Tensor) -> Tensor:
    """Sum over all but the images, which a transposed layer does not have first: float (N,)."""
    others = [dim for dim, extent in enumerate(node.meta["seen"].shape) if extent is not None]
    return share.sum(others) if others else share
