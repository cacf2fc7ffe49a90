"""Every rule against its slow oracle, on integer-valued tensors so that ties are common and comparison exact."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fixcore
from fixcore.network.vectors_end import settled
from fixcore.points import Points, merged
from fixcore.rules import MASS, PAPER, linear, rule
from tests.fixcore.one_node import OneNode, check_against_oracle, one_node
from tests.oracles import ADDED, ORACLES, added, strongest_half, told_by_places

aten = torch.ops.aten

OPTIONS = [MASS, PAPER, replace(PAPER, location="argmax"), replace(PAPER, vector="net", fc_to_map="argmax")]
options = st.sampled_from(OPTIONS)
seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)


def integers(seed: int, *shape: int, low: int = -3, high: int = 3) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_every_rule_has_an_oracle():
    assert set(rule) == set(ORACLES)


@quick
@given(
    seed=seeds,
    options=options,
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    outs=st.integers(1, 2),
    extent=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels_last=st.booleans(),
)
def test_convolution(
    seed, options, batch, groups, channels, outs, extent, kernel, stride, padding, dilation, channels_last
):
    for axis in (0, 1):
        assume(extent[axis] + 2 * padding[axis] >= dilation[axis] * (kernel[axis] - 1) + 1)
        assume(padding[axis] < kernel[axis])
        assume(dilation[axis] == 1 or extent[axis] >= dilation[axis])  # else a window may lie on padding alone
    image = integers(seed, batch, groups * channels, *extent)
    weight = integers(seed + 1, groups * outs, channels, *kernel)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    arguments = (image, weight, None, list(stride), list(padding), list(dilation), groups)
    check_against_oracle(one_node(aten.conv2d.default, *arguments, options=options))


@quick
@given(seed=seeds, options=options, padding=st.sampled_from(["same", "valid"]), kernel=st.sampled_from([1, 3, 5]))
def test_convolution_with_padding_in_words(seed, options, padding, kernel):
    arguments = (integers(seed, 1, 2, 5, 6), integers(seed + 1, 2, 2, kernel, 3), None, [1, 1], padding, [1, 1], 1)
    with torch.no_grad():
        check_against_oracle(one_node(aten.conv2d.padding, *arguments, options=options))


def test_convolution_never_lands_on_padding():
    image = torch.ones(1, 1, 2, 2)
    weight = torch.ones(1, 1, 3, 3)
    case = one_node(aten.conv2d.default, image, weight, None, [1, 1], [2, 2], [1, 1], 1, options=MASS)
    assert case.result.shape == (1, 1, 4, 4)
    check_against_oracle(case)


@quick
@given(seed=seeds, options=options, tokens=st.integers(0, 2), inputs=st.integers(1, 6))
def test_linear(seed, options, tokens, inputs):
    shape = (2, *[3] * tokens, inputs)
    case = one_node(aten.linear.default, integers(seed, *shape), integers(seed + 1, 4, inputs), None, options=options)
    check_against_oracle(case)


VECTOR_LAYERS = [aten.linear.default, aten.conv2d.default, aten.mm.default]


def vector_layer(operation: Any, seed: int, inputs: int, low: int = -3) -> OneNode:
    """A layer of 5 neurons on 2 vectors, as each of the operations that may stand for one."""
    values, weight = integers(seed, 2, inputs, low=low), integers(seed + 1, 5, inputs)
    if operation is aten.linear.default:
        return one_node(operation, values, weight, None, options=MASS)
    if operation is aten.mm.default:
        return one_node(operation, values, weight.T.contiguous(), options=MASS)
    return one_node(operation, values[:, :, None, None], weight[:, :, None, None], None, options=MASS)


@quick
@given(
    seed=seeds,
    inputs=st.integers(1, 12),
    operation=st.sampled_from(VECTOR_LAYERS),
    low=st.sampled_from([0, -3]),
    held=st.sampled_from([linear._WEIGHTS, 24]),
    worth_copying=st.sampled_from([linear._WORTH_COPYING, 0]),
)
def test_vectors_are_asked_what_drove_them(seed, inputs, operation, low, held, worth_copying):
    case = vector_layer(operation, seed, inputs, low)
    # neurons in pieces, the last of them smaller
    with patch.object(linear, "_WEIGHTS", held), patch.object(linear, "_WORTH_COPYING", worth_copying):
        check_against_oracle(case)
        check_against_oracle(case, signed=True)


@quick
@given(seed=seeds, inputs=st.integers(1, 12), operation=st.sampled_from(VECTOR_LAYERS))
def test_what_speaks_against_a_target_is_taken_away(seed, inputs, operation):
    """All neurons of one image are one target's, some with mass below 0: what they tell adds up, and cancels."""
    case = vector_layer(operation, seed, inputs)
    mass = torch.tensor([1.0, -2.0, 3.0, -1.0, 2.0] * 2)
    points = Points(torch.arange(10), torch.arange(10) // 5, mass, signed=True)
    ((source, found),) = rule[operation].follow(case.visit, points)
    assert found.signed
    expected: Counter[tuple[int, ...]] = Counter()
    for element in range(10):
        for (_, place), share in added(case.given, (element // 5, element % 5, 0, 0)[: case.result.dim()]).items():
            expected[place] += share * float(mass[element])
    shape = case.visit.shapes[source]
    places = [tuple(int(i) for i in torch.unravel_index(at, shape)) for at in found.index]
    kept = dict(zip(places, found.mass.tolist(), strict=True))
    assert found.trace.tolist() == [place[0] for place in places], "a target stays in its image"
    for place in kept.keys() | expected.keys():
        assert kept.get(place, 0.0) == pytest.approx(expected[place], abs=1e-4)


SHAPES = st.sampled_from([(2, 3, 2, 2), (1, 4, 1, 3), (2, 3, 4), (1, 1, 5), (2, 6), (2, 3, 1, 1), (1, 2, 2, 2, 2)])


@quick
@given(shape=SHAPES, data=st.data())
def test_where_vectors_end_the_places_above_the_mean_go_on(shape, data):
    """Targets of one image each, some with a single place, some for which nothing speaks."""
    size = math.prod(shape)
    own = size // shape[0]
    point = st.tuples(st.integers(0, 3), st.integers(0, own - 1), st.integers(-5, 5))
    points = data.draw(st.lists(point, max_size=40, unique_by=lambda one: one[:2]))
    trace, index, mass = (torch.tensor([point[at] for point in points], dtype=torch.int64) for at in range(3))
    image = trace % shape[0]
    parts, places = settled(
        Points(image * own + index, trace, mass.float(), distinct=True, signed=True), torch.Size(shape)
    )
    found = merged(parts, size)
    assert not found.signed
    assert places in ((), {3: (1,), 4: (2, 3)}.get(len(shape), ()))
    for target in range(4):
        masses = {
            tuple(int(i) for i in torch.unravel_index(torch.tensor(target % shape[0] * own + at), shape)): float(weight)
            for which, at, weight in points
            if which == target
        }
        here = found.trace == target
        at = [tuple(int(i) for i in torch.unravel_index(one, shape)) for one in found.index[here]]
        expected = told_by_places(masses, torch.Size(shape))
        assert dict(zip(at, found.mass[here].tolist(), strict=True)) == pytest.approx(expected)
        assert places or len(expected) == 0 or expected == pytest.approx(strongest_half(masses))


SIGNED: list[tuple[Any, tuple[Any, ...], tuple[int, ...]]] = [
    (aten.add.Tensor, (torch.full((2, 3), 4.0), torch.full((2, 3), 2.0)), ()),
    (aten.add.Tensor, (torch.tensor([[4.0, -1.0, 2.0]] * 2), torch.tensor([1.0, 2.0, -3.0])), (1,)),
    (aten.add.Tensor, (torch.tensor([[4.0, -1.0, 2.0]] * 2), torch.tensor([[3.0], [-3.0]])), ()),
    (aten.sub.Tensor, (torch.full((2, 3), 2.0), torch.full((2, 3), 4.0)), ()),
    (aten.sub.Tensor, (torch.tensor([1.0, 2.0, 3.0]), torch.full((2, 3), 4.0)), (0,)),
    (aten.mul.Tensor, (torch.full((2, 3), 4.0), torch.tensor([2.0, -3.0, 1.0])), (1,)),
    (aten.mul.Tensor, (torch.tensor([[2.0, -3.0, 1.0]] * 2), torch.full((2, 3), 4.0)), (0,)),
    (aten.div.Tensor, (torch.full((2, 3), 4.0), torch.tensor([2.0, -4.0, 1.0])), (1,)),
    (aten.div.Tensor, (torch.full((2, 3), 4.0), torch.tensor([[2.0, -4.0, 1.0]] * 2)), (0,)),
    (aten.neg.default, (torch.ones(2, 3),), ()),
    (aten.rsub.Scalar, (torch.tensor([[1.0, 4.0, -1.0]] * 2), 3), ()),
    (aten.add.Scalar, (torch.tensor([[1.0, -4.0, -1.0]] * 2), 3), ()),
    (aten.mul.Scalar, (torch.ones(2, 3), -2), ()),
    (aten.div.Scalar, (torch.ones(2, 3), -2), ()),
    (aten.mul.Scalar, (torch.ones(2, 3), 2), ()),
    (aten.tanh.default, (torch.tensor([[0.5, -2.0, 1.0]] * 2),), ()),
    (aten.sigmoid.default, (torch.tensor([[0.5, -2.0, 1.0]] * 2),), ()),
    (aten.log_sigmoid.default, (torch.tensor([[0.5, -2.0, 1.0]] * 2),), ()),
    (aten.softplus.default, (torch.tensor([[0.5, -2.0, 1.0]] * 2),), ()),
    (aten.hardtanh.default, (torch.tensor([[0.5, 0.9, 0.7]] * 2), 0.25, 1), ()),
    (aten.softmax.int, (torch.tensor([[0.5, -2.0, 1.0]] * 2), 1), ()),
    (aten.log_softmax.int, (torch.tensor([[0.5, -2.0, 1.0]] * 2), 1), ()),
    (aten.batch_norm.default, (torch.ones(2, 3), torch.tensor([2.0, -3.0, 1.0]), None, torch.zeros(3), torch.ones(3),
                               False, 0.1, 1e-5, True), (1, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "arguments", "constants"), SIGNED, ids=lambda value: str(value)[:20])
def test_what_speaks_for_and_against_is_as_the_derivative_says(operation, arguments, constants):
    """A neuron that speaks for the target makes it higher where it moves away from 0; one that does not, lower."""
    case = one_node(operation, *arguments, options=MASS, constants=constants)
    points = Points(torch.arange(6), torch.arange(6), case.result.reshape(-1), signed=True)  # asked: what makes it high
    flow = [(source, moved) for source, moved in rule[operation].follow(case.visit, points) if len(moved)]
    assert sum(len(moved) for _, moved in flow) >= 6
    for source, moved in flow:
        position = next(i for i, at in enumerate(case.visit.node.args) if at is source)
        assert moved.signed
        for trace, index, mass in zip(moved.trace, moved.index, moved.mass, strict=True):
            pushed = arguments[position].clone()
            pushed.view(-1)[index] *= 1.01
            change = operation(*arguments[:position], pushed, *arguments[position + 1 :]) - case.result
            assert mass != 0
            assert change.view(-1)[trace].sign() == mass.sign()
        if operation in ADDED:
            check_against_oracle(case, signed=True)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (aten.softmax.int, (torch.tensor([[0.0, -16.5]] * 2), 1)),
        (aten.add.Tensor, (torch.ones(2, 2), 2 * torch.eye(2))),
    ],
    ids=["softmax", "sum"],
)
def test_shares_of_little_are_numbers_in_half_precision(operation, arguments):
    """A probability of 6e-8 is the least there is, and what made it so low is more than 65504 of it."""
    at, halves = torch.arange(4), [one.half() if isinstance(one, Tensor) else one for one in arguments]
    case = one_node(operation, *halves, options=MASS, constants=())
    points = Points(at, at, case.result.reshape(-1).float(), signed=True)
    for source, moved in rule[operation].follow(case.visit, points):
        added = case.visit.values[source].reshape(-1)[moved.index].float()
        torch.testing.assert_close(moved.mass, added, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("through", [(), (aten.rsub.Scalar,), (aten.view.default, aten.rsub.Scalar)], ids=len)
def test_where_evidence_is_net_a_gate_says_how_much_and_is_not_followed(through):
    """In sigmoid(x) * y, and in (1 - sigmoid(x)) * y, only what passes; by the published rules both, with halves."""
    case = one_node(aten.mul.Tensor, torch.full((1, 2), 0.5), torch.tensor([[2.0, -2.0]]), options=MASS, constants=())
    gate, passes = case.visit.source("self"), case.visit.source("other")
    node, shapes = gate, cast(dict[Any, torch.Size], case.visit.shapes)
    for operation in (*through, aten.sigmoid.default):
        with node.graph.inserting_before(node):
            before = node.graph.placeholder("before")
        before.meta.update(is_constant=False, position=0)
        shapes[before] = case.result.shape
        node.op, node.target, node.args = "call_function", operation, (before,)
        node = before
    points = Points(torch.arange(2), torch.zeros(2, dtype=torch.int64), torch.tensor([3.0, -1.0]))
    flow = dict(rule[aten.mul.Tensor].follow(case.visit, replace(points, signed=True)))
    assert list(flow) == [passes]
    assert flow[passes].mass.tolist() == [3.0, -1.0]
    both = dict(rule[aten.mul.Tensor].follow(case.visit, points))
    assert [both[branch].mass.tolist() for branch in (gate, passes)] == [[1.5, -0.5]] * 2


class FlattenedMap(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(12, 2, bias=False)
        self.fc.weight.data = torch.arange(1.0, 25.0).view(2, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_linear_on_a_flattened_map_keeps_one_input_as_the_released_code_does():
    images = torch.ones(1, 3, 2, 2)
    recording = fixcore.capture(FlattenedMap().eval(), torch.zeros(2, 3, 2, 2)).record(images)
    everything = fixcore.backtrack(recording, torch.tensor([1]), rules=PAPER)
    one = fixcore.backtrack(recording, torch.tensor([1]), rules=replace(PAPER, fc_to_map="argmax"))
    assert everything.row.numel() == 4
    assert (one.row.tolist(), one.col.tolist()) == ([1], [1])  # the largest weight stands last


@quick
@given(
    seed=seeds,
    extent=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.one_of(st.just([]), st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list)),
    padded=st.booleans(),
    dilation=st.integers(1, 2),
    ceil=st.booleans(),
)
def test_max_pool(seed, extent, kernel, stride, padded, dilation, ceil):
    padding = [k // 2 for k in kernel] if padded else [0, 0]
    for axis in (0, 1):
        assume(extent[axis] + 2 * padding[axis] >= dilation * (kernel[axis] - 1) + 1)
    arguments = (integers(seed, 2, 2, *extent), list(kernel), stride, padding, [dilation, dilation], ceil)
    check_against_oracle(one_node(aten.max_pool2d.default, *arguments, options=MASS))


@quick
@given(
    seed=seeds,
    options=options,
    extent=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padded=st.booleans(),
    ceil=st.booleans(),
    count=st.booleans(),
)
def test_average_pool(seed, options, extent, kernel, stride, padded, ceil, count):
    assume(min(extent) >= kernel)
    padding = kernel // 2 if padded else 0
    arguments = (integers(seed, 2, 2, *extent), [kernel], [stride], [padding], ceil, count, None)
    check_against_oracle(one_node(aten.avg_pool2d.default, *arguments, options=options))


@quick
@given(
    seed=seeds,
    options=options,
    extent=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    out=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_adaptive_average_pool(seed, options, extent, out):
    case = one_node(aten.adaptive_avg_pool2d.default, integers(seed, 2, 2, *extent), list(out), options=options)
    check_against_oracle(case)


@quick
@given(seed=seeds, options=options, dims=st.sampled_from([[2, 3], [-1, -2], [1], [0], [1, 3]]), keep=st.booleans())
@pytest.mark.parametrize("operation", [
    aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.logsumexp.default,
])  # fmt: skip
def test_mean(operation, seed, options, dims, keep):
    check_against_oracle(one_node(operation, integers(seed, 2, 3, 2, 2), dims, keep, options=options))


@quick
@given(seed=seeds, options=options, dims=st.sampled_from([[2, 3], [-1, -2], [1], [1, 3]]), keep=st.booleans())
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("operation", ["var", "std"])
def test_variance(operation, correction, seed, options, dims, keep):
    values = integers(seed, 2, 3, 2, 2)
    by_flag, by_number = getattr(aten, operation).dim, getattr(aten, operation).correction
    check_against_oracle(one_node(by_flag, values, dims, bool(correction), keep, options=options))
    check_against_oracle(one_node(by_number, values, dims, options=options, correction=correction, keepdim=keep))


@quick
@given(seed=seeds, options=options, dims=st.sampled_from([[2, 3], [-1], [1, 3]]), keep=st.booleans())
@pytest.mark.parametrize("power", [1, 2, 3, float("inf"), float("-inf")])
def test_norm(power, seed, options, dims, keep):
    case = one_node(aten.linalg_vector_norm.default, integers(seed, 2, 3, 2, 2), power, dims, keep, options=options)
    check_against_oracle(case)


@quick
@given(
    seed=seeds,
    extent=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    mode=st.integers(0, 2),
    padding=st.integers(0, 2),
    aligned=st.booleans(),
)
def test_reading_at_places_of_a_grid(seed, extent, mode, padding, aligned):
    grid = integers(seed + 1, 2, 3, 2, 2, low=-9, high=9) / 8
    arguments = (integers(seed, 2, 2, *extent), grid, mode, padding, aligned)
    check_against_oracle(one_node(aten.grid_sampler_2d.default, *arguments, options=MASS, constants=(1,)))


SAME_PLACE: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.relu.default, ()),
    (aten.relu_.default, ()),
    (aten.hardtanh.default, (0, 6)),
    (aten.hardtanh_.default, (0, 6)),
    (aten.hardswish_.default, ()),
    (aten.silu_.default, ()),
    (aten.clamp.default, (-1, 1)),
    (aten.clamp_min.default, (0,)),
    (aten.leaky_relu.default, ()),
    (aten.prelu.default, (torch.tensor([0.5]),)),
    (aten.rrelu.default, ()),
    (aten.elu.default, ()),
    (aten.selu.default, ()),
    (aten.celu.default, ()),
    (aten.threshold.default, (0.5, 0.0)),
    (aten.gelu.default, ()),
    (aten.silu.default, ()),
    (aten.mish.default, ()),
    (aten.hardswish.default, ()),
    (aten.hardsigmoid.default, ()),
    (aten.sigmoid.default, ()),
    (aten.log_sigmoid.default, ()),
    (aten.tanh.default, ()),
    (aten.softplus.default, ()),
    (aten.dropout.default, (0.5, False)),
    (aten.neg.default, ()),
    (aten.abs.default, ()),
    (aten.exp.default, ()),
    (aten.erf.default, ()),
    (aten.sin.default, ()),
    (aten.cos.default, ()),
    (aten.sign.default, ()),
    (aten.log.default, ()),
    (aten.log1p.default, ()),
    (aten.log2.default, ()),
    (aten.log10.default, ()),
    (aten.exp2.default, ()),
    (aten.expm1.default, ()),
    (aten.atan.default, ()),
    (aten.round.default, ()),
    (aten.floor.default, ()),
    (aten.ceil.default, ()),
    (aten.trunc.default, ()),
    (aten.fmod.Scalar, (2,)),
    (aten.remainder.Scalar, (2,)),
    (aten.sqrt.default, ()),
    (aten.rsqrt.default, ()),
    (aten.reciprocal.default, ()),
    (aten.pow.Tensor_Scalar, (2,)),
    (aten.pow.Tensor_Tensor, (torch.tensor([3.0]),)),
    (aten.rsub.Scalar, (1,)),
    (aten.add.Scalar, (2,)),
    (aten.sub.Scalar, (2,)),
    (aten.mul.Scalar, (2,)),
    (aten.masked_fill.Scalar, (torch.tensor([True, False]), 1)),
    (aten.div.Scalar, (2,)),
    (aten.clone.default, ()),
    (aten.contiguous.default, ()),
    (aten.alias.default, ()),
    (aten.detach.default, ()),
    (aten.to.dtype, (torch.float64,)),
    (aten._to_copy.default, ()),
    (aten.softmax.int, (1,)),
    (aten.log_softmax.int, (1,)),
    (aten.batch_norm.default, (None, None, torch.zeros(2), torch.ones(2), False, 0.1, 1e-5, True)),
    (aten.layer_norm.default, ([2, 2],)),
    (aten.group_norm.default, (2,)),
    (aten.instance_norm.default, (None, None, None, None, True, 0.1, 1e-5, False)),
]


@pytest.mark.parametrize(("operation", "rest"), SAME_PLACE, ids=lambda value: str(value) if callable(value) else "")
def test_elementwise(operation, rest):
    case = one_node(operation, integers(0, 2, 2, 2, 2), *rest, options=MASS, constants=(1, 2, 3, 4))
    check_against_oracle(case)


OPERANDS: dict[str, st.SearchStrategy[Any]] = {
    "left": st.sampled_from([(2, 3, 2, 2), (1, 3, 1, 1), (3, 1, 2)]),
    "right": st.sampled_from([(2, 3, 2, 2), (2, 3, 1, 1), (2, 1)]),
    "constants": st.sampled_from([(), (0,), (1,)]),
}
"""Shapes that broadcast, and which of the two is a weight."""


@quick
@given(
    seed=seeds,
    **OPERANDS,
    operation=st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor]),
)
def test_sums_and_products(seed, left, right, constants, operation):
    case = one_node(operation, integers(seed, *left), integers(seed + 1, *right), options=MASS, constants=constants)
    check_against_oracle(case)
    check_against_oracle(case, signed=True)


@quick
@given(
    seed=seeds,
    **OPERANDS,
    operation=st.sampled_from([aten.maximum.default, aten.minimum.default]),
)
def test_the_larger_and_the_smaller(seed, left, right, constants, operation):
    arguments = (integers(seed, *left), integers(seed + 1, *right))
    check_against_oracle(one_node(operation, *arguments, options=MASS, constants=constants))


@quick
@given(seed=seeds, **OPERANDS, wide=st.booleans())
def test_a_choice(seed, left, right, constants, wide):
    shape = torch.broadcast_shapes(left, right)
    condition = integers(seed + 2, *(shape if wide else shape[-1:])) > 0
    operands = (integers(seed, *left), integers(seed + 1, *right))
    moved = tuple(place + 1 for place in constants)
    check_against_oracle(one_node(aten.where.self, condition, *operands, options=MASS, constants=(0, *moved)))


@pytest.mark.parametrize("operation", [aten.where.ScalarSelf, aten.where.ScalarOther])
def test_a_choice_between_a_map_and_a_number(operation):
    condition, values = integers(0, 2, 3, 2, 2) > 0, integers(1, 2, 3, 2, 2)
    operands = (2.5, values) if operation is aten.where.ScalarSelf else (values, 2.5)
    check_against_oracle(one_node(operation, condition, *operands, options=MASS, constants=(0,)))


@pytest.mark.parametrize(("shape", "dim"), [((2, 4, 3, 2), 1), ((2, 4, 3, 2), -1), ((4, 3), 0)])
def test_gated_linear_unit(shape, dim):
    check_against_oracle(one_node(aten.glu.default, integers(0, *shape), dim, options=MASS))


def test_a_quotient_that_is_rounded():
    operands = (integers(0, 2, 3, 2, 2), integers(1, 3, 1, 1, low=1))
    check_against_oracle(one_node(aten.div.Tensor_mode, *operands, options=MASS, constants=(), rounding_mode="floor"))


def test_a_sum_in_place_follows_the_same_rule():
    case = one_node(aten.add_.Tensor, integers(1, 2, 2, 2, 2), integers(2, 2, 2, 2, 2), options=MASS, constants=())
    check_against_oracle(case)


def test_ties_of_a_sum_go_to_the_branch_computed_first():
    case = one_node(aten.add.Tensor, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), options=MASS, constants=())
    check_against_oracle(case)
    assert case.given["order"] == ["self", "other"]


LAYOUT: list[tuple[Any, tuple[int, ...], tuple[Any, ...]]] = [
    (aten.view.default, (2, 3, 4), ([6, 4],)),
    (aten._unsafe_view.default, (2, 3, 4), ([3, 8],)),
    (aten.reshape.default, (2, 3, 4), ([2, 2, 6],)),
    (aten.flatten.using_ints, (2, 3, 4), (1, -1)),
    (aten.permute.default, (2, 3, 4), ([2, 0, 1],)),
    (aten.transpose.int, (2, 3, 4), (1, 2)),
    (aten.t.default, (3, 4), ()),
    (aten.expand.default, (2, 1, 3), ([4, 2, 5, 3],)),
    (aten.unsqueeze.default, (2, 3), (1,)),
    (aten.squeeze.default, (2, 1, 3), ()),
    (aten.squeeze.dim, (2, 1, 3), (1,)),
    (aten.squeeze.dims, (2, 1, 3, 1), ([1, 3],)),
    (aten.slice.Tensor, (2, 7, 3), (1, 1, 6, 2)),
    (aten.narrow.default, (2, 7, 3), (1, 2, 3)),
    (aten.select.int, (2, 3, 4), (1, -1)),
    (aten.unfold.default, (2, 7, 3), (1, 3, 2)),
    (aten.roll.default, (2, 3, 4), ([1, -2], [1, 2])),
    (aten.flip.default, (2, 3, 4), ([0, 2],)),
    (aten.repeat.default, (2, 3), ([2, 1, 3],)),
    (aten.repeat_interleave.self_int, (2, 3), (2, 1)),
    (aten.tile.default, (2, 3), ([2, 1, 3],)),
    (aten.rot90.default, (2, 3, 4), (1, [1, 2])),
    (aten.index_select.default, (2, 3, 4), (1, torch.tensor([2, 0, 2]))),
    (aten.gather.default, (2, 3, 4), (1, torch.tensor([[[2, 0, 1, 1]], [[0, 0, 2, 1]]]))),
    (aten.gather.default, (2, 3, 4), (-1, torch.tensor([[[3, 0]] * 3, [[1, 1]] * 3]))),
    (aten.pixel_shuffle.default, (2, 4, 3, 2), (2,)),
    (aten.pixel_unshuffle.default, (2, 3, 4, 2), (2,)),
    (aten.channel_shuffle.default, (2, 6, 2, 2), (3,)),
]


@pytest.mark.parametrize(("operation", "shape", "rest"), LAYOUT, ids=lambda value: str(value))
def test_layout(operation, shape, rest):
    check_against_oracle(one_node(operation, integers(0, *shape), *rest, options=MASS, constants=(2,)))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stack(dim):
    check_against_oracle(one_node(aten.stack.default, [integers(0, 2, 3), integers(1, 2, 3)], dim, options=MASS))


def test_indexing():
    class Indexed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, [2, 0, 0]][:, :, :, torch.tensor([1, 1])].flatten(1)

    images = integers(0, 2, 2, 3, 2)
    recording = fixcore.capture(Indexed().eval(), images).record(images)
    fixations = fixcore.backtrack(recording, torch.tensor([0, 5]))  # rows 2, 0, 0 by columns 1, 1
    assert fixations.row.tolist() == [2, 0]
    assert fixations.col.tolist() == [1, 1]


