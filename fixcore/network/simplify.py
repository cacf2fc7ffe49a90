"""Rewrites of a captured graph that leave its results alone: fewer nodes, one output each, batch norm folded in."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.errors import CaptureError
from fixcore.network.products import spell_linear
from fixcore.network.rectifiers import spell_rectifiers
from fixcore.network.spelling import spell_alike
from fixcore.points import is_vector
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.structure import Constants, Seen, arguments_by_name, described

aten = torch.ops.aten

IN_PLACE: dict[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.hardswish.default: aten.hardswish_.default,
    aten.silu.default: aten.silu_.default,
}
_FRESH = (*CONVOLUTIONS, aten.batch_norm.default, aten.add.Tensor, aten.linear.default)
"""Operations whose output shares memory with nothing else."""


FILLED = (
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
)
"""Operations that take nothing from their first argument but its type, or shape."""
_FILLED_ANEW = FILLED[:3]


def simplify(graph: fx.Graph, constants: Constants) -> None:
    """Rewrite `graph` in place; `constants` gains the folded weights and loses what nothing reads any more.

    Raises CaptureError for activations that are read by how they lie in memory.
    """
    spell_alike(graph)
    _fold_constants(graph, constants)
    _refuse_views_of_memory(graph)
    spell_linear(graph, constants)
    spell_rectifiers(graph, constants)
    graph.eliminate_dead_code()  # what was replaced would still count as a reader
    _fold_batch_norm(graph, constants)
    _skip_idle(graph)
    _read_as_it_lies(graph)
    _view_any_layout(graph)
    graph.eliminate_dead_code()
    for node in [node for node in constants if not node.users]:
        del constants[node]
        graph.erase_node(node)


def _fold_constants(graph: fx.Graph, constants: Constants) -> None:
    """Compute once what depends on neither the images nor their number: masks, positions, standardised weights."""
    for node in list(graph.nodes):
        operation, *number = node.args if node.target is operator.getitem else (node,)
        arguments = arguments_by_name(operation)
        if not arguments or not isinstance(node.meta["seen"], Seen):
            continue
        if node.target in _FILLED_ANEW:  # reads the type of its input, not its values
            arguments["self"] = torch.empty(0, dtype=node.meta["seen"].dtype, device=node.meta["seen"].device)
        sources: list[fx.Node] = []
        fx.node.map_arg(arguments, sources.append)
        if not all(source in constants for source in sources):
            continue
        value = operation.target(**fx.node.map_arg(arguments, constants.__getitem__))
        value = value[number[0]] if number else value
        with graph.inserting_before(next(iter(graph.nodes))):
            folded = graph.placeholder(f"{node.name}_folded")
        folded.meta = dict(node.meta)
        constants[folded] = value.contiguous()
        node.replace_all_uses_with(folded)
        graph.erase_node(node)


def _refuse_views_of_memory(graph: fx.Graph) -> None:
    """Refuse what reads activations by strides: here they may lie in another order, and it would read others."""
    for node in graph.nodes:
        if node.target is aten.as_strided.default:
            raise CaptureError(
                f"the network reads an activation by its strides in memory at node '{node.name}'{described(node)}; "
                "say it with view, permute or slices, and export it again"
            )


def _fold_batch_norm(graph: fx.Graph, constants: Constants) -> None:
    """Join each batch norm with the convolution or linear layer before it, or with the linear layers behind it."""
    for node in list(graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        norm = arguments_by_name(node)
        if norm["training"] or not {norm["running_mean"], norm["running_var"]} <= constants.keys():
            continue
        layer = norm["input"]
        is_vector = len(node.meta["seen"].shape) == 2
        layers = (*CONVOLUTIONS, aten.linear.default) if is_vector else CONVOLUTIONS
        if layer.target in layers and len(layer.users) == 1:
            _fold_into_layer_before(graph, constants, node, layer)
        elif is_vector and all(_is_linear_layer_on(node, reader, constants) for reader in node.users):
            _fold_into_layers_behind(graph, constants, node)


def _is_linear_layer_on(node: fx.Node, reader: fx.Node, constants: Constants) -> bool:
    if reader.target is not aten.linear.default:
        return False
    named = arguments_by_name(reader)
    return named["input"] is node and named["weight"] in constants


def _fold_into_layer_before(graph: fx.Graph, constants: Constants, node: fx.Node, layer: fx.Node) -> None:
    """Scale a layer's weights by the batch norm that alone reads it."""
    named = arguments_by_name(layer)
    if named["weight"] not in constants:
        return
    weight = constants[named["weight"]]
    scale, shift = _scale_and_shift(node, constants)
    if named["bias"] is not None:
        shift = shift + constants[named["bias"]].double() * scale
    _reweigh(graph, constants, layer, weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)), shift)
    _take_modules(layer, node)  # its output is the batch norm's now
    node.replace_all_uses_with(layer)
    graph.erase_node(node)


