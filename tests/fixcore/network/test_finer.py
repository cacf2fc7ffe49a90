"""Last maps of few places: what in a finer map speaks for them, and which networks have such."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fixcore
from fixcore.network.finer import finer_points
from tests.oracles import above_mean, added_to_places

SIDES = (20, 24)
"""The images': a map at half of them has places enough, one at a quarter does not."""


class Residual(nn.Module):
    """A block with a skip connection; `act` is its activation."""

    def __init__(self, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.one, self.other, self.act = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 3, padding=1), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.other(self.act(self.one(x))))


class Dense(nn.Module):
    """Features that are joined to those before, behind a batch norm (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.grow, self.back = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(9, 6, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.back(torch.cat([x, self.grow(F.relu(self.norm(x)))], 1)))


class Gated(nn.Module):
    """A map times what its mean says of each channel (squeeze-excite), in groups that are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=3), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1, 2)


class Uneven(nn.Module):
    """A kernel of even size whose padding is uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 2, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(self.conv(x))


class Normed(nn.Module):
    """Channels last between permutations, behind a layer norm (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Read(nn.Module):
    """A stem to half of the sides, `down` to a quarter, blocks, and one of several ways to read the last map."""

    def __init__(self, down: nn.Module, *blocks: nn.Module, read: str = "mean") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU())
        self.down, self.blocks, self.read = down, nn.Sequential(*blocks), read
        places = SIDES[0] * SIDES[1] // 16 if read in ("flat", "flat, hidden") else 1
        self.hidden = nn.Linear(6 * places, 5) if "hidden" in read else nn.Identity()
        self.fc = nn.Linear(5 if "hidden" in read else 6 * places, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.down(self.stem(x)))
        if self.read == "largest":
            return self.fc(x.amax((2, 3)))
        x = x.flatten(1) if "flat" in self.read else x.mean((2, 3))
        return self.fc(F.relu(self.hidden(x)) if "hidden" in self.read else x)


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Read(strided(), Residual(), Residual()),
    "relu6": lambda: Read(strided(), Residual(F.relu6)),
    "maximum pool": lambda: Read(nn.MaxPool2d(2), Residual()),
    "maximum pool behind a padded edge": lambda: Read(nn.MaxPool2d(3, 2, ceil_mode=True), Residual()),
    "mean pool, dense": lambda: Read(nn.AvgPool2d(2), Dense(), Dense()),
    "padded": lambda: Read(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 6, 3, stride=2)), Residual()),
    "gated": lambda: Read(strided(), Gated(), Gated()),
    "even kernel": lambda: Read(strided(), Uneven()),
    "channels last": lambda: Read(nn.Sequential(Normed(), strided()), Normed(), Residual()),
    "hidden layer": lambda: Read(strided(), Residual(), read="hidden"),
    "flat": lambda: Read(strided(), Residual(), read="flat"),
    "flat, hidden": lambda: Read(nn.MaxPool2d(2), Residual(), read="flat, hidden"),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def drawn() -> Tensor:
    return torch.randn(3, 2, *SIDES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_places_have_what_they_add_to_those_above_the_mean(name: str) -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    graph = fixcore.capture(made(name), images[:2])
    finer = graph.finer
    assert finer is not None
    coarse, fine = finer.to_coarse.end, finer.end
    assert [tuple(node.meta["seen"].shape[2:]) for node in (coarse, fine)] == [(5, 6), (10, 12)]
    weight = None if graph.head is None else graph.head.weight[target]
    points = finer_points(graph.record(images), finer, torch.arange(3), target, weight)
    moved = added_to_places(graph, images, target, coarse, fine)
    for image in range(3):
        at = points.trace == image
        found = dict(zip(points.index[at].tolist(), (points.mass[at] / points.mass[at].sum()).tolist(), strict=True))
        expected = {
            ((image * 6 + channel) * 10 + row) * 12 + col: share
            for (channel, row, col), share in above_mean(moved[image]).items()
        }
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_fixations_are_finer_on_request_alone(name: str) -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    graph = fixcore.capture(made(name), images[:2])
    recording = graph.record(images)
    finer, plain = (fixcore.backtrack(recording, target, rules=rules) for rules in ("finer", "mass"))
    assert (finer.margin, plain.margin) == (1.0, 2.0)
    torch.testing.assert_close(torch.zeros(3).index_add_(0, finer.image, finer.mass), torch.ones(3))
    graph.finer = None
    kept = fixcore.backtrack(recording, target)
    for part in ("image", "row", "col", "mass"):
        assert torch.equal(getattr(plain, part), getattr(kept, part))


def test_what_is_recorded_is_what_the_model_answers() -> None:
    """Activations leave alone what the way back reads."""
    for name in ("relu6", "gated", "even kernel"):
        model, images = made(name), drawn()
        torch.testing.assert_close(fixcore.capture(model, images[:2]).record(images).logits, model(images))


def test_several_targets_of_an_image_are_explained_as_alone() -> None:
    images = drawn()
    recording = fixcore.capture(made("residual"), images[:2]).record(images)
    start = fixcore.Start(torch.tensor([2, 0, 2, 1, 0]), torch.tensor([0, 1, 2, -1, 1]))
    together = fixcore.backtrack(recording, start, rules="finer")
    for number, (image, target) in enumerate(zip(start.image.tolist(), start.target.tolist(), strict=True)):
        asked = torch.full((3,), -1)
        asked[image] = target
        alone, own = fixcore.backtrack(recording, asked, rules="finer"), together.image == number
        assert int(own.sum()) == len(alone.mass)
        assert (len(alone.mass) > 0) == (target >= 0)
        for part in ("row", "col"):
            assert torch.equal(getattr(together, part)[own], getattr(alone, part))
        torch.testing.assert_close(together.mass[own], alone.mass)


def test_a_contrast_and_a_probe_are_explained() -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    graph = fixcore.capture(made("residual"), images[:2])
    recording = graph.record(images)
    assert graph.head is not None
    weight = graph.head.weight[target] - graph.head.weight.mean(0)
    contrast = fixcore.backtrack(recording, target, rules="finer", contrast="mean")
    probe = fixcore.backtrack(recording, fixcore.Start(torch.arange(3), target, weight), rules="finer")
    torch.testing.assert_close(contrast.mass, probe.mass)
    plain = fixcore.backtrack(recording, target, rules="finer")
    assert contrast.mass.shape != plain.mass.shape or not torch.allclose(contrast.mass, plain.mass)


def test_an_inner_layer_behind_the_finer_map_is_reached_by_the_rules() -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    recording = fixcore.capture(made("residual"), images[:2]).record(images)
    behind, plain = (
        fixcore.backtrack(recording, target, rules=rules, stop_at="blocks.0") for rules in ("finer", "mass")
    )
    assert torch.equal(behind.mass, plain.mass)
    before = fixcore.backtrack(recording, target, rules="finer", stop_at="stem.0")
    assert before.place.shape[1] == 3
    assert len(before.mass) > len(fixcore.backtrack(recording, target, stop_at="stem.0").mass)


def test_a_class_for_which_nothing_speaks_is_not_left_without_points() -> None:
    model = made("residual")
    model.fc.weight.data[1] = 0  # type: ignore[union-attr, index, operator]
    images = drawn()
    found = fixcore.backtrack(fixcore.capture(model, images[:2]).record(images), torch.tensor([1, 0, 1]), rules="finer")
    assert set(found.image.tolist()) == {0, 1, 2}


class Looking(nn.Module):
    """Places that look at each other."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).unflatten(2, (5, 6)) + x


@pytest.mark.parametrize(
    "network",
    [
        lambda: Read(nn.Identity(), Residual()),
        lambda: Read(strided(), Looking(), Residual()),
        lambda: Read(strided(), Residual(), read="largest"),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(2 * 20 * 24, 3)),
    ],
    ids=["places enough", "tokens mix", "an operation that is not known", "no map"],
)
def test_other_networks_have_no_finer_map(network: Callable[[], nn.Module]) -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    graph = fixcore.capture(network().eval(), images[:2])
    assert graph.finer is None
    recording = graph.record(images)
    finer, plain = (fixcore.backtrack(recording, target, rules=rules) for rules in ("finer", "mass"))
    assert torch.equal(finer.mass, plain.mass)


def test_half_precision_and_memory_formats_are_followed_alike() -> None:
    images, target = drawn(), torch.tensor([2, 0, 1])
    model = made("residual")
    graph = fixcore.capture(model, images[:2])
    half = fixcore.capture(model.bfloat16(), images[:2].bfloat16())
    last = images.to(memory_format=torch.channels_last)
    maps = [
        fixcore.saliency_maps(fixcore.backtrack(own.record(shown), target, rules="finer"), sigma=1.5)
        for own, shown in ((graph, images), (graph, last), (half, images.bfloat16()))
    ]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-4)
    assert F.cosine_similarity(maps[0].flatten(1), maps[2].flatten(1)).min() > 0.9


class Strongest(nn.Module):
    """A maximum pool over all places, behind ReLU, of whose channels two never fire."""

    def __init__(self, *, between: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.last = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 6, 3, 2, 1), nn.Linear(6, 5)
        nn.init.constant_(self.other.bias[:2], -50)
        nn.init.constant_(self.last.weight[:, :2], -1)
        self.between = between

    def forward(self, images: Tensor) -> Tensor:
        strong = F.relu(self.other(F.relu(self.one(images))))
        return self.last(F.adaptive_max_pool2d(strong.clone() if self.between else strong, 1).flatten(1))


def test_a_last_map_counts_as_the_network_has_it():
    """Where the ReLU is applied by the pool behind it, what is below 0 adds nothing."""
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        graphs = [fixcore.capture(Strongest(between=between).eval(), images) for between in (False, True)]
    assert all(graph.finer is not None for graph in graphs)
    one, other = (fixcore.backtrack(graph.record(images), torch.arange(3), rules="finer") for graph in graphs)
    assert torch.equal(one.col, other.col)
    assert torch.equal(one.row, other.row)
    torch.testing.assert_close(one.mass, other.mass)
