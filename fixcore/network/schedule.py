"""The order of work of a forward pass: what is run for each node, and when its inputs can go.

What is run is the node's own operation or, where it takes less time, one that gives the same: pools, concatenations
and the ReLUs before them in one pass, convolutions with a weight that was laid out beforehand, softmaxes whose smallest
shares are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.compiled.concatenation import concatenated
from fixcore.compiled.pooling import max_pool
from fixcore.compiled.threads import is_compiled_for
from fixcore.network.packed import can_be_packed, packed_convolution
from fixcore.network.shares import softmax
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.window import POOLING_SIZES, pooling_window

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
    _let_rectifiers_wait(nodes)
    return {node: _operation(node, arguments[node]) for node in nodes}


def _let_rectifiers_wait(nodes: tuple[fx.Node, ...]) -> None:
    """Let a ReLU that only a maximum pool or a concatenation reads be applied by that, in its pass over memory.

    The maximum of what is rectified is the rectified maximum, to the bit. The nodes stay as they are, so that whoever
    walks them or runs them with gradients sees the network as it was written; but the recorded value of such a ReLU is
    its input, and meta "rectifies" tells the pool's rule that what is below 0 there counts as 0.
    """
    for node in nodes:
        node.meta["rectifies"] = False
    for node in nodes:
        if node.target in (aten.relu.default, aten.relu_.default) and len(node.users) == 1:
            (reader,) = node.users
            if reader.target in (aten.max_pool2d.default, aten.cat.default):
                reader.meta["rectifies"] = node.meta["rectifies"] = True


def _operation(node: fx.Node, named: Mapping[str, Any]) -> Operation:
    assert callable(node.target)
    if node.target is aten.max_pool2d.default:
        return _maximum_pool(node, named)
    if node.target in CONVOLUTIONS and can_be_packed(named):
        return packed_convolution(node.target, named)
    if node.target is aten.softmax.int:
        return softmax
    if not node.meta["rectifies"]:
        return node.target
    return _concatenation(named["tensors"]) if node.target is aten.cat.default else _as_it_is


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _concatenation(sources: Sequence[fx.Node]) -> Operation:
    rectifies = [source.meta["rectifies"] for source in sources]
    lowest = [0.0 if waited else -math.inf for waited in rectifies]

    def concatenate(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        if is_compiled_for(*parts) and dim == 1 and all([_is_channels_last(part) for part in parts]):
            return concatenated(parts, lowest)
        whole = torch.cat(list(parts), dim)
        if all(rectifies):
            return whole.relu_()
        extents = [part.shape[dim] if part.dim() == whole.dim() else 0 for part in parts]  # an empty vector joins all
        for part, waited in zip(whole.split_with_sizes(extents, dim), rectifies, strict=True):
            if waited:
                part.relu_()
        return whole

    return concatenate


def _maximum_pool(node: fx.Node, named: Mapping[str, Any]) -> Operation:
    before, after = (one.meta["seen"].shape[2:] for one in (node.all_input_nodes[0], node))
    sizes = [named[name] for name in POOLING_SIZES]
    known = len(before) == 2 and all(isinstance(number, int) for number in chain(before, after, *sizes))
    window = pooling_window(sizes, before, after) if known else None
    rectifies = node.meta["rectifies"]

    def pool(images: Tensor, *rest: Any, **others: Any) -> Tensor:
        if window and images.shape[2:] == before and _is_channels_last(images) and is_compiled_for(images):
            return max_pool(images, window, 0.0 if rectifies else -math.inf)
        pooled: Tensor = aten.max_pool2d.default(images, *rest, **others)
        return torch.relu_(pooled) if rectifies else pooled

    return pool


def _is_channels_last(images: Tensor) -> bool:
    return images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last)
