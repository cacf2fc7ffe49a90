"""Linear layers: which inputs excited the neuron (paper, Alg. 1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fixcore.points import Points
from fixcore.rules.table import Flow, Visit, rule

aten = torch.ops.aten

_CHUNK = 1 << 21
"""Elements of the (points, inputs) product held at once."""


@rule(aten.linear.default, keeps=("input",))
def exciting_inputs(visit: Visit, points: Points) -> Flow:
    """Go to the inputs whose product with the weight is positive.

    On a vector (N, in): every such input (`vector="positive"`, Alg. 1), or the strongest that together hold half of
    the positive mass ("half"). On tokens (N, ..., in) the layer works like a 1x1 convolution at each token, and
    only the strongest input wins, as there. On a flattened map `fc_to_map="argmax"` also keeps one (the released
    code). Mass: shared in proportion to the products.
    """
    values, weight = visit.tensor("input"), visit.tensor("weight")
    inputs = weight.shape[1]
    token = torch.div(points.index, weight.shape[0], rounding_mode="floor")
    neuron = points.index - token * weight.shape[0]
    by_token = values.reshape(-1, inputs)
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
            kept, share = excitation(product, visit.options.vector)
            moved = piece.spread(token[part, None] * inputs + own, kept, share)
        flow.append((visit.source("input"), moved))
    return flow


def excitation(product: Tensor, follow: Literal["positive", "half"]) -> tuple[Tensor, Tensor]:
    """Say which of B inputs excited each of P neurons, and their share of its mass.

    `product` is activation times weight, (P, B). Returns `kept` bool (P, B) and `share` float32 (P, B), which sums
    to 1 over the kept. "half" keeps the fewest strongest inputs that hold at least half of the positive mass; of
    equal ones the first. A neuron that nothing excited goes to its largest product, be it negative, so that no
    point is lost.
    """
    positive = product.float().clamp(min=0)
    if follow == "half":
        strongest, order = torch.sort(positive, dim=1, descending=True, stable=True)
        before = strongest.cumsum(1) - strongest
        needed = before * 2 < strongest.sum(1, keepdim=True)
        kept = torch.zeros_like(needed).scatter_(1, order, needed & (strongest > 0))
    else:
        kept = positive > 0
    lost = ~kept.any(1)
    fallback = torch.zeros_like(kept).scatter_(1, product.argmax(1, keepdim=True), lost[:, None])
    kept = kept | fallback
    weight = torch.where(fallback, 1.0, positive * kept)
    return kept, weight / weight.sum(1, keepdim=True)


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
