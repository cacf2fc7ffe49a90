"""The whole walk against plain recursion; independence; the user's model left alone; errors in words."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import fixcore
from fixcore.rules import MASS, PAPER, rule
from fixcore.rules.table import Options
from fixcore.structure import arguments_by_name
from tests.fixcore.networks import FAMILIES, Dense, Pooled, Residual, integer_images, integer_network
from tests.oracles import ADDED, ORACLES, above_mean, added, added_at, told_by_places, walk

OPTIONS = [MASS, PAPER, replace(PAPER, location="argmax")]
seeds = st.integers(0, 2**31)
families = st.sampled_from(FAMILIES)


def plain_values(graph: fixcore.Graph, images: Tensor) -> dict[fx.Node, Any]:
    """Every node's value, by running the graph node by node and keeping everything."""
    values: dict[fx.Node, Any] = {**graph.constants, graph.images: images}
    for node in graph.nodes:
        arguments = fx.node.map_arg(node.args, values.__getitem__)
        # An operation in place would spoil what the oracle reads.
        copies = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
        values[node] = node.target(*copies, **fx.node.map_arg(node.kwargs, values.__getitem__))  # type: ignore[operator]
    return values


def slow_answers(graph: fixcore.Graph, values: dict[fx.Node, Any], options: Options) -> Any:
    """What an oracle says of one element: a function of node, element and whether its mass has a sign."""

    def answer(node: fx.Node, at: tuple[int, ...], signed: bool = False) -> list[Any]:
        named = arguments_by_name(node)
        sources: dict[str, fx.Node] = {}
        for name, value in named.items():
            for number, part in enumerate(value if isinstance(value, list | tuple) else [value]):
                if isinstance(part, fx.Node):
                    sources[f"{name}.{number}" if isinstance(value, list | tuple) else name] = part
        given = {name: fx.node.map_arg(value, values.__getitem__) for name, value in named.items()}
        moving = [name for name, source in sources.items() if not source.meta["is_constant"]]
        moving.sort(key=lambda name: sources[name].meta["position"])
        given |= {"result": values[node], "operation": node.target, "order": moving, "from_map": False}
        given |= {"names": list(named)[: len(node.args)]}
        given["signed"] = signed
        given["gates"] = [name for name, source in sources.items() if signed and source.target in GATES]
        adds = signed and node.target in ADDED
        arrow = added(given, at) if adds else ORACLES[node.target](given, at, options)
        return [(sources[name], place, share) for (name, place), share in arrow.items()]

    return answer


def slow_fixations(graph: fixcore.Graph, images: Tensor, target: Tensor, options: Options) -> list[dict[Any, float]]:
    """Per image, (row, col) -> mass, by recursion from single elements through the oracles."""
    values = plain_values(graph, images)
    answer = slow_answers(graph, values, options)
    head, found = graph.head, []
    for image, wanted in enumerate(target.tolist()):
        if options.vector == "net":
            pixels = net_fixations(graph, values, answer, image, wanted, options)
            if pixels:
                found.append(pixels)
                continue  # else nothing speaks for it
        begin: list[tuple[fx.Node, tuple[int, ...], float]]
        if options.average_pool == "argmax" or head is None or not head.places:
            begin = [(graph.logits, (image, wanted), 1.0)]
        else:
            begin = class_map_start(head.map, values[head.map], image, weight_on_map(head, wanted))
        pixels = defaultdict(float)
        for node, at, mass in begin:
            for (_, _, row, col), part in walk(node, at, mass, answer).items():
                pixels[row, col] += part
        total = sum(pixels.values())
        found.append({pixel: mass / total for pixel, mass in pixels.items()})
    return found