def _fold_into_layers_behind(graph: fx.Graph, constants: Constants, node: fx.Node) -> None:
    """Scale the weights of the linear layers that alone read a batch norm of vectors."""
    scale, shift = _scale_and_shift(node, constants)
    for layer in list(node.users):
        named = arguments_by_name(layer)
        weight = constants[named["weight"]].double()
        bias = weight @ shift
        if named["bias"] is not None:
            bias = bias + constants[named["bias"]].double()
        _reweigh(graph, constants, layer, weight * scale, bias)
        layer.replace_input_with(node, arguments_by_name(node)["input"])
    graph.erase_node(node)


def _scale_and_shift(node: fx.Node, constants: Constants) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by, and what it adds then, float64."""
    norm = arguments_by_name(node)
    mean, variance = (constants[norm[name]].double() for name in ("running_mean", "running_var"))
    scale = (variance + norm["eps"]).rsqrt()
    if norm["weight"] is not None:
        scale = scale * constants[norm["weight"]].double()
    shift = -mean * scale
    return scale, shift if norm["bias"] is None else shift + constants[norm["bias"]].double()


def _reweigh(graph: fx.Graph, constants: Constants, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give a layer other weights, of the type of its own."""
    named = arguments_by_name(layer)
    dtype = constants[named["weight"]].dtype
    with graph.inserting_before(next(iter(graph.nodes))):
        new_weight = graph.placeholder(f"{layer.name}_folded_weight")
        new_bias = graph.placeholder(f"{layer.name}_folded_bias")
    constants[new_weight], constants[new_bias] = weight.to(dtype), bias.to(dtype)
    layer.args = (named["input"], new_weight, new_bias, *list(named.values())[3:])
    layer.kwargs = {}


def _take_modules(node: fx.Node, last: fx.Node) -> None:
    """Let a node also be found by the modules of `last`, whose output it gives now."""
    node.meta["modules"] = (*node.meta["modules"], *last.meta["modules"])


def _skip_idle(graph: fx.Graph) -> None:
    """Leave out what changes nothing at this size of image: adaptive pools to the size that is there, dropout."""
    for node in list(graph.nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if node.target is aten.adaptive_avg_pool2d.default:
            is_idle = node.meta["seen"].shape[2:] == source.meta["seen"].shape[2:]
        else:
            is_idle = node.target is aten.dropout.default and arguments_by_name(node)["train"] is False
        if is_idle:
            _take_modules(source, node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _read_as_it_lies(graph: fx.Graph) -> None:
    """Let linear layers read tokens before images and tokens change places, and move their outputs instead.

    torch multiplies what does not lie row by row one image at a time, each with a copy of the weight; attention that
    takes images first and computes with tokens first (`nn.MultiheadAttention`) is written so.
    """
    for node in list(graph.nodes):
        if node.target is not aten.linear.default:
            continue
        named = arguments_by_name(node)
        order = _order(named["input"])
        if order is None or order[-1] != len(order) - 1:
            continue
        source, seen = named["input"].all_input_nodes[0], node.meta["seen"]
        if source.meta["seen"].shape[0] is not None:  # images come first where tokens are told apart (see `tokens`)
            continue
        with graph.inserting_before(node):
            linear = graph.call_function(node.target, (source, *list(named.values())[1:]))
        extents = (*source.meta["seen"].shape[:-1], seen.shape[-1])
        linear.meta = {**node.meta, "seen": replace(seen, shape=extents)}
        node.target, node.args, node.kwargs = aten.permute.default, (linear, order), {}


def _order(node: fx.Node) -> list[int] | None:
    """Return which dimension of its input each of a node's is, for one that only moves dimensions; None for others."""
    if node.target not in (aten.transpose.int, aten.permute.default):
        return None
    named = arguments_by_name(node)
    order = list(range(len(node.meta["seen"].shape)))
    if node.target is aten.permute.default:
        return [order[dim] for dim in named["dims"]]
    one, other = named["dim0"], named["dim1"]
    order[one], order[other] = order[other], order[one]
    return order


def _view_any_layout(graph: fx.Graph) -> None:
    """Let what was exported as a view of row-major memory also be a copy: images may come in channels last."""
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def activate_in_place(nodes: Iterable[fx.Node], kept: Container[fx.Node]) -> None:
    """Let an activation overwrite its input when nothing else reads that: one pass over memory less.

    `kept` is what the way back reads. Vectors stay, which are small.
    """
    for node in nodes:
        if node.target not in IN_PLACE:
            continue
        (source,) = node.all_input_nodes
        is_free = source.target in _FRESH and len(source.users) == 1 and source not in kept
        if is_free and not is_vector(source.meta["seen"].shape):
            node.target = IN_PLACE[node.target]
