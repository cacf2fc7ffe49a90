"""ReLUs in other words: a choice between an element and 0, the larger of it and 0, it times whether it is above 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fixcore.rules.elementwise import CHOOSES_BY_CONDITION
from fixcore.structure import Constants, Seen, arguments_by_name

aten = torch.ops.aten

_ABOVE = (aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor)
_BELOW = (aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor)


def spell_rectifiers(graph: fx.Graph, constants: Constants) -> None:
    """Say as a ReLU what is one, but for NaN; in place.

    A rule, a baseline that treats ReLUs in its own way, and the search for what no pixel reaches then know it.
    """
    for node in graph.nodes:
        source = _rectified(node, constants)
        if source is not None and isinstance(source.meta["seen"], Seen) and _is_alike(node, source):
            node.target, node.args, node.kwargs = aten.relu.default, (source,), {}


def _rectified(node: fx.Node, constants: Constants) -> fx.Node | None:
    """What a node is the ReLU of, if it is one."""
    named: dict[str, Any] = arguments_by_name(node) if node.op == "call_function" else {}
    found: Any = None
    if node.target in CHOOSES_BY_CONDITION:
        for kept, other, asked in ((named["self"], named["other"], _ABOVE), (named["other"], named["self"], _BELOW)):
            if _is_zero(other, constants) and _asks(named["condition"], asked, kept, constants):
                found = kept
    elif node.target is aten.maximum.default:
        one, other = named["self"], named["other"]
        found = one if _is_zero(other, constants) else other if _is_zero(one, constants) else None
    elif node.target is aten.mul.Tensor:
        one, other = named["self"], named["other"]
        found = one if _asks(other, _ABOVE, one, constants) else other if _asks(one, _ABOVE, other, constants) else None
    elif node.target is aten.masked_fill.Scalar and named["value"] == 0:
        found = named["self"] if _asks(named["mask"], _BELOW, named["self"], constants) else None
    return found if isinstance(found, fx.Node) else None


def _asks(node: Any, comparisons: tuple[Any, ...], source: Any, constants: Constants) -> bool:
    """Whether a node compares `source` with 0, in one of these ways."""
    if not isinstance(node, fx.Node) or node.target not in comparisons:
        return False
    named = arguments_by_name(node)
    return named["self"] is source and _is_zero(named["other"], constants)


def _is_zero(value: Any, constants: Constants) -> bool:
    if not isinstance(value, fx.Node):
        return isinstance(value, int | float) and value == 0
    if value.target in (aten.zeros_like.default, aten.new_zeros.default):
        return True
    held = constants.get(value)
    return isinstance(held, Tensor) and not held.is_meta and not bool(held.count_nonzero())


def _is_alike(node: fx.Node, source: fx.Node) -> bool:
    """Whether a result has its source's shape and type: nothing was broadcast."""
    own, before = node.meta["seen"], source.meta["seen"]
    return isinstance(own, Seen) and own.shape == before.shape and own.dtype == before.dtype
