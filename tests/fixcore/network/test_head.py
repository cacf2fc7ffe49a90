"""What a network ends in: the map that its head reads, norms on the way, and hidden layers behind a pool."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fixcore
from fixcore.baselines.class_maps import cam
from tests.fixcore.networks import Attentive, Channelwise, Pooled, integer_images, integer_network

aten = torch.ops.aten


class Wrapped(nn.Module):
    """A map, its average over all places however that is said, and a head."""

    def __init__(self, head: Callable[[], nn.Module], channels_last: bool = False) -> None:
        super().__init__()
        self.map = nn.Conv2d(2, 6, 3, padding=1)
        self.head, self.channels_last = head(), channels_last

    def forward(self, images: Tensor) -> Tensor:
        found = F.relu(self.map(images))
        if self.channels_last:
            return self.head(found.permute(0, 2, 3, 1).mean((1, 2)))
        return self.head(F.adaptive_avg_pool2d(found, 1).flatten(1))


class Averaged(nn.Module):
    """Two heads averaged, each behind its own batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)) for _ in range(2))

    def forward(self, pooled: Tensor) -> Tensor:
        return (self.one(pooled) + self.other(pooled)) / 2


def random_network(head: Callable[[], nn.Module], **options: bool) -> nn.Module:
    torch.manual_seed(0)
    network = Wrapped(head, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm) and module.weight is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "plain"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_behind_a_layer_norm_there_is_a_class_map(learned, channels_last):
    """The map, weighed as `on_map` says, averages to the logit less its shift, times the norm's own spread."""
    head = nn.Sequential(nn.LayerNorm(6, elementwise_affine=learned), nn.Linear(6, 3))
    network, images = random_network(lambda: head, channels_last=channels_last), torch.randn(4, 2, 6, 8)
    graph = fixcore.capture(network, images)
    assert graph.head is not None
    assert len(graph.head.places) == 2
    recording = graph.record(images)
    features = recording.features
    with torch.no_grad():
        pooled = F.relu(network.map(images)).mean((2, 3))  # type: ignore[operator]
        torch.testing.assert_close(features, head[0](pooled))
        torch.testing.assert_close(graph.embed(images), features)
        torch.testing.assert_close(recording.logits, features @ graph.head.weight.T + head[1].bias)
        by_place = graph.head.by_place(recording.values[graph.head.map])
        level = (by_place @ graph.head.on_map(graph.head.weight).T).mean(1)
        spread = (pooled.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        shift = head[1].bias + (head[1].weight @ head[0].bias if learned else 0.0)
        torch.testing.assert_close(level, (recording.logits - shift) * spread, rtol=1e-4, atol=1e-5)
    target = torch.tensor([0, 1, 2, 0])
    assert torch.isfinite(cam(graph, images, target)).all()
    margin = fixcore.backtrack(recording, target).margin
    assert margin == 0.5, "half a place of the class map, which has the images' extent"


def test_a_norm_of_other_features_leaves_a_vector():
    network = random_network(
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LayerNorm(3), nn.Flatten(), nn.Linear(6, 3))
    )
    graph = fixcore.capture(network, torch.randn(2, 2, 6, 8))
    assert graph.head is not None
    assert graph.head.places == ()
    assert graph.head.norm is None


@pytest.mark.parametrize(
    ("head", "left"),
    [
        (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), 0),
        (lambda: nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3, bias=False)), 0),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), 0),
        (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)), 0),
        (Averaged, 0),
        (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), 1),
    ],
)
def test_batch_norms_of_vectors_are_folded_into_linear_layers(head, left):
    network, images = random_network(head), torch.randn(4, 2, 6, 8)
    graph = fixcore.capture(network, images)
    with torch.no_grad():
        torch.testing.assert_close(graph.record(images).logits, network(images), rtol=1e-4, atol=1e-5)
    assert sum(node.target is aten.batch_norm.default for node in graph.nodes) == left


def test_a_batch_norm_that_others_read_stays():
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 6)

        def forward(self, pooled: Tensor) -> Tensor:
            normalised = self.norm(pooled)
            return self.fc(normalised) + normalised

    network, images = random_network(Read), torch.randn(4, 2, 6, 8)
    graph = fixcore.capture(network, images)
    with torch.no_grad():
        torch.testing.assert_close(graph.record(images).logits, network(images), rtol=1e-4, atol=1e-5)


