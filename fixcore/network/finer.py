"""Finer class maps: where the last map has few places, one before it tells what in them speaks for a class.

A class map of 7 x 7 places says in which 32 pixels' squares something speaks for a class, not what. So the places above
its mean are asked again: what does each element of a finer map add to them, all ways between taken densely (see
`slopes`)? What takes away is left out: it says where in a coarse place nothing is, and would cancel what is beside it.
Beyond the paper; LayerCAM (Jiang et al., TIP 2021) weighs all of an inner map so.

N images, T targets, H x W places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.class_map import above_mean
from fixcore.network.head import Head
from fixcore.network.vectors_end import PLACES
from fixcore.network.way import Step, Way, explained, mixes, narrows, pulled, told_points
from fixcore.points import Points, is_vector
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.rules.elementwise import BY_ELEMENT
from fixcore.rules.layout import LAYOUT, PADS

if TYPE_CHECKING:
    from fixcore.network.graph import Recording

aten = torch.ops.aten

ENOUGH = 10
"""Places along the shorter side of a map that are not few."""

READS_IMAGES = frozenset({
    *CONVOLUTIONS, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.batch_norm.default,
})  # fmt: skip
"""Operations whose input of four dimensions is a map (N, C, H, W), not (N, H, W, C)."""
KEEPS_PLACES = BY_ELEMENT | PADS | {aten.cat.default}
"""Operations that leave rows and columns in the dimensions where they are."""
_ELSEWHERE = LAYOUT - {aten.cat.default}


@dataclass(frozen=True, slots=True, eq=False)
class Finer:
    """Two ways: from where evidence begins back to the last map, and on to the last one that has enough places."""

    to_coarse: Way
    to_fine: Way

    @property
    def end(self) -> fx.Node:
        """The finer map, (N, C, H, W)."""
        return self.to_fine.end


def find_finer(
    nodes: Sequence[fx.Node], arguments: Mapping[fx.Node, Mapping[str, Any]], logits: fx.Node, head: Head | None
) -> Finer | None:
    """Return the way to a finer map than the last; None where that has places enough, or no finer one can be reached.

    That is so where an operation on the way is not known to `slopes`, or tokens mix there: behind these a place does
    not hold what came from it.
    """
    begin = explained(logits, head)
    coarse: tuple[fx.Node, int] | None = None
    looked, maps = 0, set()
    steps: Sequence[Step] = ()
    for node, steps in narrows(nodes, arguments, begin):
        for step, sources in steps[looked:]:
            if mixes(step):
                return None
            if step.target in READS_IMAGES or (step in maps and step.target in KEEPS_PLACES):
                maps.update(sources)
        looked = len(steps)
        if coarse is None:
            if not _is_map(node):
                continue
            if _has_enough(node):
                return None
            coarse = node, looked
        elif node in maps and _has_enough(node) and node.target not in PADS:
            last, count = coarse
            return Finer(Way(begin, last, tuple(steps[:count])), Way(last, node, tuple(steps[count:])))
    return None


def rests_on(recording: Recording, finer: Finer) -> Tensor:
    """Return how much of all that the last map holds above 0 rests on each place of the finer one, float32 (N, h, w).

    What each element of the finer map adds to the sum of what is positive in the last, all ways between taken at once,
    but behind an activation only those that add (as guided backpropagation passes rectifiers: Springenberg et al.,
    Striving for Simplicity, 3.4); of a place the sum of what is positive. No class is asked.
    """
    last, fine = (_as_the_network_has_it(recording, way.end) for way in (finer.to_coarse, finer.to_fine))
    return (pulled(recording, finer.to_fine, (last > 0).float(), adding=True) * fine).clamp_(min=0).sum(1)


def finer_points(recording: Recording, finer: Finer, image: Tensor, target: Tensor, weight: Tensor | None) -> Points:
    """Return where the walk goes on: in the finer map, the places that add more than its mean (see `told_points`)."""
    last, fine = (_as_the_network_has_it(recording, way.end) for way in (finer.to_coarse, finer.to_fine))

    def adds(pull: Tensor) -> Tensor:
        pull = pulled(recording, finer.to_coarse, pull)
        class_map = (pull * last).sum(1)
        strong = above_mean(class_map.flatten(1)).view_as(class_map) > 0
        added: Tensor = pulled(recording, finer.to_fine, pull * strong[:, None]) * fine
        return added.clamp_(min=0)

    return told_points(recording, finer.to_coarse.begin, PLACES[4], image, target, weight, adds)


def _as_the_network_has_it(recording: Recording, node: fx.Node) -> Tensor:
    """Return a kept map in float32, with the ReLU that a maximum pool has yet to apply."""
    value: Tensor = recording.values[node].float()
    return value.clamp(min=0) if node.meta["rectifies"] else value


def _is_map(node: fx.Node) -> bool:
    shape = node.meta["seen"].shape
    return len(shape) == 4 and None not in shape[1:] and not is_vector(shape) and node.target not in _ELSEWHERE


def _has_enough(node: fx.Node) -> bool:
    shape = node.meta["seen"].shape
    return len(shape) == 4 and None not in shape[1:] and min(shape[2:]) >= ENOUGH
