"""The order of work of a forward pass: what is run for each node, and when its inputs can go.

What is run is the node's own operation or, where it takes less time, one that gives the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.compiled import pooling as compiled
from fixcore.compiled.threads import is_compiled_for
from fixcore.rules.window import POOLING_SIZES, pooling_window

aten = torch.ops.aten

Operation = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One node's turn."""

    node: fx.Node
    operation: Operation
    frees: tuple[fx.Node, ...]
    """What nothing reads any more after this step."""


def schedule(
    nodes: tuple[fx.Node, ...], kept: set[fx.Node], operations: Mapping[fx.Node, Operation]
) -> tuple[Step, ...]:
    """Return the steps that run `nodes` and keep the values of `kept`."""
    wanted = set(nodes)
    frees: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    seen: set[fx.Node] = set(kept)
    for node in reversed(nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                frees[node].append(source)
        if node not in seen and not (set(node.users) & wanted):
            frees[node].append(node)
    return tuple(Step(node, operations[node], tuple(frees[node])) for node in nodes)


@torch.inference_mode()
def run(steps: tuple[Step, ...], values: dict[fx.Node, Any], shapes: dict[fx.Node, torch.Size]) -> None:
    """Run the steps on `values`, which hold images and constants, and note every shape."""
    fetch = values.__getitem__
    for step in steps:
        node = step.node
        result = step.operation(*fx.node.map_arg(node.args, fetch), **fx.node.map_arg(node.kwargs, fetch))
        values[node] = result
        if isinstance(result, Tensor):
            shapes[node] = result.shape
        for dead in step.frees:
            del values[dead]


def operations_of(
    nodes: tuple[fx.Node, ...], arguments: Mapping[fx.Node, Mapping[str, Any]]
) -> dict[fx.Node, Operation]:
    """Return what is run for each node; `arguments` are those of each, by name. Sets meta "rectifies"."""
    _rectify_after_pools(nodes)
    return {node: _operation(node, arguments[node]) for node in nodes}


def _rectify_after_pools(nodes: tuple[fx.Node, ...]) -> None:
    """Let a ReLU that only a maximum pool reads wait for the pool, which as a rule leaves a quarter of the elements.

    The maximum of what is rectified is the rectified maximum, to the bit. The nodes stay as they are, so that whoever
    walks them or runs them with gradients sees the network as it was written; but the recorded value of such a ReLU is
    its input, and meta "rectifies" tells the pool's rule that what is below 0 there counts as 0.
    """
    for node in nodes:
        node.meta["rectifies"] = False
    for pool in nodes:
        if pool.target is not aten.max_pool2d.default:
            continue
        (relu,) = pool.all_input_nodes
        if relu.target in (aten.relu.default, aten.relu_.default) and len(relu.users) == 1:
            pool.meta["rectifies"] = relu.meta["rectifies"] = True


def _operation(node: fx.Node, named: Mapping[str, Any]) -> Operation:
    assert callable(node.target)
    if node.target is aten.max_pool2d.default:
        return _maximum_pool(node, named)
    return _as_it_is if node.meta["rectifies"] else node.target


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _maximum_pool(node: fx.Node, named: Mapping[str, Any]) -> Operation:
    before, after = (one.meta["seen"].shape[2:] for one in (node.all_input_nodes[0], node))
    sizes = [named[name] for name in POOLING_SIZES]
    known = len(before) == 2 and all(isinstance(number, int) for number in chain(before, after, *sizes))
    window = pooling_window(sizes, before, after) if known else None
    rectifies = node.meta["rectifies"]

    def pool(images: Tensor, *rest: Any, **others: Any) -> Tensor:
        if window and images.shape[2:] == before and _is_channels_last(images) and is_compiled_for(images):
            return compiled.max_pool(images, window, 0.0 if rectifies else -math.inf)
        pooled: Tensor = aten.max_pool2d.default(images, *rest, **others)
        return torch.relu_(pooled) if rectifies else pooled

    return pool


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)
