"""The way back through a part of a network at once: all evidence of a target, densely and with a sign (see `slopes`).

N images, T targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.class_map import class_map_points
from fixcore.network.slopes import ACTIVATIONS, followed, passed, reached
from fixcore.points import Points, is_vector
from fixcore.rules.attention import looked_at
from fixcore.rules.elementwise import SOFTMAX

if TYPE_CHECKING:
    from fixcore.network.graph import Recording
    from fixcore.network.head import Head

aten = torch.ops.aten

Step = tuple[fx.Node, list[fx.Node]]
"""An operation that evidence passes, and those that it goes to from there."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """All that lies between two operations, of which the earlier one is passed by all evidence of the later one."""

    begin: fx.Node
    end: fx.Node
    steps: tuple[Step, ...]
    """From `begin` back to before `end`."""
    parts: dict[fx.Node, slice] = field(default_factory=dict)
    """Of each step the features of its output that evidence comes to; known from the first recording on."""

    def kept(self, arguments: Mapping[fx.Node, Mapping[str, Any]]) -> Iterator[fx.Node]:
        """Yield what is read on the way, and its end."""
        for node, _ in self.steps:
            known = followed(node, arguments[node])
            assert known is not None
            yield from known[1]
        yield self.end


def explained(logits: fx.Node, head: Head | None) -> fx.Node:
    """Return where evidence of a target begins: at the features that the head reads, or at the logits."""
    begin = logits if head is None else head.map
    while head is None and begin.target in SOFTMAX:
        begin = begin.all_input_nodes[0]
    return begin


def mixes(node: fx.Node) -> bool:
    """Whether an operation mixes tokens: one attends to others, or a linear layer reads them."""
    is_linear = node.target is aten.linear.default and not is_vector(node.meta["seen"].shape)
    return is_linear or looked_at(node) is not None


def narrows(
    nodes: Sequence[fx.Node],
    arguments: Mapping[fx.Node, Mapping[str, Any]],
    begin: fx.Node,
    beyond: Container[Any] = (),
) -> Iterator[tuple[fx.Node, Sequence[Step]]]:
    """Yield, from `begin` back, the operations that all evidence passes, each with the steps behind it.

    The sequence of steps is one and the same, and grows. Ends before an operation of which `slopes` knows nothing, or
    that is `beyond` the way.
    """
    steps: list[Step] = []
    waiting = {begin}
    for node in reversed(nodes):
        if node not in waiting:
            continue
        if waiting == {node}:
            yield node, steps
        known = None if node.target in beyond else followed(node, arguments[node])
        if known is None:
            return
        waiting = (waiting - {node}).union(known[0])
        steps.append((node, known[0]))


def holds_images(recording: Recording, node: fx.Node) -> bool:
    """Whether there is an image in each row of what was recorded.

    Networks may also cut images into patches that they see as images of their own (TNT).
    """
    return recording.shapes[node][0] == len(recording.logits)


def pulled(recording: Recording, way: Way, pull: Tensor, *, adding: bool = False) -> Tensor:
    """Return what one more of each element of the way's end would add, by what one more of its begin's would.

    Both float32, of the shapes that were recorded. With `adding`, of what comes back to an activation only what would
    add goes on.
    """
    with torch.inference_mode(False), torch.no_grad():
        if not way.parts:
            way.parts.update(_parts(recording, way))
        waiting = {way.begin: pull.clone()}
        for node, sources in way.steps:
            above = waiting.pop(node)
            above = above.clamp(min=0) if adding and node.target in ACTIVATIONS else above
            for source, own in passed(recording, node, sources, above, way.parts[node]):
                waiting[source] = waiting[source] + own if source in waiting else own
    return waiting[way.end]


def _parts(recording: Recording, way: Way) -> Iterator[tuple[fx.Node, slice]]:
    """Yield of each step the features of its output that evidence comes to, where it is a linear layer.

    Where one layer makes queries, keys and values, these are the values: the same ones whatever the images are.
    """
    waiting: dict[fx.Node, Tensor | None] = {way.begin: None}
    for node, sources in way.steps:
        above, part = waiting.pop(node), slice(None)
        if above is not None and node.target is aten.linear.default:
            features = above.reshape(-1, above.shape[-1]).any(0).nonzero()
            part = slice(int(features.min()), int(features.max()) + 1) if len(features) else part
        yield node, part
        for source, own in reached(recording, node, sources, above):
            other = waiting.get(source, own)
            waiting[source] = None if own is None or other is None else own | other


def told_points(
    recording: Recording,
    begin: fx.Node,
    places: tuple[int, ...],
    image: Tensor,
    target: Tensor,
    weight: Tensor | None,
    adds: Callable[[Tensor], Tensor],
) -> Points:
    """Return where the walk goes on in a map of which `adds` tells what each element adds to its image's target.

    It is given what one more of each element of `begin` would add. `image` and `target`, int64 (T,), say what is
    explained, with `weight`, (T, D), of the features if that is what the head reads; `places` are the map's. Those that
    lie above the mean of its class map go on, each at the channel that adds most (see `class_map_points`). A target for
    which nothing speaks, or to leave out (-1), has no points. One round for all images, one more for images with two.
    """
    nothing = torch.zeros(0, dtype=torch.int64, device=target.device)
    found = [Points(nothing, nothing, nothing.float())]
    for own in _one_by_one(image, target):
        added = adds(_asked(recording, begin, image[own], target[own], None if weight is None else weight[own]))
        speaks = (added > 0).flatten(1).any(1)[image[own]]
        own = own[speaks]
        features = added[0].numel() // math.prod(added.shape[dim] for dim in places)
        ones = added.new_ones(len(own), features)
        found.append(class_map_points(added, places, image[own], ones, own))
    index, trace, mass = (torch.cat([getattr(part, name) for part in found]) for name in ("index", "trace", "mass"))
    return Points(index, trace, mass)


def _asked(recording: Recording, begin: fx.Node, image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """What one more of each element of `begin` would add to its image's target; one target per image at most."""
    head, shape = recording.graph.head, recording.shapes[begin]
    pull = torch.zeros(shape, device=image.device).flatten(1)
    if head is None:
        pull[image, target] = 1.0
    else:
        assert weight is not None
        position = head.position(shape[1:], image.device)
        pull[image[:, None, None], position] = head.on_map(weight).float()[:, None]
    return pull.view(shape)


def _one_by_one(image: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Targets, int64 (T',), so that no image has two at a time; none that is below 0 (not asked for)."""
    wanted = (target >= 0).nonzero()[:, 0]
    alike, order = image[wanted].sort(stable=True)
    before = torch.arange(len(order), device=order.device) - torch.searchsorted(alike, alike)
    turn = torch.empty_like(order).index_copy_(0, order, before)
    for number in range(int(turn.max()) + 1 if len(turn) else 0):
        yield wanted[turn == number]
