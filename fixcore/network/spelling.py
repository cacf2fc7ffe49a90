"""One spelling for each operation: what a program says in its own way is said in the way that a rule knows.

Programs differ by who wrote them (`relu6`, or `hardtanh` to 6) and by what they went through: `run_decompositions()`
leaves core ATen, in which a linear layer is a product with a transposed weight on flattened tokens.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fixcore.points import is_vector
from fixcore.structure import arguments_by_name, measures
from fixcore.window import pair

aten = torch.ops.aten

Same = tuple[Any, tuple[Any, ...]]
"""An operation with one output, and its arguments, that gives the same."""


def spell_alike(graph: fx.Graph) -> None:
    """Rewrite `graph` in place; what it computes stays."""
    for node in list(graph.nodes):
        if node.target is operator.getitem:
            _one_output(graph, node)
        if node.target in _WORDS:
            same = _WORDS[node.target](arguments_by_name(node))
            if same is not None:
                (node.target, node.args), node.kwargs = same, {}
        if node.target in _PHRASES:
            _PHRASES[node.target](graph, node)


def _one_output(graph: fx.Graph, node: fx.Node) -> None:
    """Replace one of several outputs by an operation that has no other."""
    if not node.users:  # statistics of a batch norm, for instance
        graph.erase_node(node)
        return
    parent, number = node.args
    assert isinstance(parent, fx.Node)
    assert isinstance(number, int)
    rewrite = _OUTPUTS.get(parent.target)
    same = rewrite(arguments_by_name(parent), parent, number) if rewrite else None
    if same is not None:
        with graph.inserting_before(node):
            replacement = graph.call_function(*same)
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    elif parent.target in _CHOICES and number == 0:
        _look_up_choice(graph, node)


def _batch_norm(named: dict[str, Any], parent: fx.Node, number: int) -> Same:
    assert number == 0, "statistics of a batch norm are never read"
    keys = ("input", "weight", "bias", "running_mean", "running_var")
    fixed = (named.get("training", False), named["momentum"], named["eps"], True)
    return aten.batch_norm.default, (*(named.get(key) for key in keys), *fixed)


def _layer_norm(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    return None if number else (aten.layer_norm.default, tuple(named.values()))


def _group_norm(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    keys = ("input", "group", "weight", "bias", "eps")
    return None if number else (aten.group_norm.default, tuple(named[key] for key in keys))


def _extreme(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    operation = aten.amax.default if parent.target is aten.max.dim else aten.amin.default
    return None if number else (operation, (named["self"], [named["dim"]], named["keepdim"]))


def _variance(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    if number:
        return aten.mean.dim, (named["self"], named["dim"], named["keepdim"])
    if named["correction"] not in (None, 0, 1):
        return None
    return aten.var.dim, (named["self"], named["dim"], named["correction"] != 0, named["keepdim"])


def _max_pool(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    return None if number else (aten.max_pool2d.default, tuple(named.values()))


def _adaptive_max_pool(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    """Where all its windows are alike; the whole map is one."""
    extent, out = named["self"].meta["seen"].shape[-2:], parent.meta["seen"][0].shape[-2:]
    if number or any(whole % parts for whole, parts in zip(extent, out, strict=True)):
        return None
    kernel = [whole // parts for whole, parts in zip(extent, out, strict=True)]
    return aten.max_pool2d.default, (named["self"], kernel, kernel)


def _split(named: dict[str, Any], parent: fx.Node, number: int) -> Same | None:
    sizes = [part.shape[named["dim"]] for part in parent.meta["seen"]]
    if None in sizes:  # images are parted from each other
        return None
    return aten.narrow.default, (named["self"], named["dim"], sum(sizes[:number]), sizes[number])


def _unbind(named: dict[str, Any], parent: fx.Node, number: int) -> Same:
    return aten.select.int, (named["self"], named["dim"], number)


_OUTPUTS: dict[Any, Callable[[dict[str, Any], fx.Node, int], Same | None]] = {
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.max.dim: _extreme,
    aten.min.dim: _extreme,
    aten.var_mean.correction: _variance,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.split.Tensor: _split,
    aten.unsafe_split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: _split,
    aten.unbind.int: _unbind,
}
"""Operations with several outputs, and how each of these is said alone."""


_CHOICES = frozenset({
    aten.topk.default, aten.sort.default, aten.sort.stable, aten.kthvalue.default, aten.median.dim, aten.cummax.default,
    aten.cummin.default, aten.adaptive_max_pool2d.default, aten.fractional_max_pool2d.default,
})  # fmt: skip
"""Operations that take elements of their input, and say in a second output which: along `dim`, or in each map."""


def _look_up_choice(graph: fx.Graph, node: fx.Node) -> None:
    """Say what was chosen as what stands in the input at the places that were named."""
    parent, _ = node.args
    assert isinstance(parent, fx.Node)
    named = arguments_by_name(parent)
    source = named["self"]
    extents, result = source.meta["seen"].shape, node.meta["seen"].shape
    with graph.inserting_before(node):
        places = graph.call_function(operator.getitem, (parent, 1))
        places.meta = {**node.meta, "seen": parent.meta["seen"][1]}
        if "dim" not in named:  # counted through each map
            of_maps = [
                said(graph, own, aten.flatten.using_ints, (own, -2, -1), (*own.meta["seen"].shape[:-2], None))
                for own in (source, places)
            ]
            taken = said(graph, node, aten.gather.default, (of_maps[0], -1, of_maps[1]), (*result[:-2], None))
            sizes = [-1 if extent is None else extent for extent in result]
            same: Same = (aten.reshape.default, (taken, sizes))
        elif len(result) == len(extents):
            same = (aten.gather.default, (source, named["dim"], places))
        else:  # the dimension was left out
            dim = named["dim"] % len(extents)
            kept = (*result[:dim], 1, *result[dim:])
            places = said(graph, places, aten.unsqueeze.default, (places, dim), kept)
            same = (aten.squeeze.dim, (said(graph, node, aten.gather.default, (source, dim, places), kept), dim))
    (node.target, node.args), node.kwargs = same, {}


_CONVOLUTIONS = {
    (1, False): aten.conv1d.default,
    (2, False): aten.conv2d.default,
    (2, True): aten.conv_transpose2d.input,
}
"""By the number of axes, and whether it is transposed."""


def _convolution(named: dict[str, Any]) -> Same | None:
    operation = _CONVOLUTIONS.get((len(named["stride"]), named["transposed"]))
    keys = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    if named["transposed"]:
        keys[5:] = ["output_padding", "groups", "dilation"]
    return None if operation is None else (operation, tuple(named[key] for key in keys))


def _mean_of_all(places: int) -> Callable[[dict[str, Any]], Same | None]:
    """Return how an adaptive average pool over so many dimensions is said where its only window is all of them."""

    def same(named: dict[str, Any]) -> Same | None:
        if any(extent != 1 for extent in named["output_size"]):
            return None
        return aten.mean.dim, (named["self"], list(range(-places, 0)), True)

    return same


def _restrided(named: dict[str, Any]) -> Same | None:
    """Where it only says how the means of maps lie in memory: one after the other, which is how they come."""
    source, (_, *extents) = named["self"], named["size"]
    is_same = source.target is aten.mean.dim and source.meta["seen"].shape[1:] == tuple(extents)
    is_in_order = set(extents[1:]) <= {1} and named["stride"][:2] == [*extents[:1], 1]
    return (aten.alias.default, (source,)) if is_same and is_in_order and not named["storage_offset"] else None


def _copied(named: dict[str, Any]) -> Same | None:
    """What is written over all of a tensor (`x[...] = y`)."""
    whole, written = named["self"].meta["seen"], named["src"].meta["seen"]
    if whole.dtype != written.dtype or len(whole.shape) != len(written.shape):
        return None
    extents = [-1 if own == extent else extent for own, extent in zip(written.shape, whole.shape, strict=True)]
    return None if None in extents else (aten.expand.default, (named["src"], extents))


_WORDS: dict[Any, Callable[[dict[str, Any]], Same | None]] = {
    aten.relu6.default: lambda named: (aten.hardtanh.default, (named["self"], 0.0, 6.0)),
    aten.clamp_max.default: lambda named: (aten.clamp.default, (named["self"], None, named["max"])),
    aten.max.other: lambda named: (aten.maximum.default, (named["self"], named["other"])),
    aten.min.other: lambda named: (aten.minimum.default, (named["self"], named["other"])),
    aten.square.default: lambda named: (aten.pow.Tensor_Scalar, (named["self"], 2)),
    aten.convolution.default: _convolution,
    aten.copy.default: _copied,
    aten.adaptive_avg_pool1d.default: _mean_of_all(1),
    aten.adaptive_avg_pool3d.default: _mean_of_all(3),
    aten.as_strided.default: _restrided,
    aten._softmax.default: lambda named: (aten.softmax.int, (named["self"], named["dim"])),
    aten._log_softmax.default: lambda named: (aten.log_softmax.int, (named["self"], named["dim"])),
    aten._adaptive_avg_pool2d.default: lambda named: (aten.adaptive_avg_pool2d.default, tuple(named.values())),
}
"""Operations that are another one by a name of its own."""


def said(graph: fx.Graph, like: fx.Node, operation: Any, arguments: tuple[Any, ...], shape: tuple[Any, ...]) -> fx.Node:
    """Add an operation in the place of `like`, of whose results it has the type."""
    node = graph.call_function(operation, arguments)
    node.meta = {**like.meta, "seen": replace(like.meta["seen"], shape=tuple(shape))}
    return node


def _along_one_axis(operation: Any, pairs: tuple[str, ...]) -> Callable[[fx.Graph, fx.Node], None]:
    """Return how an operation along one axis is said: `operation` on maps of one row.

    `pairs` names the arguments of which it takes two; what is true of the axis is 1, or 0, of the row.
    """

    def rewrite(graph: fx.Graph, node: fx.Node) -> None:
        named = arguments_by_name(node)
        for name in pairs:
            if isinstance(named[name], list) and named[name]:
                named[name] = [0 if name == "padding" else 1, *named[name]]
        with graph.inserting_before(node):
            for name, given in named.items():
                if isinstance(given, fx.Node) and len(given.meta["seen"].shape) == 3:
                    *outer, length = given.meta["seen"].shape
                    named[name] = said(graph, given, aten.unsqueeze.default, (given, 2), (*outer, 1, length))
            *outer, length = node.meta["seen"].shape
            on_maps = said(graph, node, operation, tuple(named.values()), (*outer, 1, length))
        (node.target, node.args), node.kwargs = (aten.squeeze.dim, (on_maps, 2)), {}

    return rewrite


def _product_added(graph: fx.Graph, node: fx.Node) -> None:
    """Say a sum with a product, or with a quotient, as these two."""
    operation = aten.mul.Tensor if node.target is aten.addcmul.default else aten.div.Tensor
    named = arguments_by_name(node)
    factors = (named["tensor1"], named["tensor2"])
    one, other = (list(factor.meta["seen"].shape) for factor in factors)
    extents = [1] * abs(len(one) - len(other))
    longer, shorter = (one, extents + other) if len(one) > len(other) else (other, extents + one)
    shape = tuple(b if a == 1 else a for a, b in zip(longer, shorter, strict=True))
    with graph.inserting_before(node):
        product = said(graph, node, operation, factors, shape)
    alpha = {} if named["value"] == 1 else {"alpha": named["value"]}
    node.target, node.args, node.kwargs = aten.add.Tensor, (named["self"], product), alpha


def _averaged(graph: fx.Graph, node: fx.Node) -> None:
    """Say what makes a vector of a map, at once or one axis after the other, as its average; a sum as that many times.

    Only an average over all places at once has a class map.
    """
    named = arguments_by_name(node)
    source, places, count = named["self"], _reduced(node), 1
    if places is None or 0 in places or not is_vector(node.meta["seen"].shape):
        return
    if node.target is aten.sum.dim_IntList:
        count *= _extent(source, places)
    while (inner := _reduced(source)) is not None and 0 not in inner:
        before = arguments_by_name(source)
        if before["keepdim"] != named["keepdim"]:
            break
        if source.target is aten.sum.dim_IntList:
            count *= _extent(before["self"], inner)
        kept = [dim for dim in range(len(before["self"].meta["seen"].shape)) if before["keepdim"] or dim not in inner]
        source, places = before["self"], inner | {kept[dim] for dim in places}
    seen = source.meta["seen"]
    is_pooled = not is_vector(seen.shape) and measures(seen.dtype) and None not in (seen.shape[dim] for dim in places)
    has_features = len(places) < len(seen.shape) - 1  # what all of an image adds up to is no vector
    if not is_pooled or not has_features or (count == 1 and source is named["self"]):
        return
    with graph.inserting_before(node):
        average = said(graph, node, aten.mean.dim, (source, sorted(places), named["keepdim"]), node.meta["seen"].shape)
    for reader in [reader for reader in node.users if count != 1 and _undoes(reader, node, count)]:
        reader.target, reader.args, reader.kwargs = aten.alias.default, (average,), {}
    same: Same = (aten.alias.default, (average,)) if count == 1 else (aten.mul.Tensor, (average, count))
    (node.target, node.args), node.kwargs = same, {}


def _undoes(reader: fx.Node, node: fx.Node, count: int) -> bool:
    """Whether an operation divides by a number what a node multiplied by it."""
    if reader.target is aten.div.Tensor:
        return reader.args == (node, count)
    return reader.target is aten.mul.Tensor and reader.args in ((node, 1 / count), (1 / count, node))


def _reduced(node: fx.Node) -> set[int] | None:
    """Return the dimensions over which a node sums, or averages, in the type of its input; None if it does not."""
    if node.target not in (aten.mean.dim, aten.sum.dim_IntList):
        return None
    named = arguments_by_name(node)
    dims = len(named["self"].meta["seen"].shape)
    return None if named["dtype"] is not None or not named["dim"] else {dim % dims for dim in named["dim"]}


def _extent(node: fx.Node, dims: Iterable[int]) -> int:
    """How many places lie along some dimensions of a node; 0 where that depends on the number of images."""
    return math.prod(node.meta["seen"].shape[dim] or 0 for dim in dims)


def _divided_otherwise(graph: fx.Graph, node: fx.Node) -> None:
    """Say an average pool that does not divide by the cells of its window as one that does, times a number."""
    named = arguments_by_name(node)
    divisor, kernel = named["divisor_override"], pair(named["kernel_size"])
    if divisor is None or any(named["padding"]) or named["ceil_mode"]:  # else all windows have as many cells
        return
    sizes = [named[name] for name in ("self", "kernel_size", "stride")]
    with graph.inserting_before(node):
        average = said(graph, node, node.target, tuple(sizes), node.meta["seen"].shape)
    node.target, node.args, node.kwargs = aten.mul.Tensor, (average, math.prod(kernel) / divisor), {}


_PHRASES: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    aten.mean.dim: _averaged,
    aten.sum.dim_IntList: _averaged,
    aten.avg_pool2d.default: _divided_otherwise,
    aten.conv1d.default: _along_one_axis(aten.conv2d.default, ("stride", "padding", "dilation")),
    aten.conv1d.padding: _along_one_axis(aten.conv2d.padding, ("stride", "dilation")),
    aten.avg_pool1d.default: _along_one_axis(aten.avg_pool2d.default, ("kernel_size", "stride", "padding")),
    aten.max_pool1d.default: _along_one_axis(aten.max_pool2d.default, ("kernel_size", "stride", "padding", "dilation")),
    aten.addcmul.default: _product_added,
    aten.addcdiv.default: _product_added,
}
"""Operations that are said as several."""

SPELLED: frozenset[Any] = frozenset({*_OUTPUTS, *_CHOICES, *_WORDS, *_PHRASES})
"""Operations that are said in another way."""