@quick
@given(
    seed=seeds,
    options=options,
    kind=st.sampled_from(
        [
            (aten.matmul.default, (2, 3), (3, 4)),
            (aten.mm.default, (2, 3), (3, 4)),
            (aten.bmm.default, (2, 2, 3), (2, 3, 1)),
            (aten.matmul.default, (2, 1, 2, 3), (1, 2, 3, 2)),
            (aten.matmul.default, (2, 2, 3), (3, 2)),
        ]
    ),
    constants=st.sampled_from([(), (0,), (1,)]),
)
def test_product_of_matrices(seed, options, kind, constants):
    operation, left, right = kind
    case = one_node(operation, integers(seed, *left), integers(seed + 1, *right), options=options, constants=constants)
    check_against_oracle(case)


def test_product_of_vectors_is_refused():
    case = one_node(aten.matmul.default, integers(0, 3), integers(1, 3, 2), options=MASS, constants=())
    with pytest.raises(ValueError, match="1- and 2-dimensional"):
        check_against_oracle(case)


@pytest.mark.parametrize("looks", ["self", "other"])
def test_attention_says_where_and_the_value_is_followed(looks):
    """softmax(a) @ b goes to b, and a @ softmax(b) to a."""
    case = one_node(aten.matmul.default, integers(0, 2, 3, 3), integers(1, 2, 3, 3), options=MASS, constants=())
    source = case.visit.source(looks)
    graph = source.graph
    with graph.inserting_after(source):
        before = graph.placeholder("before")
    source.op, source.target, source.args = "call_function", aten.softmax.int, (before, -1)
    case.given["looking"] = [looks]
    check_against_oracle(case)


