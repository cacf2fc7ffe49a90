"""Tokens: what each place of the map that they were made of adds to a target, whatever attention moved where.

Attention carries what a token holds to others: behind a few layers tokens no longer tell where in the image it came
from. So from the logit to the map evidence is followed as among vectors, all of it and with a sign (see `slopes`), and
what the elements of a place add together is a class map. Beyond the paper.

N images, T targets, L places, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.class_map import class_map_points
from fixcore.network.head import Head
from fixcore.network.slopes import followed, passed
from fixcore.network.vectors_end import PLACES
from fixcore.points import Points, is_vector
from fixcore.rules.attention import looked_at
from fixcore.rules.elementwise import SOFTMAX
from fixcore.rules.layout import LAYOUT

if TYPE_CHECKING:
    from fixcore.network.graph import Recording

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The part of a network behind the last map that all evidence passes before tokens mix."""

    begin: fx.Node
    """The features that the head reads, or the logits."""
    map: fx.Node
    """(N, D, H, W) or (N, L, D)."""
    way: tuple[tuple[fx.Node, list[fx.Node]], ...]
    """From `begin` back to before `map`: operations that evidence passes, and those that it goes to from each."""
    kept: frozenset[fx.Node]
    """What the way back reads."""

    @property
    def places(self) -> tuple[int, ...]:
        """Dimensions of the map's places."""
        return PLACES[len(self.map.meta["seen"].shape)]


def find_tokens(
    nodes: Sequence[fx.Node], arguments: Mapping[fx.Node, Mapping[str, Any]], logits: fx.Node, head: Head | None
) -> Tokens | None:
    """Return the tokens of a network; None where no tokens mix behind the last map, or an operation has no rule here.

    Tokens mix where one attends to others, and where a linear layer reads tokens: there, too, they may stand where
    features stood (mixers).
    """
    begin = logits if head is None else head.map
    while head is None and begin.target in SOFTMAX:
        begin = begin.all_input_nodes[0]
    way: list[tuple[fx.Node, list[fx.Node]]] = []
    kept: set[fx.Node] = set()
    found, mixes = None, False
    waiting = {begin}
    for node in reversed(nodes):
        if node not in waiting:
            continue
        if waiting == {node} and mixes and _is_map(node):
            found = Tokens(begin, node, tuple(way), frozenset(kept))
        known = followed(node, arguments[node])
        if known is None:
            break
        sources, read = known
        mixes = mixes or looked_at(node) is not None or (node.target is aten.linear.default and not _is_vector(node))
        waiting = (waiting - {node}).union(sources)
        way.append((node, sources))
        kept.update(read)
    return found


def token_points(recording: Recording, tokens: Tokens, image: Tensor, target: Tensor, weight: Tensor | None) -> Points:
    """Return where the walk goes on: at `tokens.map`, the places whose class map lies above its mean.

    `image` and `target`, int64 (T,), say what is explained, with `weight`, (T, D), of the features if `tokens.begin`
    is what the head reads. Each place has the channel that adds most (see `class_map_points`). A target for which
    nothing speaks, or to leave out (-1), has no points. One round for all images, one more for images with two targets.
    """
    asked = (target >= 0).nonzero()[:, 0]
    order = image[asked].argsort(stable=True)
    _, count = torch.unique_consecutive(image[asked][order], return_counts=True)
    first = (count.cumsum(0) - count).repeat_interleave(count)
    turn = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device) - first)
    found = []
    for number in range(int(turn.max()) + 1 if len(turn) else 0):
        own = asked[turn == number]
        pull = _asked(recording, tokens.begin, image[own], target[own], None if weight is None else weight[own])
        added = _pull_at_map(recording, tokens, pull) * recording.values[tokens.map].float()
        speaks = (added > 0).flatten(1).any(1)[image[own]]
        own = own[speaks]
        features = added[0].numel() // math.prod(added.shape[dim] for dim in tokens.places)
        ones = added.new_ones(len(own), features)
        found.append(class_map_points(added, tokens.places, image[own], ones, own))
    nothing = torch.zeros(0, dtype=torch.int64, device=target.device)
    parts = [Points(nothing, nothing, nothing.float()), *found]
    index, trace, mass = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "trace", "mass"))
    return Points(index, trace, mass)


def _asked(recording: Recording, begin: fx.Node, image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """What one more of each element where the way back begins would add to its image's target."""
    head, shape = recording.graph.head, recording.shapes[begin]
    pull = torch.zeros(shape, device=image.device).flatten(1)
    if head is None:
        pull[image, target] = 1.0
    else:
        assert weight is not None
        position = head.position(shape[1:], image.device)
        pull[image[:, None, None], position] = head.on_map(weight).float()[:, None]
    return pull.view(shape)


def _pull_at_map(recording: Recording, tokens: Tokens, pull: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        waiting = {tokens.begin: pull.clone()}
        for node, sources in tokens.way:
            for source, own in passed(recording, node, sources, waiting.pop(node)):
                waiting[source] = waiting[source] + own if source in waiting else own
    return waiting[tokens.map]


def _is_map(node: fx.Node) -> bool:
    """Whether a node has places, and holds what was computed there."""
    shape = node.meta["seen"].shape
    return node.target not in LAYOUT and len(shape) in PLACES and None not in shape[1:] and not _is_vector(node)


def _is_vector(node: fx.Node) -> bool:
    return is_vector(node.meta["seen"].shape)
