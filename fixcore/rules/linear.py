"""Linear layers: which inputs excited the neuron (paper, Alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fixcore.points import Points
from fixcore.rules.table import Flow, Visit, rule

aten = torch.ops.aten

_CHUNK = 1 << 21
"""Elements of the (points, inputs) product held at once."""
_WEIGHTS = 1 << 22
"""Weights copied at once."""
_ROUNDING = 1e-6
"""A half that is missed by rounding alone is a half."""


@rule(aten.linear.default, keeps=("input",))
def exciting_inputs(visit: Visit, points: Points) -> Flow:
    """Go to the inputs whose product with the weight is positive, mass in proportion to the products.

    On a vector (N, in): to every such input (`vector="positive"`, Alg. 1), or of the inputs to which all points of a
    target lead, to the strongest that together hold half of the mass ("half"; see `strongest_half`). On tokens
    (N, ..., in) the layer works like a 1x1 convolution at each token, and only the largest product wins, as there. On
    a flattened map `fc_to_map="argmax"` also keeps one (the released code). A neuron that nothing excited goes to its
    largest product, be it negative, so that no point is lost. Mass: kept whole.
    """
    values, weight = visit.tensor("input"), visit.tensor("weight")
    source = visit.source("input")
    inputs = weight.shape[1]
    token = torch.div(points.index, weight.shape[0], rounding_mode="floor")
    neuron = points.index - token * weight.shape[0]
    by_token = values.reshape(-1, inputs)
    if values.dim() == 2 and visit.options.vector == "half" and visit.options.fc_to_map == "all":
        return [(source, _strongest_inputs(by_token, weight, token, neuron, points))]
    one_wins = values.dim() > 2 or (visit.options.fc_to_map == "argmax" and comes_from_map(visit))
    own = torch.arange(inputs, device=values.device)
    flow = []
    step = max(1, _CHUNK // inputs)
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        product = by_token[token[part]] * weight[neuron[part]]
        piece = Points(points.index[part], points.trace[part], points.mass[part])
        if one_wins:
            moved = piece.moved(token[part] * inputs + product.argmax(1))
        else:
            moved = piece.spread(token[part, None] * inputs + own, *excitation(product))
        flow.append((source, moved))
    if not one_wins and visit.options.vector == "half":
        return [(source, strongest_half([moved for _, moved in flow], values.shape))]
    return flow


def excitation(product: Tensor) -> tuple[Tensor, Tensor]:
    """Say which of B inputs excited each of P neurons, and their share of its mass (Alg. 1).

    `product` is activation times weight, (P, B). Returns `kept` bool (P, B) and `share` float32 (P, B), which sums
    to 1 over the kept. A neuron that nothing excited goes to its largest product; ties to the first.
    """
    positive = product.float().clamp(min=0)
    kept = positive > 0
    lost = ~kept.any(1)
    fallback = torch.zeros_like(kept).scatter_(1, product.argmax(1, keepdim=True), lost[:, None])
    weight = torch.where(fallback, 1.0, positive)
    return kept | fallback, weight / weight.sum(1, keepdim=True)


def strongest_half(parts: list[Points], shape: Sequence[int]) -> Points:
    """Keep, of all places of an output of `shape` to which a target's points lead, the strongest.

    These are the fewest that together hold at least half of the mass, of equal ones the first; they share all of it in
    proportion. Images come first in `shape`, and a target's points lie in one image.
    """
    per_image = math.prod(shape[1:])
    index, trace, mass = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "trace", "mass"))
    target, row = torch.unique(trace, return_inverse=True)
    image = torch.zeros_like(target).index_put_((row,), torch.div(index, per_image, rounding_mode="floor"))
    arrived = torch.zeros(len(target), per_image, device=mass.device)
    arrived.index_put_((row, index - image[row] * per_image), mass, accumulate=True)
    return _kept_half(arrived, image * per_image, target)


def _kept_half(arrived: Tensor, first: Tensor, target: Tensor) -> Points:
    """Prune `arrived` (T, B), the mass at each place; `first` is the position of place 0, `target` the trace, (T,)."""
    strongest, order = torch.sort(arrived, dim=1, descending=True, stable=True)
    held = strongest.double().cumsum(1)
    total = held[:, -1:]
    needed = ((held - strongest) * 2 < total * (1 - _ROUNDING)) & (strongest > 0)
    row, rank = needed.nonzero(as_tuple=True)
    place = order[row, rank]
    scale = total[:, 0] / held.gather(1, needed.sum(1, keepdim=True).clamp(min=1) - 1)[:, 0]
    mass = strongest[row, rank] * scale.to(strongest.dtype)[row]
    return Points(first[row] + place, target[row], mass, distinct=True)


def _strongest_inputs(by_token: Tensor, weight: Tensor, token: Tensor, neuron: Tensor, points: Points) -> Points:
    """Share every neuron's mass among all inputs that excite it, and keep the strongest half; two matrix products.

    The products a_i w_ji are never written out: their positive parts are those of a+ w+ and a- w-.
    """
    inputs = weight.shape[1]
    target, row = torch.unique(points.trace, return_inverse=True)
    image = torch.zeros_like(target).index_put_((row,), token)
    active, column = torch.unique(neuron, return_inverse=True)
    mass = torch.zeros(len(target), len(active), device=weight.device)
    mass.index_put_((row, column), points.mass, accumulate=True)
    values = by_token[image].float()
    signs = [1, -1] if bool((values < 0).any()) else [1]  # after a ReLU nothing is negative
    arrived = torch.zeros_like(values)
    step = max(1, _WEIGHTS // inputs)
    for start in range(0, len(active), step):
        part = slice(start, start + step)
        own = weight[active[part]].float()
        parts = [((values * sign).clamp(min=0), (own * sign).clamp(min=0)) for sign in signs]
        excited = torch.stack([value @ wanted.T for value, wanted in parts]).sum(0)
        share = torch.where(excited > 0, mass[:, part] / excited, 0.0)
        for value, wanted in parts:
            arrived += value * (share @ wanted)
        lost_row, lost_column = ((excited <= 0) & (mass[:, part] > 0)).nonzero(as_tuple=True)
        if len(lost_row):
            least = (values[lost_row] * own[lost_column]).argmax(1)
            arrived.index_put_((lost_row, least), mass[lost_row, lost_column + start], accumulate=True)
    return _kept_half(arrived, image * inputs, target)


def comes_from_map(visit: Visit) -> bool:
    """Whether the layer's input is a flattened map: a view of something with more than one place per channel."""
    node = visit.source("input")
    while node.op == "call_function" and node.target in (
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.clone.default,
    ):
        node = node.all_input_nodes[0]
        shape = visit.shapes[node]
        if len(shape) > 2 and shape[2:].numel() > 1:
            return True
    return False