@quick
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4)),
    keys=st.integers(1, 4),
    mask=st.sampled_from(["none", "bool", "float", "causal"]),
    scale=st.sampled_from([None, 0.5]),
    heads=st.sampled_from(["own", "one", "in a row"]),
)
def test_attention(seed, shape, keys, mask, scale, heads):
    """Each head with keys and values of its own, one for all heads, or one for every two in a row."""
    several = {"own": 1, "one": 3, "in a row": 2}[heads]
    of_key = (shape[0], 1 if heads == "one" else shape[1])
    shape = (shape[0], of_key[1] * several, shape[2])
    query, key = integers(seed, *shape, 2), integers(seed + 1, *of_key, keys, 2)
    value = integers(seed + 2, *of_key, keys, 3)
    given_mask = None
    if mask == "bool":
        given_mask = integers(seed + 3, shape[2], keys) > 0
        given_mask[:, 0] = True
    elif mask == "float":
        given_mask = integers(seed + 3, shape[0], 1, shape[2], keys)
    arguments = (query, key, value, given_mask, 0.0, mask == "causal")
    rest = {"scale": scale, "enable_gqa": heads == "in a row"}
    case = one_node(aten.scaled_dot_product_attention.default, *arguments, options=MASS, constants=(3,), **rest)
    check_against_oracle(case)