def net_fixations(
    graph: fixcore.Graph, values: Any, answer: Any, image: int, wanted: int, options: Options
) -> dict[Any, float]:
    """(row, col) -> mass of one image: node by node, everything that meets at an element added up.

    Vectors are followed to what adds to the logit and what takes away; where they end, the places go on that add more
    than the mean, and where they are the average of a map, what lies above the mean of the map that they weigh.
    """
    head, joins = graph.head, options.average_pool == "above_mean"
    held: dict[fx.Node, dict[tuple[tuple[int, ...], bool], float]] = defaultdict(lambda: defaultdict(float))
    if graph.tokens is not None:
        asked = torch.full((len(values[graph.images]),), wanted)
        moved = added_at(graph, values[graph.images], asked, graph.tokens.end)[image]
        for at, mass in above_mean(moved).items():
            held[graph.tokens.end][(image, *at), False] += mass
    elif head is not None and head.places and joins:
        for node, at, mass in class_map_start(head.map, values[head.map], image, weight_on_map(head, wanted)):
            held[node][at, False] += mass
    else:
        held[graph.logits][(image, wanted), True] = math.copysign(1.0, float(values[graph.logits][image, wanted]))
    for node in reversed(graph.nodes):
        here = held.pop(node, {})
        signed = {at: mass for (at, has_sign), mass in here.items() if has_sign}
        here = {at: mass for (at, has_sign), mass in here.items() if not has_sign}
        (source, *_) = node.all_input_nodes
        if signed and joins and node.target in AVERAGES and is_one_place(values[node]) > is_one_place(values[source]):
            speaks = sum(mass for mass in signed.values() if mass > 0)
            if speaks > 0:
                for place, mass in common_class_map(source, values[source], values[node], image, signed):
                    held[source][place, False] += mass * speaks
            continue
        if signed and node.target in NORMS and is_one_place(values[node]):
            for place, mass in undone(node, values, signed).items():
                held[source][place, True] += mass
            continue
        if not (is_one_place(values[node]) or node.target in MOVES) or node.target in AVERAGES:
            for at, mass in told_by_places(signed, values[node].shape).items():
                here[at] = here.get(at, 0.0) + mass
            signed = {}
        for at, mass, has_sign in [(*own, False) for own in here.items()] + [(*own, True) for own in signed.items()]:
            for source, place, share in answer(node, at, has_sign):
                held[source][place, has_sign] += mass * share
    found = held[graph.images]
    last = told_by_places({at: mass for (at, has_sign), mass in found.items() if has_sign}, values[graph.images].shape)
    pixels: dict[tuple[int, int], float] = defaultdict(float)
    for (_, _, row, col), mass in [*((at, mass) for (at, signed), mass in found.items() if not signed), *last.items()]:
        pixels[row, col] += mass
    total = sum(pixels.values())
    return {pixel: mass / total for pixel, mass in pixels.items()}


MOVES = (torch.ops.aten.reshape.default, torch.ops.aten.select.int, torch.ops.aten.permute.default)
GATES = (torch.ops.aten.sigmoid.default, torch.ops.aten.hardsigmoid.default)
AVERAGES = (torch.ops.aten.mean.dim, torch.ops.aten.avg_pool2d.default, torch.ops.aten.adaptive_avg_pool2d.default)
NORMS = (torch.ops.aten.layer_norm.default, torch.ops.aten.group_norm.default)


def is_one_place(value: Any) -> bool:
    return (
        not isinstance(value, Tensor)
        or value.dim() == 2
        or value.shape[2:] == (1, 1)
        or (value.dim() == 4 and value.shape[1:3] == (1, 1))
    )


def weight_on_map(head: Any, wanted: int) -> Tensor:
    """The class's weights of the map: behind a layer norm scaled as it scales, less their mean."""
    weight = head.weight[wanted]
    if head.norm is None:
        return weight
    scaled = weight * head.norm.weight
    return scaled - scaled.mean()


def common_class_map(
    source: fx.Node, value: Tensor, pooled: Tensor, image: int, masses: dict[tuple[int, ...], float]
) -> list[tuple[tuple[int, ...], float]]:
    """Evidence per unit of each pooled feature, as weights of the map at each place."""
    weight = torch.zeros(pooled[image].numel(), dtype=torch.float64)
    for at, mass in masses.items():
        feature = max(at[1:])  # all other places are 0
        weight[feature] = mass / float(pooled[at]) if pooled[at] != 0 else 0.0
    return [(place, mass) for _, place, mass in class_map_start(source, value, image, weight)]


