"""Linear layers: which inputs excited the neuron (paper, Alg. 1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fixcore.points import Points, is_vector, numbered
from fixcore.rules.table import Flow, Visit, rule

aten = torch.ops.aten

_CHUNK = 1 << 21
"""Elements of the (points, inputs) product held at once."""
_WORTH_COPYING = 4
"""Weights of fewer than one in so many neurons are copied, and those alone multiplied."""
_WEIGHTS = 1 << 22
"""Weights copied at once: few enough to stay in cache until they are multiplied, many enough to multiply them well."""


@rule(aten.linear.default, keeps=("input",), keeps_of_vectors=("result",))
def exciting_inputs(visit: Visit, points: Points) -> Flow:
    """Go to the inputs whose product with the weight drove the neuron, mass in proportion to the products.

    On a vector (N, in) to every such input (Alg. 1); where evidence is net to every input, by what it adds to the
    target or takes away. On tokens (N, ..., in) the layer works like a 1x1 convolution at
    each token, and only the largest product wins, as there. On a flattened map `fc_to_map="argmax"` also keeps one (the
    released code). A neuron that nothing drove goes to its largest product, be it negative, so that no point is lost;
    ties to the first. Mass: kept whole.
    """
    values, weight = visit.tensor("input"), visit.tensor("weight")
    inputs = weight.shape[1]
    token = torch.div(points.index, weight.shape[0], rounding_mode="floor")
    neuron = points.index - token * weight.shape[0]
    by_token = values.reshape(-1, inputs)
    if is_vector(values.shape) and not (visit.options.fc_to_map == "argmax" and comes_from_map(visit)):
        return [(visit.source("input"), behind_vectors(visit, by_token, weight, token, neuron, points))]
    flow = []
    for part in parts(len(points), inputs):
        piece = points.part(part)
        product = by_token[token[part]] * weight[neuron[part]]
        flow.append((visit.source("input"), piece.moved(token[part] * inputs + product.argmax(1))))
    return flow


def excitation(product: Tensor) -> tuple[Tensor, Tensor]:
    """Say which of B inputs drove each of P neurons, and their share of its mass (Alg. 1).

    `product` is activation times weight, (P, B). Returns `kept` bool (P, B) and `share` float32 (P, B), which sums
    to 1 over the kept. A neuron that nothing drove goes to its largest product; ties to the first.
    """
    positive = product.float().clamp(min=0)
    kept = positive > 0
    lost = ~kept.any(1)
    fallback = torch.zeros_like(kept).scatter_(1, product.argmax(1, keepdim=True), lost[:, None])
    weight = torch.where(fallback, 1.0, positive)
    return kept | fallback, weight / weight.sum(1, keepdim=True)


def behind_vectors(
    visit: Visit, by_token: Tensor, weight: Tensor, token: Tensor, neuron: Tensor, points: Points
) -> Points:
    """Share every neuron's mass among its inputs: by what they add, or where mass has no sign as `excitation` does.

    `by_token` is (L, in), `weight` (out, in); `token` and `neuron`, int64 (P,), say where the points stand. Returns
    positions in `by_token`.
    """
    if points.signed:
        return _shared_by_sign(by_token, weight, token, neuron, points, visit.result.reshape(-1)[points.index])
    return _shared_among_drivers(by_token, weight, token, neuron, points)


def _shared_by_sign(
    by_token: Tensor, weight: Tensor, token: Tensor, neuron: Tensor, points: Points, value: Tensor
) -> Points:
    """Give every input what it adds to the target, or takes away: its value, times what one more of it would add.

    A neuron's mass by its `value`, (P,), is what one more of that would add. A neuron at 0 adds nothing, and ends here.
    """
    trace, own_token, row = _pairs(points, token, len(by_token))
    per_unit = torch.where(value != 0, points.mass / value.float(), 0.0)
    pull = torch.zeros(len(trace), len(weight), device=weight.device)
    pull.index_put_((row, neuron), per_unit, accumulate=True)
    active, _ = numbered(neuron, len(weight))
    if weight.dtype == torch.float32 and len(active) * _WORTH_COPYING > len(weight):
        added = pull @ weight
    else:
        added = torch.zeros(len(trace), weight.shape[1], device=weight.device)
        for part, own in _by_pieces(weight, active):
            added.addmm_(pull[:, active[part]], own)
    added *= by_token[own_token]
    row, place = added.nonzero(as_tuple=True)
    index = own_token[row] * weight.shape[1] + place
    return Points(index, trace[row], added[row, place], distinct=True, signed=True)


def _shared_among_drivers(by_token: Tensor, weight: Tensor, token: Tensor, neuron: Tensor, points: Points) -> Points:
    """Share every neuron's mass among all inputs that drove it, as `excitation` does, by matrix products.

    The products a_i w_ji are never written out: the positive ones are those of a+ w+ and a- w-.
    """
    inputs = weight.shape[1]
    trace, own_token, row = _pairs(points, token, len(by_token))
    values = by_token[own_token].float()
    signs = [1, -1] if bool((values < 0).any()) else [1]  # after a ReLU nothing is negative
    driving = [(values * sign).clamp_(min=0) for sign in signs]
    by_pull = [torch.zeros_like(values) for _ in signs]  # what each side of the weights passed on, not yet times values
    arrived = torch.zeros_like(values)
    active, column = numbered(neuron, len(weight))
    mass = torch.zeros(len(trace), len(active), device=weight.device)
    mass.index_put_((row, column), points.mass, accumulate=True)
    for part, own in _by_pieces(weight, active):
        pulls = [_pull(own if sign == signs[-1] else own.clone(), sign) for sign in signs]
        driven = torch.stack([value @ pull.T for value, pull in zip(driving, pulls, strict=True)]).sum(0)
        share = torch.where(driven > 0, mass[:, part] / driven, 0.0)
        for went, pull in zip(by_pull, pulls, strict=True):
            went.addmm_(share, pull)
        lost_row, lost_column = ((driven <= 0) & (mass[:, part] != 0)).nonzero(as_tuple=True)
        if len(lost_row):
            least = (values[lost_row] * weight[active[part][lost_column]].float()).argmax(1)
            arrived.index_put_((lost_row, least), mass[lost_row, lost_column + part.start], accumulate=True)
    for value, went in zip(driving, by_pull, strict=True):
        arrived.addcmul_(value, went)
    row, place = arrived.nonzero(as_tuple=True)
    return Points(own_token[row] * inputs + place, trace[row], arrived[row, place], distinct=True)


def _pairs(points: Points, token: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of every target and token that it has points at, the two, int64 (Q,); and which pair each point is of."""
    targets = int(points.trace.max()) + 1 if len(points) else 0
    pair, row = numbered(points.trace * tokens + token, targets * tokens)
    trace = torch.div(pair, tokens, rounding_mode="floor")
    return trace, pair - trace * tokens, row


def _by_pieces(weight: Tensor, active: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows `active` of a weight, float32, some at a time: which of them, and a copy that may be changed."""
    pieces = parts(len(active), weight.shape[1], _WEIGHTS)
    rows = weight.new_empty(len(active[pieces[0]]) if pieces else 0, weight.shape[1])  # fresh memory costs as much
    for part in pieces:
        of_part = active[part]
        yield part, torch.index_select(weight, 0, of_part, out=rows[: len(of_part)]).float()


def _pull(weight: Tensor, sign: int) -> Tensor:
    """Keep, in place, what of the weights has a sign, and make it positive."""
    return (weight if sign > 0 else weight.neg_()).clamp_(min=0)


def parts(count: int, width: int, size: int = _CHUNK) -> list[slice]:
    """Cut `count` rows of `width` elements so that no part holds more than about `size` of them."""
    step = max(1, size // max(1, width))
    return [slice(start, start + step) for start in range(0, count, step)]


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