class Passes(nn.Module):
    """A hidden layer that changes nothing, or says one less what is there, and a linear layer."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.same, self.fc, self.inverted = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False), inverted
        self.same.weight.data = torch.eye(6)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc(1 - pooled if self.inverted else F.relu(self.same(pooled)))


@pytest.mark.parametrize("inverted", [False, True])
def test_behind_a_hidden_layer_the_class_map_has_the_weights_of_what_was_read(inverted):
    """A layer that changes nothing changes no evidence; what one less a feature adds is what the feature takes away."""
    network, images = random_network(lambda: Passes(inverted)), torch.randn(4, 2, 6, 8)
    target = torch.tensor([0, 1, 2, 0])
    plain = Wrapped(lambda: network.head.fc).eval()  # type: ignore[union-attr,return-value]
    plain.map = network.map
    recording = fixcore.capture(plain, images).record(images)
    assert recording.graph.head is not None
    weight = recording.graph.head.weight[target] * (-1 if inverted else 1)
    expected = fixcore.backtrack(recording, fixcore.Start(torch.arange(4), target, weight))
    found = fixcore.backtrack(fixcore.capture(network, images).record(images), target)
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.mass, expected.mass, rtol=1e-4, atol=1e-6)
    assert found.margin == expected.margin == 0.5
    torch.testing.assert_close(fixcore.evidence_boxes(found), fixcore.evidence_boxes(expected))


class Flattened(nn.Module):
    """A map and layers on the whole of it."""

    def __init__(self, own_map: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.map, self.layers = own_map, nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(F.relu(self.map(images)))


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight.contiguous()
    if bias is not None:
        layer.bias.data = bias
    return layer


def sayings(head: nn.Linear, places: tuple[int, int]) -> dict[str, list[nn.Module]]:
    """Return layers that make of a map the logits of a linear layer on its average."""
    weight, bias = head.weight.detach(), head.bias.detach()
    count = places[0] * places[1]
    spread = (weight[:, :, None] / count).expand(-1, -1, count).flatten(1)
    turn = torch.linalg.qr(torch.randn(spread.shape[1], spread.shape[1])).Q
    both_ways = torch.cat([turn, -turn])  # of each pair one is above 0
    seen = nn.Conv2d(weight.shape[1], len(weight), places)
    seen.weight.data, seen.bias.data = spread.view(*weight.shape, *places).contiguous(), bias
    return {
        "flattened": [nn.Flatten(), linear(spread, bias)],
        "hidden": [
            nn.Flatten(),
            linear(both_ways),
            nn.ReLU(),
            linear(torch.cat([spread @ turn.T] * 2, 1) * SIDES, bias),
        ],
        "two layers": [nn.Flatten(), linear(turn), linear(spread @ turn.T, bias)],
        "convolution": [seen, nn.Flatten()],
        "log-softmax": [nn.Flatten(), linear(spread, bias), nn.LogSoftmax(1)],
        "one less": [
            nn.Flatten(),
            linear(turn),
            OneLess(),
            linear(-(spread @ turn.T), bias + (spread @ turn.T).sum(1)),
        ],
    }


class OneLess(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return 1 - values


SIDES = torch.cat([torch.ones(288), -torch.ones(288)])


@pytest.mark.parametrize("words", ["flattened", "hidden", "two layers", "convolution", "log-softmax", "one less"])
def test_however_a_head_is_written_its_evidence_is_that_of_its_function(words):
    """A linear layer on the average, or layers on the flattened map (AlexNet, VGG) that give the same logits."""
    network, images = random_network(lambda: nn.Linear(6, 3)), torch.randn(4, 2, 6, 8)
    target = torch.tensor([0, 1, 2, 0])
    assert isinstance(network.head, nn.Linear)
    assert isinstance(network.map, nn.Conv2d)
    said = Flattened(network.map, *sayings(network.head, (6, 8))[words]).eval()
    expected = fixcore.backtrack(fixcore.capture(network, images).record(images), target)
    recording = fixcore.capture(said, images).record(images)
    found = fixcore.backtrack(recording, target)
    with torch.no_grad():
        own = recording.logits if words == "log-softmax" else recording.logits.log_softmax(1)
        torch.testing.assert_close(own, network(images).log_softmax(1), rtol=1e-4, atol=1e-4)
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.mass, expected.mass, rtol=1e-2, atol=1e-5)
    assert found.margin == expected.margin == 0.5


class Words(nn.Module):
    """A convolution and what is said of it in words of one's own."""

    def __init__(self, words: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.head, self.words = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3), words

    def forward(self, images: Tensor) -> Tensor:
        return self.words(F.relu(self.map(images)), self.head.weight, self.head.bias)


