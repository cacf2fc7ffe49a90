"""Running a captured network with gradients, and with other ways back through its rectifiers.

N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.network.graph import Graph
from fixcore.network.simplify import IN_PLACE

aten = torch.ops.aten

Way = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""What goes back through a rectifier: from what arrived at its output, and its own derivative as a function of that."""

_OUT_OF_PLACE = {within: beside for beside, within in IN_PLACE.items()}
"""Activations that a captured graph lets overwrite what the way back still needs."""

RECTIFIERS = frozenset(
    {
        aten.relu.default,
        aten.hardtanh.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.leaky_relu.default,
        aten.prelu.default,
        aten.rrelu.default,
        aten.threshold.default,
        aten.elu.default,
        aten.selu.default,
        aten.celu.default,
        aten.gelu.default,
        aten.silu.default,
        aten.mish.default,
        aten.hardswish.default,
        aten.softplus.default,
    }
)
"""Activations that let what is positive through and hold back the rest."""


def replay(graph: Graph, images: Tensor, *, way: Way | None = None) -> dict[fx.Node, Any]:
    """Return the value of every operation for these images, with gradients back to `values[graph.images]`.

    With `way`, what goes back through a rectifier (ReLU, ReLU6, SiLU, GELU, ...) is what `way` makes of it. Nothing
    of the user's model is touched. Call it, and what reads the gradients, under `gradients_allowed`.
    """
    graph.check(images)
    values: dict[fx.Node, Any] = {**graph.constants, graph.images: images.detach().clone().requires_grad_()}
    for node in graph.nodes:
        arguments = fx.node.map_arg(node.args, values.__getitem__)
        named = fx.node.map_arg(node.kwargs, values.__getitem__)
        target: Any = node.target
        operation = _OUT_OF_PLACE.get(target, target)
        if way is not None and operation in RECTIFIERS and not node.meta["is_constant"]:
            values[node] = _Rectifier.apply(arguments[0], operation, arguments[1:], named, way)
        else:
            values[node] = operation(*arguments, **named)
    return values


def gradients_allowed() -> torch.inference_mode:
    """Return a context in which gradients are recorded, whatever the caller's mode."""
    return torch.inference_mode(False)


class _Rectifier(torch.autograd.Function):
    """An activation whose derivative is replaced."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, operation: Any, rest: Any, named: Any, way: Way) -> Tensor:
        ctx.save_for_backward(value)
        ctx.how = (operation, rest, named, way)
        result = operation(value, *rest, **named)
        assert isinstance(result, Tensor)
        return result

    @staticmethod
    def backward(ctx: Any, arrived: Tensor) -> tuple[Tensor, None, None, None, None]:
        (value,) = ctx.saved_tensors
        operation, rest, named, way = ctx.how

        def derivative(above: Tensor) -> Tensor:
            with torch.enable_grad():
                again = value.detach().requires_grad_()
                below: Tensor = torch.autograd.grad(operation(again, *rest, **named), again, above)[0]
            return below

        return way(arrived, derivative), None, None, None, None
