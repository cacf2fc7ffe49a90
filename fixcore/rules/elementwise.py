"""Elementwise operations: activations pass through, sums and products choose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from fixcore.points import Points, ravel, unravel
from fixcore.rules.table import Flow, Visit, rule
from fixcore.structure import arguments_by_name

aten = torch.ops.aten


PASSES = (
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.rrelu.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.threshold.default,
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.mish.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.log_sigmoid.default,
    aten.tanh.default,
    aten.softplus.default,
    aten.dropout.default,
    aten.abs.default,
    aten.exp.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.sign.default,
    aten.log.default,
    aten.log1p.default,
    aten.log2.default,
    aten.log10.default,
    aten.exp2.default,
    aten.expm1.default,
    aten.atan.default,
    aten.round.default,
    aten.floor.default,
    aten.ceil.default,
    aten.trunc.default,
    aten.fmod.Scalar,
    aten.remainder.Scalar,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.masked_fill.Scalar,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.softmax.int,
    aten.log_softmax.int,
)
"""Operations that change each element where it stands."""

SCALES = (aten.neg.default, aten.mul.Scalar, aten.div.Scalar)
"""Operations that multiply each element by a number."""

BY_ELEMENT = frozenset({
    *PASSES, *SCALES, aten.rsub.Scalar, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor,
} - {aten.softmax.int, aten.log_softmax.int})  # fmt: skip
"""Operations of which an element depends on the same element of what is not constant among their operands."""

LIFTED = (
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.log_sigmoid.default,
    aten.softplus.default,
    aten.exp.default,
    aten.exp2.default,
    aten.cos.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.hardtanh.default,
    aten.threshold.default,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.rsub.Scalar,
)
"""Operations that make something of nothing: at 0 they may not be 0, and that much no input added."""

SOFTMAX = (aten.softmax.int, aten.log_softmax.int)
"""Operations that say of each element how it stands among the others."""

REORDERED = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.clone.default,
)
"""Operations that hold each element of their input once, in whatever order."""

CHOOSES_BY_CONDITION = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
"""Operations that choose between elements by a condition, their first argument."""

_REPEATED = (aten.expand.default, aten.repeat.default)
_SCALED = (*SCALES, aten.mul.Tensor, aten.div.Tensor)
_GATES = (aten.sigmoid.default, aten.hardsigmoid.default, aten.softmax.int)
"""Operations whose results say how much of something passes."""


def turns_round(node: fx.Node) -> bool:
    """Whether a larger element becomes a smaller one: 1 / x, 1 / sqrt(x)."""
    if node.target is aten.pow.Tensor_Scalar:
        exponent = arguments_by_name(node)["exponent"]
        return isinstance(exponent, int | float) and exponent < 0
    return node.target in (aten.reciprocal.default, aten.rsqrt.default)


@rule(*PASSES, *SCALES, aten.rsub.Scalar, keeps_of_vectors=("self", "input"))
def same_place(visit: Visit, points: Points) -> Flow:
    """Stay: the element itself was changed, none was moved. Mass: kept whole, but for what no input added.

    That is where evidence is net, of sigmoid(x) what it has beyond sigmoid(0), of c - x what x takes away. A softmax
    sets elements against each other: there one more of the element counts as one more of what it becomes. As a divisor,
    an element speaks against what it divides (see `numerator`), also where 1 / x is an operation of its own.
    """
    name = "self" if "self" in visit.arguments else "input"
    if points.signed and visit.node.target in (*LIFTED, *SOFTMAX):
        points = points.times(_added(visit, visit.tensor(name)).reshape(-1)[points.index])
    if points.signed and turns_round(visit.node):
        points = points.times(-1)
    return [(visit.source(name), points)]


def _added(visit: Visit, values: Tensor) -> Tensor:
    """What of each element its input added, as a share of it; 0 where there is none."""
    result = visit.again()
    if visit.node.target in SOFTMAX:
        added = values
    else:
        others = {**visit.values, visit.source("self" if "self" in visit.arguments else "input"): values.new_zeros(())}
        added = result - visit.node.target(**fx.node.map_arg(visit.arguments, others.__getitem__))  # type: ignore[operator]
    return _share(added, result)


def _share(added: Tensor, whole: Tensor) -> Tensor:
    """Of what is, the part that was added, float32: in half precision a share of very little is soon infinite."""
    return torch.where(whole != 0, added.float() / whole.float(), 0.0)


@rule(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, keeps=("self", "other"))
def larger_branch(visit: Visit, points: Points) -> Flow:
    """Skip connection: follow the branch that adds more; ties to the branch computed earlier (the skip).

    A constant is no branch, nor is an element that no pixel reaches where the other branch has one. A branch that was
    broadcast is followed to the element it was read from. Mass: kept whole. Where evidence is net all branches are
    followed, each with what it adds or takes away; a constant's part ends here.
    """
    branches = _branches(visit, ("self", "other"))
    if points.signed:
        total = visit.again().reshape(-1)[points.index]
        return [
            (branch, points.times(_share(added, total)).moved(index))
            for branch, index, added in _read(visit, branches, points)
        ]
    if len(branches) < 2:
        return [(branch, _moved_into(visit, branch, points)) for branch in branches]
    (first, first_index, left), (second, second_index, right) = _read(visit, branches, points)
    left, right = (visit.without_blanks(*own) for own in ((first, first_index, left), (second, second_index, right)))
    goes_first = left >= right
    return [
        (branch, points.moved(index, apart=index is points.index).where(goes))
        for branch, index, goes in ((first, first_index, goes_first), (second, second_index, ~goes_first))
    ]


@rule(aten.maximum.default, aten.minimum.default, keeps=("self", "other"))
def taken_branch(visit: Visit, points: Points) -> Flow:
    """Larger (smaller) of two: follow the one that was taken; ties to the branch computed earlier. Mass: kept whole.

    A constant is no branch: where it was taken, the other one is followed, which let it be.
    """
    found = [(branch, _moved_into(visit, branch, points)) for branch in _branches(visit, ("self", "other"))]
    if len(found) < 2:
        return found
    left, right = (visit.values[branch][unravel(own.index, visit.shapes[branch])] for branch, own in found)
    goes_first = left >= right if visit.node.target is aten.maximum.default else left <= right
    return [(branch, own.where(goes)) for (branch, own), goes in zip(found, (goes_first, ~goes_first), strict=True)]


@rule(*CHOOSES_BY_CONDITION, keeps=("condition",))
def chosen_branch(visit: Visit, points: Points) -> Flow:
    """Choice by a condition: follow the element that was chosen. Mass: kept whole.

    A constant is no branch: where it was chosen, the other one is followed, which made room for it.
    """
    chosen = visit.tensor("condition").expand(visit.shape)[unravel(points.index, visit.shape)]
    branches = [(visit.arguments["self"], chosen), (visit.arguments["other"], ~chosen)]
    followed = [(one, goes) for one, goes in branches if isinstance(one, fx.Node) and not one.meta["is_constant"]]
    if len(followed) < 2:
        return [(branch, _moved_into(visit, branch, points)) for branch, _ in followed]
    return [(branch, _moved_into(visit, branch, points).where(goes)) for branch, goes in followed]


@rule(aten.glu.default)
def gated_half(visit: Visit, points: Points) -> Flow:
    """Gated linear unit: follow the half that passes, past the half that is its gate. Mass: kept whole."""
    dim = visit.plain("dim") % len(visit.shape)
    passes, inner = visit.shape[dim], visit.shape[dim + 1 :].numel()
    outer = torch.div(points.index, passes * inner, rounding_mode="floor")
    return [(visit.source("self"), points.moved(points.index + outer * passes * inner, apart=True))]


@rule(aten.div.Tensor, aten.div.Tensor_mode)
def numerator(visit: Visit, points: Points) -> Flow:
    """Quotient: follow what is divided (normalisation), or if that is constant its divisor. Mass: kept whole.

    A larger divisor makes less of what is divided: where evidence is net, it speaks against.
    """
    divided = visit.source("self")
    branch = visit.source("other") if divided.meta["is_constant"] else divided
    moved = _moved_into(visit, branch, points)
    return [(branch, moved if branch is divided or not moved.signed else moved.times(-1))]


@rule(aten.mul.Tensor)
def gated(visit: Visit, points: Points) -> Flow:
    """Product: follow the feature map past its gate (squeeze-excite, layer scale); a constant is no branch.

    The gate is the branch that was broadcast, by the product or before it, and so holds fewer elements. Between
    branches of one size neither is only a gate (LSTM, paper III-D): both are followed, each with half of the mass.
    Where evidence is net, of those of an LSTM, too, only what passes: a gate says how much. A map that gates itself, as
    in x sigmoid(x), is an activation, and its gate is not followed.
    """
    branches = factors(_branches(visit, ("self", "other")), lambda node: visit.shapes[node].numel(), points.signed)
    part = points.times(1 / len(branches))
    return [(branch, _moved_into(visit, branch, part)) for branch in branches]


def factors(branches: list[fx.Node], size: Callable[[fx.Node], int], net: bool) -> list[fx.Node]:
    """Which factors of a product are followed (see `gated`): `size` says how many elements a node has."""
    held = {branch: size(_unrepeated(branch)) for branch in branches}
    branches = [branch for branch in branches if held[branch] == max(held.values())]
    branches = [branch for branch in branches if not any(_is_made_of(branch, other) for other in branches)]
    return [branch for branch in branches if not (net and _is_gate(branch))] or branches


def _unrepeated(node: fx.Node) -> fx.Node:
    """Where each element of a node stands once, however often it was repeated by `expand`."""
    while node.target in (*_REPEATED, *REORDERED):
        node = node.all_input_nodes[0]
    return node


def _is_made_of(node: fx.Node, source: fx.Node) -> bool:
    """Whether each element of a node depends on the same element of another one alone, and is not that itself.

    Scaled by a number it still is: `0.5 * x * (1 + erf(x))` is x past a gate of its own.
    """
    node, source = _unscaled(node), _unscaled(source)
    waiting, known = [node], {source}
    while waiting:
        here = waiting.pop()
        if here in known:
            continue
        known.add(here)
        sources = [one for one in here.all_input_nodes if not one.meta["is_constant"]]
        if here.target not in BY_ELEMENT or not sources:
            return False
        waiting.extend(sources)
    return node is not source


def _unscaled(node: fx.Node) -> fx.Node:
    """What a node is, but for constant factors and divisors."""
    while node.target in _SCALED:
        depends = [one for one in node.args if isinstance(one, fx.Node) and not one.meta["is_constant"]]
        if len(depends) != 1 or (node.target is aten.div.Tensor and depends[0] is not node.args[0]):
            break
        (node,) = depends
    return node


def _is_gate(node: fx.Node) -> bool:
    """Whether a node says how much of something passes, or how much does not."""
    while node.target in (aten.rsub.Scalar, *_REPEATED, *REORDERED):
        node = node.all_input_nodes[0]
    return node.target in _GATES


def _branches(visit: Visit, names: tuple[str, ...]) -> list[fx.Node]:
    """Operands that depend on the images, in the order they were computed."""
    operands = [visit.arguments[name] for name in names]
    found = [node for node in operands if isinstance(node, fx.Node) and not node.meta["is_constant"]]
    return sorted(found, key=lambda node: int(node.meta["position"]))


def _read(visit: Visit, branches: list[fx.Node], points: Points) -> list[tuple[fx.Node, Tensor, Tensor]]:
    found = []
    for branch in branches:
        index = _index_in(visit, branch, points)
        value = visit.values[branch]
        added = value[unravel(index, value.shape)]
        if branch is visit.arguments["other"]:
            added = added * _second_factor(visit)
        found.append((branch, index, added))
    return found


def _second_factor(visit: Visit) -> float:
    """What the second operand of a sum or difference is multiplied by."""
    return float(visit.arguments["alpha"] * (-1 if visit.node.target is aten.sub.Tensor else 1))


def _moved_into(visit: Visit, branch: fx.Node, points: Points) -> Points:
    index = _index_in(visit, branch, points)
    return points.moved(index, apart=index is points.index)


def _index_in(visit: Visit, branch: fx.Node, points: Points) -> Tensor:
    """Positions in a branch that was broadcast to the output's shape."""
    shape = visit.shapes[branch]
    if shape == visit.shape:
        return points.index
    coordinates = unravel(points.index, visit.shape)[len(visit.shape) - len(shape) :]
    return ravel(
        [torch.zeros_like(at) if extent == 1 else at for at, extent in zip(coordinates, shape, strict=True)], shape
    )
