"""Networks in which tokens mix: what each place of the map before them adds, and which networks are such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fixcore
from fixcore.network.tokens import token_points
from tests.fixcore.networks import FAMILIES, Attentive, integer_images, integer_network
from tests.oracles import above_mean, added_at

aten = torch.ops.aten


class Looking(nn.Module):
    """Tokens that look at each other once, by one of several ways to write it; residual, norms, layer scale."""

    def __init__(self, look: Callable[[Tensor, Tensor, Tensor], Tensor], heads: int = 2, shared: int = 2) -> None:
        super().__init__()
        self.look, self.heads, self.shared = look, heads, shared
        self.norm, self.query = nn.LayerNorm(8), nn.Linear(8, 8)
        self.key, self.value = (nn.Linear(8, 8 // heads * shared) for _ in range(2))
        self.out, self.scale = nn.Linear(8, 8), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (
            part(normed).unflatten(-1, (count, -1)).transpose(1, 2)
            for part, count in ((self.query, self.heads), (self.key, self.shared), (self.value, self.shared))
        )
        return x + self.scale * self.out(self.look(query, key, value).transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """Attention whose queries, keys and values one linear layer makes, taken apart by `parts`."""

    def __init__(self, parts: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.parts, self.norm = parts, nn.LayerNorm(8)
        self.query_key_value, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(self.query_key_value(self.norm(x)))
        return x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Attending(nn.Module):
    """torch's own attention, whose linear layers read tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.look = nn.LayerNorm(8), nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).transpose(0, 1)
        return x + self.look(tokens, tokens, tokens, need_weights=False)[0].transpose(0, 1)


def chunks(packed: Tensor) -> list[Tensor]:
    return [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in packed.chunk(3, -1)]


def permuted(packed: Tensor) -> Sequence[Tensor]:
    """As in Swin and timm."""
    return packed.reshape(packed.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)


def head_by_head(packed: Tensor) -> Sequence[Tensor]:
    """Query, key and value of one head, then those of the other: the values do not lie together."""
    return packed.unflatten(-1, (2, 12)).transpose(1, 2).split([4, 4, 4], -1)


def values_are_queries(packed: Tensor) -> list[Tensor]:
    query, key, _ = permuted(packed)
    return [query, key, query]


def value_and_all(packed: Tensor) -> list[Tensor]:
    """What is looked at is the values, and all that was made, added up."""
    query, key, value = permuted(packed)
    return [query, key, value + packed.unflatten(-1, (3, 2, 4)).sum(2).transpose(1, 2)]


class Gated(nn.Module):
    """A hidden layer of which one half says how much of the other passes (SwiGLU); what is 0 is lifted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.both, self.back = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.both(self.norm(x)).chunk(2, -1)
        return x + self.back(F.silu(one) * F.softplus(other))


class Mixing(nn.Module):
    """A linear layer among the tokens of each feature (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.back = nn.LayerNorm(8), nn.Linear(12, 5), nn.Linear(5, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.mix(self.norm(x).transpose(1, 2)))).transpose(1, 2)


class Encoder(nn.Module):
    """A map of 3 x 4 places as tokens, with learned ones before them; what the head reads of them is one of several."""

    def __init__(self, *blocks: nn.Module, learned: int = 1, read: str = "first", stem: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()) if stem else nn.Identity()
        self.patches, self.blocks, self.read = nn.Conv2d(2, 8, 2, stride=2), nn.ModuleList(blocks), read
        self.token = nn.Parameter(torch.randn(1, learned, 8))
        self.place = nn.Parameter(torch.randn(1, 12 + learned, 8))
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(16 if read == "both" else 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.patches(self.stem(x))).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.read == "all":
            return x
        learned = self.token.shape[1]
        read = {
            "first": lambda: x[:, 0],
            "mean": lambda: x.mean(1),
            "both": lambda: torch.cat([x[:, 0], x[:, learned:].mean(1)], 1),
            "largest": lambda: x.amax(1),
        }
        return self.fc(read[self.read]())


