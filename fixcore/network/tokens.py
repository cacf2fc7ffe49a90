"""Tokens: what each place of the map that they were made of adds to a target, whatever attention moved where.

Attention carries what a token holds to others: behind a few layers tokens no longer tell where in the image it came
from. So from the logit to the map evidence is followed as among vectors, all of it and with a sign (see `slopes`), and
what the elements of a place add together is a class map. Beyond the paper.

N images, T targets, L places, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.head import Head
from fixcore.network.vectors_end import PLACES
from fixcore.network.way import Step, Way, explained, mixes, narrows, pulled, told_points
from fixcore.points import Points, is_vector
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.rules.layout import LAYOUT

if TYPE_CHECKING:
    from fixcore.network.graph import Recording

aten = torch.ops.aten

_OF_IMAGES = frozenset({*CONVOLUTIONS, aten.max_pool2d.default})
"""Operations that see tokens as an image, or make them of one."""


def find_tokens(
    nodes: Sequence[fx.Node], arguments: Mapping[fx.Node, Mapping[str, Any]], logits: fx.Node, head: Head | None
) -> Way | None:
    """Return the way to the last map, (N, D, H, W) or (N, L, D), that all evidence passes before tokens mix.

    None where no tokens mix behind a map, or an operation there is not known to `slopes`. Tokens mix where one attends
    to others, and where a linear layer reads tokens: there, too, they may stand where features stood (mixers).
    """
    begin = explained(logits, head)
    found, mixed, looked = None, False, 0
    steps: Sequence[Step] = ()
    for node, steps in narrows(nodes, arguments, begin, beyond=_OF_IMAGES):
        mixed = mixed or any(mixes(step) for step, _ in steps[looked:])
        looked = len(steps)
        if mixed and _is_map(node):
            found = node, looked
    if found is None:
        return None
    end, count = found
    return Way(begin, end, tuple(steps[:count]))


def token_points(recording: Recording, tokens: Way, image: Tensor, target: Tensor, weight: Tensor | None) -> Points:
    """Return where the walk goes on: at the map, the places whose class map lies above its mean (see `told_points`)."""
    value = recording.values[tokens.end].float()
    places = PLACES[value.dim()]
    return told_points(
        recording, tokens.begin, places, image, target, weight, lambda pull: pulled(recording, tokens, pull) * value
    )


def _is_map(node: fx.Node) -> bool:
    """Whether a node has places, and holds what was computed there."""
    shape = node.meta["seen"].shape
    return node.target not in LAYOUT and len(shape) in PLACES and None not in shape[1:] and not is_vector(shape)