def averages(values: Tensor) -> Tensor:
    return values.mean((2, 3))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum((2, 3)) / 48,
    "sum, times": lambda x: x.sum((-1, -2), keepdim=True).flatten(1) * (1 / 48),
    "sums": lambda x: x.sum(3).sum(2) / 48,
    "sum of means": lambda x: x.mean(3, keepdim=True).sum(2, keepdim=True).flatten(1) / 6,
    "einsum": lambda x: torch.einsum("nchw->nc", x) / 48,
    "means": lambda x: x.mean(3).mean(2),
    "means, first axis first": lambda x: x.mean(-2).mean(-1),
    "means of a map with its channels last": lambda x: x.permute(0, 2, 3, 1).mean(2).mean(1),
    "sum over windows": lambda x: F.avg_pool2d(x, (6, 8), divisor_override=1).flatten(1) / 48,
    "divided later": lambda x: x.sum((2, 3)).mul(2).div(96),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "einsum": lambda x, weight, bias: torch.einsum("nd,kd->nk", averages(x), weight) + bias,
    "einsum of a map": lambda x, weight, bias: torch.einsum("nchw,kc->nk", x, weight) / 48 + bias,
    "weight on the left": lambda x, weight, bias: (weight @ averages(x)[..., None])[..., 0] + bias,
    "vectors as rows": lambda x, weight, bias: (averages(x)[:, None] @ weight.T)[:, 0] + bias,
    "images as columns": lambda x, weight, bias: (weight @ averages(x).T).T + bias,
    "batched": lambda x, weight, bias: torch.bmm(averages(x)[None], weight.T[None])[0] + bias,
}