def fused(**options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda query, key, value: F.scaled_dot_product_attention(query, key, value, **options)


def spelled_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return ((query @ key.transpose(-1, -2)) * 0.5).softmax(-1) @ value


def values_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention on the right of the values."""
    weights = ((key @ query.transpose(-1, -2)) * 0.5).softmax(-2)
    return (value.transpose(-1, -2) @ weights).transpose(-1, -2)


def without_softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2)) @ value / 12


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed before and after the softmax, and scaled to sum to 1 (CaiT, ConViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        score = self.before((query @ key.transpose(-1, -2)).permute(0, 2, 3, 1)).softmax(2)
        mixed = self.after(score).permute(0, 3, 1, 2)
        return (mixed / (mixed.sum(-1, keepdim=True) + 20.0)) @ value


class Normed(nn.Module):
    """A linear layer on tokens behind a batch norm of flattened tokens (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + F.hardswish(self.norm(self.mix(x).flatten(0, 1)).view_as(x))


def gated_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A softmax that says how much of each score passes: what is looked at, and how much, are both followed."""
    score = query @ key.transpose(-1, -2)
    return (score * score.softmax(-1)) @ value


def only_later(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).triu()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "class token": lambda: Encoder(Looking(fused()), Gated(), Looking(fused())),
    "registers, spelled out": lambda: Encoder(Looking(spelled_out), Looking(spelled_out), learned=3),
    "mean of the tokens": lambda: Encoder(Looking(fused(scale=0.3)), learned=0, read="mean"),
    "class token and mean": lambda: Encoder(Looking(fused()), read="both"),
    "values first": lambda: Encoder(Looking(values_first)),
    "products of three": lambda: Encoder(Looking(without_softmax)),
    "gated scores": lambda: Encoder(Looking(gated_scores)),
    "later tokens alone": lambda: Encoder(Looking(fused(attn_mask=only_later(13))), Looking(fused())),
    "earlier tokens alone": lambda: Encoder(Looking(fused(is_causal=True)), learned=0, read="mean"),
    "a bias": lambda: Encoder(Looking(fused(attn_mask=torch.linspace(-1, 1, 169).view(13, 13)))),
    "shared keys and values": lambda: Encoder(Looking(fused(enable_gqa=True), heads=4, shared=2)),
    "talking heads": lambda: Encoder(Looking(TalkingHeads()), Looking(TalkingHeads())),
    "batch norm of tokens": lambda: Encoder(Looking(fused()), Normed()),
    "packed, by chunks": lambda: Encoder(Packed(chunks), Packed(chunks)),
    "packed, permuted": lambda: Encoder(Packed(permuted), Packed(permuted)),
    "packed, head by head": lambda: Encoder(Packed(head_by_head), Packed(head_by_head)),
    "packed, values are queries": lambda: Encoder(Packed(values_are_queries)),
    "packed, all of it read": lambda: Encoder(Packed(value_and_all)),
    "packed by torch": lambda: Encoder(Attending(), Attending()),
    "mixer": lambda: Encoder(Mixing(), Gated(), Mixing(), learned=0, read="mean"),
    "behind convolutions": lambda: Encoder(Looking(fused()), stem=True),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_places_have_what_they_add_through_all_layers(name: str) -> None:
    images, target = torch.randn(3, 2, 6, 8), torch.tensor([2, 0, 1])
    graph = fixcore.capture(made(name), images[:2])
    tokens = graph.tokens
    assert tokens is not None
    assert tokens.end.target in (aten.conv2d.default, aten.relu_.default)
    assert graph.head is not None
    points = token_points(graph.record(images), tokens, torch.arange(3), target, graph.head.weight[target])
    moved = added_at(graph, images, target, tokens.end)
    for image in range(3):
        at = points.trace == image
        found = dict(zip(points.index[at].tolist(), (points.mass[at] / points.mass[at].sum()).tolist(), strict=True))
        expected = {
            ((image * 8 + channel) * 3 + row) * 4 + col: share
            for (channel, row, col), share in above_mean(moved[image]).items()
        }
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("packed, by chunks", slice(16, 24)),
        ("packed, permuted", slice(16, 24)),
        ("packed by torch", slice(16, 24)),
        ("packed, head by head", slice(8, 24)),
        ("packed, values are queries", slice(0, 8)),
        ("packed, all of it read", slice(None)),
    ],
)
def test_of_packed_projections_the_values_alone_are_followed(name: str, expected: slice) -> None:
    """For any number of images, in the batch that came first and in others."""
    images = torch.randn(4, 2, 6, 8)
    graph = fixcore.capture(made(name), images[:2])
    fixcore.backtrack(graph.record(images[:1]), torch.tensor([0]))
    assert graph.tokens is not None
    packed = [
        graph.tokens.parts[node]
        for node, _ in graph.tokens.steps
        if node.target is aten.linear.default and node.meta["seen"].shape[-1] == 24
    ]
    assert packed
    assert set(map(str, packed)) == {str(expected)}
    target = torch.tensor([0, 1, 2, 0])
    again = fixcore.backtrack(fixcore.capture(made(name), images).record(images), target)
    later = fixcore.backtrack(graph.record(images), target)
    for what in ("row", "col", "mass"):
        assert torch.equal(getattr(again, what), getattr(later, what))


def test_targets_in_any_order_are_explained_as_alone() -> None:
    """Several of one image, none of another; a place stands for its patch."""
    images = torch.randn(3, 2, 6, 8)
    graph = fixcore.capture(made("class token"), images[:2])
    recording = graph.record(images)
    start = fixcore.Start(torch.tensor([2, 0, 2, 1, 0]), torch.tensor([0, 1, 2, -1, 1]))
    together = fixcore.backtrack(recording, start)
    assert together.margin == 1.0
    for number, (image, target) in enumerate(zip(start.image.tolist(), start.target.tolist(), strict=True)):
        asked = torch.full((3,), -1)
        asked[image] = target
        alone, own = fixcore.backtrack(recording, asked), together.image == number
        assert int(own.sum()) == len(alone.mass)
        assert (len(alone.mass) > 0) == (target >= 0)
        for name in ("row", "col"):
            assert torch.equal(getattr(together, name)[own], getattr(alone, name))
        torch.testing.assert_close(together.mass[own], alone.mass)


def test_a_probe_and_a_contrast_are_explained() -> None:
    images, target = torch.randn(3, 2, 6, 8), torch.tensor([2, 0, 1])
    graph = fixcore.capture(made("class token"), images[:2])
    recording = graph.record(images)
    assert graph.head is not None
    weight = graph.head.weight[target]
    plain = fixcore.backtrack(recording, target)
    probe = fixcore.backtrack(recording, fixcore.Start(torch.arange(3), target, weight))
    torch.testing.assert_close(probe.mass, plain.mass)
    contrast = fixcore.backtrack(recording, target, contrast="mean")
    by_hand = fixcore.Start(torch.arange(3), target, weight - graph.head.weight.mean(0))
    torch.testing.assert_close(contrast.mass, fixcore.backtrack(recording, by_hand).mass)
    assert contrast.mass.shape != plain.mass.shape or not torch.allclose(contrast.mass, plain.mass)


def test_without_a_linear_head_no_probe_is_explained() -> None:
    """Two heads averaged (DeiT with a distillation token): the logits are explained, and nothing else."""

    class Averaged(Encoder):
        def __init__(self) -> None:
            super().__init__(Looking(fused()), read="all")
            self.one, self.other = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = super().forward(x)
            return (self.one(tokens[:, 0]) + self.other(tokens[:, 1])) / 2

    images = torch.randn(2, 2, 6, 8)
    graph = fixcore.capture(Averaged().eval(), images)
    assert graph.head is None
    recording = graph.record(images)
    assert set(fixcore.backtrack(recording, torch.tensor([0, 1])).image.tolist()) == {0, 1}
    probe = fixcore.Start(torch.arange(2), torch.tensor([0, 1]), torch.randn(2, 8))
    with pytest.raises(fixcore.TargetError, match="linear layer"):
        fixcore.backtrack(recording, probe)
    with pytest.raises(fixcore.TargetError, match="linear layer"):
        fixcore.backtrack(recording, torch.tensor([0, 1]), contrast="mean")


def test_where_nothing_speaks_the_published_walk_is_shown() -> None:
    """A class without weights has no evidence, and is not left without points."""
    network = made("class token")
    network.fc.weight.data[1] = 0  # type: ignore[union-attr, index, operator]
    images = torch.randn(2, 2, 6, 8)
    graph = fixcore.capture(network, images)
    recording = graph.record(images)
    found = fixcore.backtrack(recording, torch.tensor([1, 0]))
    assert set(found.image.tolist()) == {0, 1}
    graph.tokens = None
    published = fixcore.backtrack(recording, torch.tensor([1, -1]))
    for name in ("row", "col", "mass"):
        assert torch.equal(getattr(found, name)[found.image == 0], getattr(published, name))


def test_of_an_inner_layer_and_of_its_neurons_the_walk_is_as_elsewhere() -> None:
    images = torch.randn(2, 2, 6, 8)
    recording = fixcore.capture(made("class token"), images).record(images)
    inner = fixcore.backtrack(recording, torch.tensor([0, 1]), stop_at="blocks.0")
    assert inner.place.shape[1] == 2
    assert len(inner.mass) > 0
    patches = fixcore.backtrack(recording, torch.tensor([0, 1]), stop_at="patches")
    assert patches.place.shape[1] == 3
    assert len(patches.mass) > 0
    neurons = fixcore.Start(torch.arange(2), torch.tensor([3, 4]), layer="blocks.0")
    assert len(fixcore.backtrack(recording, neurons).mass) > 0


def test_the_map_is_one_that_all_evidence_passes() -> None:
    """Tokens of two convolutions added up: neither of them holds all."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = (nn.Conv2d(2, 8, 2, stride=2) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + torch.tanh(self.other(x))

    torch.manual_seed(0)
    network = Encoder(Looking(fused())).eval()
    network.patches = Patches()  # type: ignore[assignment]
    tokens = fixcore.capture(network, torch.randn(2, 2, 6, 8)).tokens
    assert tokens is not None
    assert tokens.end.target in (aten.relu.default, aten.relu_.default, aten.add.Tensor)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family is not Attentive], ids=lambda family: family.__name__
)
def test_no_tokens_mix_behind_the_last_map_of_other_networks(family: type[nn.Module]) -> None:
    assert fixcore.capture(integer_network(family, 0), integer_images(0, 2)).tokens is None


