"""Products with a constant matrix, said as the linear layers that they are.

N images, C features, L rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fixcore.network.spelling import said
from fixcore.points import is_vector
from fixcore.structure import Constants, arguments_by_name

aten = torch.ops.aten

PRODUCTS: dict[Any, tuple[str, str]] = {
    aten.addmm.default: ("mat1", "mat2"),
    aten.mm.default: ("self", "mat2"),
    aten.bmm.default: ("self", "mat2"),
    aten.matmul.default: ("self", "other"),
}
"""Products of matrices, and what their arguments are named."""
_KNOWN = (aten.bmm.default, aten.matmul.default)
"""Those that stay what they are on maps and tokens: there they have rules of their own."""
_FLATTENS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def spell_linear(graph: fx.Graph, constants: Constants) -> None:
    """Say products with a constant matrix as the linear layers that they were; in place, `constants` gains weights.

    Tokens that were flattened for the product are taken as they were before, and vectors without the dimensions of one
    element that stand beside theirs (einsum adds such): on a vector and on tokens, a linear layer has different rules.
    """
    for node in list(graph.nodes):
        if node.target not in PRODUCTS:
            continue
        named = arguments_by_name(node)
        left, right = (named[name] for name in PRODUCTS[node.target])
        bias = named["self"] if node.target is aten.addmm.default else None
        is_left = left in constants
        values, matrix = (right, left) if is_left else (left, right)
        if matrix not in constants or values in constants or (named.get("beta", 1), named.get("alpha", 1)) != (1, 1):
            continue
        if bias is not None and (is_left or bias not in constants or constants[bias].dim() != 1):
            continue
        weight = constants[matrix]
        is_one = weight.dim() > 1 and weight.shape[:-2].numel() == 1  # not one for each head, or group
        if not is_one or len(values.meta["seen"].shape) != len(node.meta["seen"].shape):
            continue
        weight = weight.reshape(weight.shape[-2:])
        weight = weight if is_left else weight.T
        with graph.inserting_before(node):
            source, back = _rows(graph, _turned(graph, values) if is_left else values)
        shapes = source.meta["seen"].shape, (*source.meta["seen"].shape[:-1], len(weight))
        if node.target in _KNOWN and not all(is_vector(shape) for shape in shapes):
            continue
        with graph.inserting_before(next(iter(graph.nodes))):
            held = graph.placeholder(f"{node.name}_weight")
        constants[held] = weight.contiguous()
        with graph.inserting_before(node):
            same = back(said(graph, node, aten.linear.default, (source, held, bias), shapes[1]))
            same = _turned(graph, same) if is_left else same
        node.replace_all_uses_with(same)
        graph.erase_node(node)


def _rows(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, Callable[[fx.Node], fx.Node]]:
    """Return what a linear layer reads that is to read the last dimension of a node, and how its output is put back."""
    extents = node.meta["seen"].shape
    tokens = _before_flattening(node)
    if tokens is not None:
        sizes, outer = node.args[1], extents[:-1]
        assert isinstance(sizes, list)

        def flattened(result: fx.Node) -> fx.Node:
            last = result.meta["seen"].shape[-1]
            return said(graph, result, aten.reshape.default, (result, [*sizes[:-1], last]), (*outer, last))

        return tokens, flattened
    ones = [dim for dim, extent in enumerate(extents[:-1]) if extent == 1]
    images = [extent for extent in extents[:-1] if extent != 1]
    if not ones or images not in ([None], [extents[0]]) or _holds_more(node):
        return node, lambda result: result
    vectors = said(graph, node, aten.squeeze.dims, (node, ones), (*images, extents[-1]))

    def among_ones(result: fx.Node) -> fx.Node:
        for dim in ones:
            shape = list(result.meta["seen"].shape)
            result = said(graph, result, aten.unsqueeze.default, (result, dim), (*shape[:dim], 1, *shape[dim:]))
        return result

    return vectors, among_ones


def _turned(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Let rows and columns change places."""
    *outer, rows, columns = node.meta["seen"].shape
    order = [*range(len(outer)), len(outer) + 1, len(outer)]
    return said(graph, node, aten.permute.default, (node, order), (*outer, columns, rows))


def _before_flattening(node: fx.Node) -> fx.Node | None:
    """Return the tokens (N, ..., C) that a node (L, C) is a flat view of; None where it is a vector (N, C)."""
    if node.target not in _FLATTENS:
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    extents = source.meta["seen"].shape
    is_tokens = extents[-1] == node.meta["seen"].shape[-1] and any(extent != 1 for extent in extents[1:-1])
    return source if is_tokens else None


def _holds_more(node: fx.Node) -> bool:
    """Whether a node is known to hold more than one row for each image."""
    source = node.args[0] if node.target in _FLATTENS else node
    assert isinstance(source, fx.Node)
    images, *extents = source.meta["seen"].shape
    return images is None and math.prod(extents) != node.meta["seen"].shape[-1]