def check_traced_alike(words: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[fixcore.Recording]:
    """Assert that in these words a linear layer on the average has the same evidence; return the recording."""
    images, target = torch.randn(4, 2, 6, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    plain, network = Words(lambda x, weight, bias: F.linear(averages(x), weight, bias)).eval(), Words(words).eval()
    recordings = [fixcore.capture(one, images).record(images) for one in (plain, network)]
    torch.testing.assert_close(recordings[1].logits, recordings[0].logits)
    expected, found = (fixcore.backtrack(recording, target) for recording in recordings)
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.mass, expected.mass, rtol=1e-3, atol=1e-5)
    assert found.margin == expected.margin == 0.5
    return recordings


@pytest.mark.parametrize("name", POOLS)
def test_an_average_in_other_words_has_a_class_map(name):
    plain, said = check_traced_alike(lambda x, weight, bias: F.linear(POOLS[name](x), weight, bias))
    torch.testing.assert_close(said.features, plain.features)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_linear_layer_in_other_words_is_one(name):
    check_traced_alike(PRODUCTS[name])


def test_a_sum_over_windows_is_no_average():
    """A pool with a divisor of its own: features are what the linear layer reads."""
    images = torch.randn(4, 2, 6, 8)
    network = Words(
        lambda x, weight, bias: F.linear(F.avg_pool2d(x, (6, 8), divisor_override=3).flatten(1), weight, bias)
    )
    graph = fixcore.capture(network.eval(), images)
    with torch.no_grad():
        for features in (graph.record(images).features, graph.embed(images)):
            torch.testing.assert_close(network.head(features), network(images))


@pytest.mark.parametrize("rules", ["mass", "finer", "paper"])
def test_views_of_the_images_in_one_batch_are_no_places(rules):
    images, target = torch.randn(3, 2, 6, 8), torch.tensor([0, 1, 2])
    network = Words(
        lambda x, weight, bias: F.linear(averages(torch.cat([x, x.flip(3)])), weight, bias).view(2, -1, 3).mean(0)
    )
    recording = fixcore.capture(network.eval(), images).record(images)
    found = fixcore.backtrack(recording, target, rules=rules)
    assert torch.equal(found.image.unique(), torch.arange(3))
    assert bool(torch.isfinite(found.mass).all())


@pytest.mark.parametrize("family", [Channelwise, Pooled])
def test_half_precision_and_double_are_walked_alike(family):
    images, target = integer_images(5, 4), torch.tensor([0, 1, 2, 1])
    network = integer_network(family, 5)
    full = fixcore.backtrack(fixcore.capture(network, images).record(images), target)
    double = fixcore.backtrack(fixcore.capture(network.double(), images.double()).record(images.double()), target)
    assert torch.equal(full.row, double.row)
    assert torch.equal(full.col, double.col)
    torch.testing.assert_close(full.mass, double.mass, rtol=1e-3, atol=1e-5)


def test_a_token_stands_for_its_patch():
    """A network on 12 patches of 2 x 2 pixels that ends in their mean: a single one has a box of more than a pixel."""
    images = integer_images(5, 4)
    recording = fixcore.capture(integer_network(Attentive, 5), images).record(images)
    assert recording.graph.head is not None
    assert len(recording.graph.head.places) == 1
    assert fixcore.backtrack(recording, torch.tensor([0, 1, 2, 1])).margin == 1.0


def test_a_batch_norm_of_the_batch_at_hand_is_passed():
    """Without running statistics nothing says what one image's features were multiplied by."""
    layers = (nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.manual_seed(0)
    images = torch.randn(4, 2, 6, 8)
    recording = fixcore.capture(Wrapped(lambda: nn.Sequential(*layers)).eval(), images).record(images)
    fixations = fixcore.backtrack(recording, torch.tensor([0, 1, 2, 1]))
    torch.testing.assert_close(torch.zeros(4).index_add_(0, fixations.image, fixations.mass), torch.ones(4))


def test_a_vector_is_one_whatever_its_dimensions():
    """Pooled features as a map of one place, channels last, through a norm and a hidden layer."""

    class Hidden(nn.Module):
        def __init__(self, as_map: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.norm, self.hidden, self.fc, self.as_map = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(4, 3), as_map

        def forward(self, pooled: Tensor) -> Tensor:
            given = pooled[:, None, None] if self.as_map else pooled
            return self.fc(F.relu(self.hidden(self.norm(given))).flatten(1))

    torch.manual_seed(0)
    images, target = torch.randn(4, 2, 6, 8), torch.tensor([0, 1, 2, 1])
    found = []
    for as_map in (False, True):
        network = random_network(functools.partial(Hidden, as_map))
        found.append(fixcore.backtrack(fixcore.capture(network, images).record(images), target))
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    torch.testing.assert_close(found[0].mass, found[1].mass)


def test_a_map_that_was_turned_before_it_was_flattened_is_not_the_heads():
    """Its features come in another order than the head's weights."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(96, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.map(images).permute(0, 2, 3, 1).flatten(1))

    torch.manual_seed(0)
    network, images = Turned().eval(), torch.randn(4, 2, 6, 8)
    graph = fixcore.capture(network, images)
    assert graph.head is not None
    with torch.no_grad():
        torch.testing.assert_close(graph.embed(images) @ graph.head.weight.T + network.fc.bias, network(images))


class Parts(nn.Module):
    """Both halves of an image go through the network as images of their own; their logits stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        halves = torch.stack([images[..., :8], images[..., 8:]], 1).flatten(0, 1)
        return self.last(torch.relu(self.map(halves)).mean((2, 3))).view(len(images), 10)


@pytest.mark.parametrize("rules", ["mass", "finer", "paper"])
def test_logits_of_an_images_parts_have_their_evidence_in_these(rules):
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graph = fixcore.capture(Parts().eval(), images)
    recording = graph.record(images)
    left, right = (fixcore.backtrack(recording, torch.full((3,), at), rules=rules) for at in (0, 5))
    assert set(left.image.tolist()) == set(right.image.tolist()) == {0, 1, 2}
    assert int(left.col.max()) < 8 <= int(right.col.min())
    other = images.clone()
    other[0] += 1
    again = fixcore.backtrack(graph.record(other), torch.full((3,), 0), rules=rules)
    for image in (1, 2):
        assert torch.equal(again.mass[again.image == image], left.mass[left.image == image])
    with pytest.raises(fixcore.CaptureError, match="does not end in a linear layer"):
        graph.embed(images)


def test_one_output_is_set_against_nothing():
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    graph = fixcore.capture(network.eval(), images)
    assert fixcore.usual_contrast(graph) is None
    with pytest.raises(fixcore.TargetError, match="one output"):
        fixcore.backtrack(graph.record(images), torch.zeros(2, dtype=torch.int64), contrast="mean")