def test_behind_an_operation_that_is_not_known_here_the_walk_goes_by_its_rules() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 2, 6, 8)
    graph = fixcore.capture(Encoder(Looking(fused()), read="largest").eval(), images)
    assert graph.tokens is None
    assert set(fixcore.backtrack(graph.record(images), torch.tensor([0, 1])).image.tolist()) == {0, 1}


def test_patches_seen_as_images_are_walked_by_the_rules() -> None:
    """A map of twelve patches of each image, one after another, holds no image in a row (TNT)."""

    class Inner(Encoder):
        def __init__(self) -> None:
            super().__init__(Looking(fused()), learned=0, read="mean")
            self.inner = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            cut = x.unflatten(2, (3, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            tokens = self.inner(cut).view(x.shape[0], 12, 8) + self.place
            return self.fc(self.norm(self.blocks[0](tokens)).mean(1))

    torch.manual_seed(0)
    images = torch.randn(3, 2, 6, 8)
    graph = fixcore.capture(Inner().eval(), images)
    assert graph.tokens is not None
    recording, target = graph.record(images), torch.tensor([0, 1, 2])
    found = fixcore.backtrack(recording, target)
    graph.tokens = None
    expected = fixcore.backtrack(recording, target)
    for name in ("image", "row", "col", "mass"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_half_precision_is_followed_alike() -> None:
    images, target = torch.randn(2, 2, 6, 8), torch.tensor([0, 1])
    network = made("registers, spelled out")
    full = fixcore.capture(network, images)
    half = fixcore.capture(network.bfloat16(), images.bfloat16())
    maps = [
        fixcore.saliency_maps(fixcore.backtrack(graph.record(own), target), sigma=1.0)
        for graph, own in ((full, images), (half, images.bfloat16()))
    ]
    assert torch.nn.functional.cosine_similarity(maps[0].flatten(1), maps[1].flatten(1)).min() > 0.9