def undone(node: fx.Node, values: Any, masses: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """What each input of a normalised vector added: x times the slope of what is wanted, the statistics held fixed."""
    named = arguments_by_name(node)
    read, result = values[named["input"]].double(), values[node]
    groups = named["num_groups"] if node.target is torch.ops.aten.group_norm.default else 1
    found = {}
    for image in {at[0] for at in masses}:
        own = {at: masses.get(at, 0.0) for at in itertools.product([image], *map(range, result.shape[1:]))}
        scale = values[named["weight"]].flatten().tolist()
        for group in range(groups):
            places = list(own)[group * len(own) // groups : (group + 1) * len(own) // groups]
            spread = math.sqrt(float(torch.stack([read[at] for at in places]).var(correction=0)) + named["eps"])
            slope = {
                at: (own[at] / float(result[at]) if result[at] != 0 else 0.0) * scale[list(own).index(at)] / spread
                for at in places
            }
            level = sum(slope.values()) / len(slope)
            found.update({at: float(read[at]) * (slope[at] - level) for at in places})
    return {at: mass for at, mass in found.items() if mass != 0}


def class_map_start(
    node: fx.Node, value: Tensor, image: int, weight: Tensor
) -> list[tuple[fx.Node, tuple[int, ...], float]]:
    """Places whose class-map value lies above its mean, at the channel with the largest product."""
    is_map = value.dim() == 4  # (N, D, H, W); else tokens (N, L, D)
    channels = value.shape[1] if is_map else value.shape[2]
    places = itertools.product(*(range(extent) for extent in (value.shape[2:] if is_map else value.shape[1:2])))

    def element(place: tuple[int, ...], channel: int) -> tuple[int, ...]:
        return (image, channel, *place) if is_map else (image, *place, channel)

    def products(place: tuple[int, ...]) -> list[float]:
        return [float(value[element(place, c)] * weight[c]) for c in range(channels)]

    level = {place: sum(products(place)) for place in places}
    mean = sum(level.values()) / len(level)
    above = {place: at - mean for place, at in level.items() if at > mean + 1e-6} or dict.fromkeys(level, 1.0)
    begin = []
    for place, excess in above.items():
        own = products(place)
        begin.append((node, element(place, own.index(max(own))), excess / sum(above.values())))
    return begin


def as_dicts(fixations: fixcore.Fixations) -> list[dict[tuple[int, int], float]]:
    found: list[dict[tuple[int, int], float]] = [{} for _ in range(len(fixations))]
    rows, cols = fixations.row.tolist(), fixations.col.tolist()
    for image, row, col, mass in zip(fixations.image.tolist(), rows, cols, fixations.mass.tolist(), strict=True):
        found[image][row, col] = mass
    return found


def close(found: dict[Any, float], expected: dict[Any, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[key] - expected[key]) < 1e-4 for key in expected)


@pytest.mark.parametrize("options", OPTIONS, ids=["mass", "paper", "paper-argmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_is_plain_recursion(family, options):
    assert pixels_compared(family, options) >= 16, "at least a pixel an image"


@pytest.mark.parametrize("family", [Dense, Pooled])
def test_the_strongest_cell_of_an_average_is_followed_alone_if_it_is_asked_for(family):
    assert pixels_compared(family, replace(PAPER, vector="net")) >= 16, "at least a pixel an image"


def pixels_compared(family: type[nn.Module], options: Options) -> int:
    """Assert that the walk finds what plain recursion finds, in 16 images; return how many pixels these are."""
    compared = 0
    graphs = fixcore.capture_all([integer_network(family, seed) for seed in range(8)], integer_images(0, 2))
    for seed, graph in enumerate(graphs):
        images = integer_images(seed, 2)
        target = torch.tensor([seed % 3, (seed + 1) % 3])
        found = as_dicts(fixcore.backtrack(graph.record(images), target, rules=options))
        expected = slow_fixations(graph, images, target, options)
        for one, other in zip(found, expected, strict=True):
            assert close(one, other), f"{family.__name__}, seed {seed}: {one} is not {other}"
            compared += len(other)
    return compared


@settings(max_examples=15, deadline=None)
@given(seed=seeds, family=families)
def test_mass_sums_to_one_and_points_lie_in_the_image(seed, family):
    images = integer_images(seed, 3)
    recording = fixcore.capture(integer_network(family, seed), images).record(images)
    fixations = fixcore.backtrack(recording, recording.logits.argmax(1))
    total = torch.zeros(3).index_add_(0, fixations.image, fixations.mass)
    torch.testing.assert_close(total, torch.ones(3), atol=1e-5, rtol=0)
    assert ((fixations.row >= 0) & (fixations.row < 6) & (fixations.col >= 0) & (fixations.col < 8)).all()
    key = (fixations.image * 6 + fixations.row) * 8 + fixations.col
    assert (key.diff() > 0).all(), "sorted and unique"


@settings(max_examples=15, deadline=None)
@given(seed=seeds, family=families, channels_last=st.booleans())
def test_images_do_not_influence_each_other(seed, family, channels_last):
    images = integer_images(seed, 4)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    graph = fixcore.capture(integer_network(family, seed), images)
    target = torch.tensor([0, 1, 2, 1])
    together = as_dicts(fixcore.backtrack(graph.record(images), target))
    alone = [as_dicts(fixcore.backtrack(graph.record(images[i : i + 1]), target[i : i + 1]))[0] for i in range(4)]
    assert all(close(one, other) for one, other in zip(together, alone, strict=True))


def test_several_targets_of_one_image_do_not_influence_each_other():
    images = integer_images(3, 2)
    recording = fixcore.capture(integer_network(Residual, 3), images).record(images)
    start = fixcore.Start(torch.tensor([1, 0, 1]), torch.tensor([2, 0, 0]))
    together = as_dicts(fixcore.backtrack(recording, start))
    assert together[0] == as_dicts(fixcore.backtrack(recording, torch.tensor([-1, 2])))[1]
    assert together[1:] == as_dicts(fixcore.backtrack(recording, torch.tensor([0, 0])))


LAYERS = {"Plain": "conv1", "Residual": "conv", "Inception": "b", "Dense": "conv1"}


@pytest.mark.parametrize("rules", [PAPER, replace(PAPER, location="argmax")], ids=["same", "argmax"])
@pytest.mark.parametrize("family", FAMILIES[:4])
def test_a_walk_that_stops_at_a_layer_is_plain_recursion(family, rules):
    """From a logit, and from a neuron of the logits' layer: what arrives at the layer, and nothing that goes around."""
    arrived = 0
    graphs = fixcore.capture_all([integer_network(family, seed) for seed in range(6)], integer_images(0, 2))
    for seed, graph in enumerate(graphs):
        images = integer_images(seed, 2)
        end = graph.layer(LAYERS[family.__name__])
        answer = slow_answers(graph, plain_values(graph, images), rules)

        def reach(node: fx.Node, at: tuple[int, ...], mass: float, end: Any, answer: Any) -> dict[Any, float]:
            if node is end:
                return {at: mass}
            found: dict[Any, float] = defaultdict(float)
            for source, place, share in answer(node, at) if node.op == "call_function" else []:
                for key, part in reach(source, place, mass * share, end, answer).items():
                    found[key] += part
            return found

        expected = {
            key: mass for image in (0, 1) for key, mass in reach(graph.logits, (image, 1), 1.0, end, answer).items()
        }
        starts = [torch.ones(2, dtype=torch.int64)]
        starts.append(fixcore.Start(torch.arange(2), torch.ones(2, dtype=torch.int64), layer=graph.logits.name))
        for start in starts:
            found = fixcore.backtrack(graph.record(images), start, rules=rules, stop_at=end.name)
            places = [(int(image), *place) for image, place in zip(found.image, found.place.tolist(), strict=True)]
            assert close(dict(zip(places, found.mass.tolist(), strict=True)), expected)
        arrived += len(expected)
    assert arrived > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_and_memory_format_change_nothing(family):
    images = integer_images(7, 4)
    graph = fixcore.capture(integer_network(family, 7), images)
    target = torch.tensor([0, 1, 2, 1])
    plain = as_dicts(fixcore.backtrack(graph.record(images), target))
    before = torch.get_num_threads()
    for threads, format in itertools.product((1, 3), (torch.contiguous_format, torch.channels_last)):
        torch.set_num_threads(threads)
        try:
            found = as_dicts(fixcore.backtrack(graph.record(images.contiguous(memory_format=format)), target))
        finally:
            torch.set_num_threads(before)
        assert all(close(one, other) for one, other in zip(found, plain, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_walked_and_agrees(family):
    """bfloat16 keeps 8 bits: what small integers come to is exact, so only the last layers may round."""
    agreed = []
    networks = [integer_network(family, seed) for seed in range(4)]
    wholes = fixcore.capture_all(networks, integer_images(0, 4))
    halves = fixcore.capture_all([copy.deepcopy(one).bfloat16() for one in networks], integer_images(0, 4).bfloat16())
    for seed, (whole, half) in enumerate(zip(wholes, halves, strict=True)):
        images, target = integer_images(seed, 4), torch.tensor([0, 1, 2, 1])
        full = fixcore.backtrack(whole.record(images), target)
        recording = half.record(images.bfloat16())
        assert recording.logits.dtype == torch.bfloat16
        found = fixcore.backtrack(recording, target)
        assert found.mass.dtype == torch.float32
        total = torch.zeros(4).index_add_(0, found.image, found.mass)
        torch.testing.assert_close(total, torch.ones(4))
        for one, other in zip(as_dicts(full), as_dicts(found), strict=True):
            agreed.append(sum(min(mass, other.get(pixel, 0.0)) for pixel, mass in one.items()))
    assert sum(agreed) / len(agreed) > 0.8, agreed


def test_a_crash_midway_leaves_model_and_recording_as_they_were(monkeypatch):
    images, target = integer_images(2, 3), torch.tensor([0, 1, 2])
    network = integer_network(Residual, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = network(images).detach()
    recording = fixcore.capture(network, images).record(images)
    whole = as_dicts(fixcore.backtrack(recording, target))
    operation = torch.ops.aten.conv2d.default
    entry, calls = rule[operation], []

    def breaks(visit: Any, points: Any) -> Any:
        calls.append(visit.node)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return entry.follow(visit, points)

    with monkeypatch.context() as patch:
        patch.setitem(rule._entries, operation, replace(entry, follow=breaks))
        with pytest.raises(RuntimeError, match="out of memory"):
            fixcore.backtrack(recording, target)
    assert as_dicts(fixcore.backtrack(recording, target)) == whole
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())
    assert torch.equal(network(images).detach(), expected)


def test_an_image_without_a_target_has_no_points():
    images = integer_images(1, 2)
    recording = fixcore.capture(integer_network(Residual, 1), images).record(images)
    fixations = fixcore.backtrack(recording, torch.tensor([-1, 1]))
    assert set(fixations.image.tolist()) == {1}
    assert fixcore.backtrack(recording, torch.tensor([-1, -1])).row.numel() == 0


def test_a_linear_head_of_ones_own_starts_like_the_networks():
    images = integer_images(5, 2)
    recording = fixcore.capture(integer_network(Residual, 5), images).record(images)
    assert recording.graph.head is not None
    target = torch.tensor([2, 1])
    weight = recording.graph.head.weight[target]
    own = fixcore.backtrack(recording, fixcore.Start(torch.arange(2), target, weight))
    assert as_dicts(own) == as_dicts(fixcore.backtrack(recording, target))
    with pytest.raises(fixcore.TargetError, match="weights are"):
        fixcore.backtrack(recording, fixcore.Start(torch.arange(2), target, weight[:, :2]))


def test_features_times_weight_are_the_logits():
    for family in FAMILIES[:2]:
        images = integer_images(2, 3)
        network = integer_network(family, 2)
        graph = fixcore.capture(network, images)
        assert graph.head is not None
        bias = network.fc.bias if family is Residual else network.fc2.bias
        logits = graph.embed(images) @ graph.head.weight.T + bias
        torch.testing.assert_close(logits, network(images), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(graph.record(images).features, graph.embed(images))
        torch.testing.assert_close(graph.classify(images), graph.record(images).logits)


def test_contrast_moves_the_evidence_and_means_what_it_says():
    images = integer_images(8, 2)
    recording = fixcore.capture(integer_network(Residual, 8), images).record(images)
    assert recording.graph.head is not None
    weight = recording.graph.head.weight
    target = recording.logits.argmax(1)
    rival = recording.logits.scatter(1, target[:, None], -torch.inf).argmax(1)
    runner_up = fixcore.backtrack(recording, target, contrast="runner_up")
    by_hand = fixcore.Start(torch.arange(2), target, weight[target] - weight[rival])
    assert as_dicts(runner_up) == as_dicts(fixcore.backtrack(recording, by_hand))
    mean = fixcore.backtrack(recording, target, contrast="mean")
    by_hand = fixcore.Start(torch.arange(2), target, weight[target] - weight.mean(0))
    assert as_dicts(mean) == as_dicts(fixcore.backtrack(recording, by_hand))
    assert as_dicts(runner_up) != as_dicts(fixcore.backtrack(recording, target))


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_batch_norm_keeps_the_logits(family):
    torch.manual_seed(0)
    network = family().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr,operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
            module.weight.data.normal_()
            module.bias.data.normal_()
    images = torch.randn(3, 2, 6, 8)
    graph = fixcore.capture(network, images)
    torch.testing.assert_close(graph.record(images).logits, network(images).detach(), atol=1e-4, rtol=1e-4)
    norms = [node for node in graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == {"Dense": 2}.get(family.__name__, 0), "a norm behind a convolution is folded in"


def test_the_users_model_is_untouched():
    network = integer_network(Residual, 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = integer_images(0, 2)
    graph = fixcore.capture(network, images)
    given = images.clone()
    recording = graph.record(images)
    with pytest.raises(fixcore.TargetError):
        fixcore.backtrack(recording, torch.tensor([0, 99]))
    with pytest.raises(fixcore.InputError):
        graph.record(images * torch.inf)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(images, given)
    assert torch.equal(network(images), network(images))


class Returns(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc(x.mean((2, 3))))


def test_errors_say_what_and_where():
    images = integer_images(0, 2)
    with pytest.raises(fixcore.CaptureError, match="train mode"):
        fixcore.capture(integer_network(Residual, 0).train(), images)
    with pytest.raises(fixcore.CaptureError, match="2 values"):
        fixcore.capture(Returns(lambda x: (x, x)).eval(), images)
    graph = fixcore.capture(integer_network(Residual, 0), images)
    with pytest.raises(fixcore.InputError, match=r"captured for \(N, 2, 6, 8\)"):
        graph.record(images[:, :, 1:])
    with pytest.raises(fixcore.InputError, match=r"torch.int64"):
        graph.record(images.long())
    with pytest.raises(fixcore.InputError, match="no images"):
        graph.record(images[:0])
    with pytest.raises(fixcore.InputError, match="NaN"):
        graph.record(images * torch.nan)
    recording = graph.record(images)
    with pytest.raises(fixcore.TargetError, match=r"classes 0\.\.2"):
        fixcore.backtrack(recording, torch.tensor([3, 0]))
    with pytest.raises(fixcore.TargetError, match="one class per image"):
        fixcore.backtrack(recording, torch.tensor([0]))
    with pytest.raises(fixcore.TargetError, match="integers"):
        fixcore.backtrack(recording, torch.tensor([0.0, 1.0]))


def test_an_operation_without_a_rule_names_node_shape_and_line():
    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(self.conv(torch.cumsum(x, 2)), 1).flatten(1)

    images = integer_images(0, 2)
    recording = fixcore.capture(Flips().eval(), images).record(images)
    with pytest.raises(fixcore.MissingRule) as error:
        fixcore.backtrack(recording, torch.tensor([0, 1]))
    message = str(error.value)
    assert "aten.cumsum.default at node 'cumsum'" in message
    assert "2, 6, 8)" in message
    assert "test_backtrack.py" in message


def test_golden_fixations_of_an_integer_network():
    """Regenerating these needs a reason: they are the walk's result on exact arithmetic."""
    images = integer_images(11, 1)
    recording = fixcore.capture(integer_network(Residual, 11), integer_images(11, 2)).record(images)
    found = as_dicts(fixcore.backtrack(recording, torch.tensor([0])))[0]
    assert {pixel: round(mass, 4) for pixel, mass in found.items()} == GOLDEN


GOLDEN = {(0, 0): 0.071, (0, 2): 0.2299, (0, 4): 0.2197, (2, 0): 0.111, (2, 2): 0.0571, (2, 6): 0.0381, (4, 4): 0.2733}


def test_a_flattened_map_may_come_in_channels_last() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()
    images = torch.randint(0, 9, (2, 3, 8, 8)).float()
    graph = fixcore.capture(network, images)
    other = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(graph.record(other).logits, network(images).detach())
    target = torch.tensor([0, 2])
    one, two = (fixcore.backtrack(graph.record(layout), target) for layout in (images, other))
    assert (one.row.tolist(), one.col.tolist()) == (two.row.tolist(), two.col.tolist())
    torch.testing.assert_close(one.mass, two.mass)


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_of_one_architecture_are_exported_once_and_are_what_each_is_for_itself(
    family: type[nn.Module],
) -> None:
    networks = [integer_network(family, seed) for seed in (1, 2, 3)]
    images = integer_images(0, 3)
    target = torch.tensor([0, 1, 2])
    for network, graph in zip(networks, fixcore.capture_all(networks, images), strict=True):
        own, shared = (one.record(images) for one in (fixcore.capture(network, images), graph))
        assert torch.equal(own.logits, shared.logits)
        assert as_dicts(fixcore.backtrack(own, target)) == as_dicts(fixcore.backtrack(shared, target))


class Shifted(nn.Module):
    """A head with an offset that is no parameter: a buffer, kept out of the state dict, or a plain tensor."""

    def __init__(self, offset: float, *, plain: bool = False, classes: int = 2, negative_slope: float = 0.1) -> None:
        super().__init__()
        self.head, self.activation = nn.Linear(12, classes), nn.LeakyReLU(negative_slope)
        if plain:
            self.offset = torch.full((classes,), offset)
        else:
            self.register_buffer("offset", torch.full((classes,), offset), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.head(x.flatten(1)) + self.offset)


@pytest.mark.parametrize(
    "other",
    [
        {"offset": 5.0},
        {"offset": 5.0, "plain": True},
        {"offset": 1.0, "classes": 3},
        {"offset": 1.0, "negative_slope": 0.7},
    ],
    ids=str,
)
def test_networks_captured_together_may_differ_in_anything_they_show(other: dict[str, Any]) -> None:
    networks = [Shifted(1.0, plain=bool(other.get("plain"))).eval(), Shifted(**other).eval()]
    images = -torch.rand(3, 3, 2, 2)
    for network, graph in zip(networks, fixcore.capture_all(networks, images), strict=True):
        torch.testing.assert_close(graph.record(images).logits, network(images).detach())


def test_a_second_network_in_train_mode_is_refused() -> None:
    networks = [Shifted(1.0).eval(), Shifted(1.0)]
    with pytest.raises(fixcore.CaptureError, match="train mode"):
        fixcore.capture_all(networks, torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (fixcore.Start(torch.tensor([0, 2]), torch.tensor([1, 1])), r"a start names images \[2\]; 2 were recorded"),
        (fixcore.Start(torch.tensor([-1]), torch.tensor([1])), r"a start names images \[-1\]"),
        (fixcore.Start(torch.tensor([0, 1]), torch.tensor([1])), "names 2 images and 1 targets"),
        (fixcore.Start(torch.tensor([0]), torch.tensor([3])), r"target holds \[3\]; the network has classes 0\.\.2"),
        (
            fixcore.Start(torch.tensor([0]), torch.tensor([-2]), layer="conv1"),
            r"target holds \[-2\]; neurons are counted",
        ),
        (fixcore.Start(torch.tensor([0]), torch.tensor([1.0])), "target is torch.float32"),
        (fixcore.Start(torch.tensor([[0]]), torch.tensor([1])), r"image is torch.int64 \(1, 1\)"),
    ],
)
def test_a_start_that_names_what_is_not_there_is_refused(start: fixcore.Start, said: str):
    images = integer_images(6, 2)
    recording = fixcore.capture(integer_network(Residual, 6), images).record(images)
    with pytest.raises(fixcore.TargetError, match=said):
        fixcore.backtrack(recording, start)


def test_rules_and_contrasts_that_do_not_exist_are_refused():
    images = integer_images(6, 2)
    recording = fixcore.capture(integer_network(Residual, 6), images).record(images)
    target = recording.logits.argmax(1)
    with pytest.raises(fixcore.InputError, match="no rules 'published'; they are mass, finer, paper"):
        fixcore.backtrack(recording, target, rules="published")  # type: ignore[call-overload]
    with pytest.raises(fixcore.InputError, match="no contrast 'max'; it is mean, softmax, runner_up or None"):
        fixcore.backtrack(recording, target, contrast="max")  # type: ignore[call-overload]
    with pytest.raises(fixcore.TargetError, match=r"no layer 'nope'; did you mean [^_]+\?$"):
        fixcore.backtrack(recording, target, stop_at="nope")