@quick
@given(
    seed=seeds,
    options=options,
    groups=st.integers(1, 2),
    channels=st.integers(1, 3),
    outs=st.integers(1, 2),
    extent=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.integers(0, 1),
    dilation=st.integers(1, 2),
)
def test_transposed_convolution(
    seed, options, groups, channels, outs, extent, kernel, stride, padding, extra, dilation
):
    for axis in (0, 1):
        assume((extent[axis] - 1) * stride[axis] - 2 * padding[axis] + dilation * (kernel[axis] - 1) + extra >= 0)
        assume(extra < max(stride[axis], dilation))
    image = integers(seed, 2, groups * channels, *extent)
    weight = integers(seed + 1, groups * channels, outs, *kernel)
    arguments = (image, weight, None, list(stride), list(padding), [extra, extra], groups, [dilation, dilation])
    check_against_oracle(one_node(aten.conv_transpose2d.input, *arguments, options=options))


@quick
@given(
    seed=seeds,
    extent=st.tuples(st.integers(3, 5), st.integers(3, 6)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
)
def test_patches(seed, extent, kernel, dilation, padding, stride):
    sizes = ([*kernel], [dilation], [padding], [*stride])
    assume(all(side + 2 * padding > dilation * (own - 1) for side, own in zip(extent, kernel, strict=True)))
    case = one_node(aten.im2col.default, integers(seed, 2, 2, *extent), *map(pairs, sizes), options=MASS)
    check_against_oracle(case)
    covered = aten.col2im.default(torch.ones_like(case.result), list(extent), *map(pairs, sizes)) > 0
    assume(bool(covered.all()))
    patches = integers(seed, *case.result.shape)
    check_against_oracle(one_node(aten.col2im.default, patches, list(extent), *map(pairs, sizes), options=MASS))


def pairs(sizes: list[int]) -> list[int]:
    return sizes * 2 if len(sizes) == 1 else sizes


@pytest.mark.parametrize(
    ("operation", "shape", "rest"),
    [
        (aten.slice_scatter.default, (2, 3, 4), (1, 1, 4, 1)),
        (aten.slice_scatter.default, (2, 3, 4), (-2, 0, 9223372036854775807, 2)),
        (aten.slice_scatter.default, (2, 2, 4), (1, -2, None, 1)),
        (aten.select_scatter.default, (2, 4), (1, -1)),
        (aten.select_scatter.default, (2, 5), (2, 3)),
    ],
)
def test_a_part_overwritten(operation, shape, rest):
    whole = integers(0, 2, 5, 4)
    check_against_oracle(one_node(operation, whole, integers(1, *shape), *rest, options=MASS, constants=()))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concatenation(dim):
    shapes = [[2, 3, 2], [2, 3, 2]]
    shapes[1][dim] = 5
    case = one_node(aten.cat.default, [integers(i, *shape) for i, shape in enumerate(shapes)], dim, options=MASS)
    check_against_oracle(case)


@pytest.mark.parametrize("amounts", [[1, 2], [0, 1, 2, 3], [1, -1, 0, 2]])
@pytest.mark.parametrize("operation", [aten.pad.default, aten.constant_pad_nd.default])
def test_padding(amounts, operation):
    check_against_oracle(one_node(operation, integers(0, 1, 2, 3, 4), amounts, options=MASS))


@pytest.mark.parametrize("amounts", [[1, 2, 2, 1], [0, 1, 2, 0], [2, 0, 0, 0]])
@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_with_copies(amounts, mode):
    check_against_oracle(one_node(aten.pad.default, integers(0, 2, 2, 3, 4), amounts, mode, options=MASS))


@pytest.mark.parametrize("out", [[6, 8], [3, 4], [5, 7], [2, 3], [1, 1], [9, 2]])
@pytest.mark.parametrize(
    ("operation", "rest"),
    [
        (aten.upsample_nearest2d.vec, (None,)),
        (aten.upsample_bilinear2d.vec, (False, None)),
        (aten.upsample_bilinear2d.vec, (True, None)),
        (aten.upsample_bicubic2d.vec, (False, None)),
    ],
)
def test_resizing(operation, rest, out):
    check_against_oracle(one_node(operation, integers(0, 2, 2, 3, 4), out, *rest, options=MASS))


@pytest.mark.parametrize("scale", [[2.0, 3.0], [1.75, 1.25], [0.5, 0.75]])
@pytest.mark.parametrize(
    ("operation", "rest"),
    [
        (aten.upsample_nearest2d.vec, ()),
        (aten.upsample_bilinear2d.vec, (False,)),
        (aten.upsample_bilinear2d.vec, (True,)),
        (aten.upsample_bicubic2d.vec, (False,)),
    ],
)
def test_resizing_by_a_factor(operation, rest, scale):
    """A factor that does not come out even is not the sizes' own: 7 cells times 1.75 are 12, each 1 / 1.75 apart."""
    check_against_oracle(one_node(operation, integers(0, 2, 2, 7, 6), None, *rest, scale, options=MASS))


def test_every_rule_is_exercised_above():
    """The parametrised lists and the tests by name cover the table."""
    named = {
        aten.conv2d.default, aten.conv2d.padding, aten.linear.default, aten.max_pool2d.default, aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor,
        aten.cat.default, aten.pad.default, aten.constant_pad_nd.default, aten.stack.default, aten.index.Tensor,
        aten.matmul.default, aten.bmm.default, aten.mm.default, aten.scaled_dot_product_attention.default,
        aten.sub.Tensor, aten.div.Tensor, aten.sum.dim_IntList, aten.amax.default, aten.logsumexp.default,
        aten.maximum.default, aten.minimum.default, aten.glu.default, aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec, aten.where.self, aten.where.ScalarSelf,
        aten.where.ScalarOther, aten.conv_transpose2d.input, aten.im2col.default, aten.col2im.default,
        aten.slice_scatter.default, aten.select_scatter.default, aten.amin.default, aten.var.dim, aten.var.correction,
        aten.std.dim, aten.std.correction, aten.grid_sampler_2d.default, aten.div.Tensor_mode,
        aten.linalg_vector_norm.default,
    }  # fmt: skip
    listed = itertools.chain((op for op, _ in SAME_PLACE), (op for op, _, _ in LAYOUT))
    assert named | set(listed) == set(rule)


def test_registering_an_operation_twice_raises():
    with pytest.raises(ValueError, match="has a rule already"):
        rule(aten.relu.default)(lambda visit, points: [])
