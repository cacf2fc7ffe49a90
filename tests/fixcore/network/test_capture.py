"""Captured structures kept as text: the same graph again, and never another network's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.export import Dim

import fixcore
from fixcore.network import capture as module
from fixcore.structure import from_json
from tests.fixcore.networks import FAMILIES, Residual, integer_images, integer_network

IMAGES = integer_images(0, 3)
TARGET = torch.tensor([0, 1, 2])


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that were exported."""
    seen: list[nn.Module] = []
    plain = module._exported

    def counted(model: nn.Module, example: Tensor) -> Any:
        seen.append(model)
        return plain(model, example)

    monkeypatch.setattr(module, "_exported", counted)
    return seen


def same(one: fixcore.Graph, other: fixcore.Graph) -> bool:
    """Whether two graphs give the same logits and fixations to the last bit."""
    first, second = one.record(IMAGES), other.record(IMAGES)
    a, b = fixcore.backtrack(first, TARGET), fixcore.backtrack(second, TARGET)
    return torch.equal(first.logits, second.logits) and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("image", "row", "col", "mass")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_network_is_the_captured_one(family, exports):
    network, cache = integer_network(family, 3), {}
    first = fixcore.capture(network, IMAGES, cache=cache)
    assert len(cache) == 1
    again = fixcore.capture(network, IMAGES, cache=cache)
    assert len(exports) == 1
    assert same(first, again)
    assert [node.name for node in first.nodes] == [node.name for node in again.nodes]
    assert [node.meta["modules"] for node in first.nodes] == [node.meta["modules"] for node in again.nodes]
    assert [node.meta["line"] for node in first.nodes] == [node.meta["line"] for node in again.nodes]


@pytest.mark.parametrize("name", ["swin_t", "vit_b_32", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_published_networks_can_be_kept(name, exports):
    network, cache = torchvision.models.get_model(name, weights=None).eval(), {}
    images = torch.rand(2, 3, 224, 224)
    graphs = [fixcore.capture(network, images, cache=cache) for _ in range(2)]
    assert len(exports) == len(cache) == 1
    first, again = (graph.record(images).logits for graph in graphs)
    assert torch.equal(first, again)


class Numbers(Residual):
    """Holds a number that is neither parameter nor buffer, and writes one into a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(2.0)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[2:])
        mask[1:3] = 0.5
        answer: Tensor = super().forward(x * self.scale * mask)
        return answer


def test_numbers_that_are_no_parameters_are_kept_too(exports):
    networks, cache = [Numbers().eval() for _ in range(2)], {}
    first, again = (fixcore.capture(networks[0], IMAGES, cache=cache) for _ in range(2))
    assert len(exports) == len(cache) == 1
    assert same(first, again)
    torch.testing.assert_close(again.record(IMAGES).logits, networks[0](IMAGES))
    _, other = fixcore.capture_all(networks, IMAGES)
    assert len(exports) == 2  # for both together
    torch.testing.assert_close(other.record(IMAGES).logits, networks[1](IMAGES))
    networks[1].load_state_dict(networks[0].state_dict())
    networks[1].scale = torch.tensor(2.001)  # too little to be told by what they answer
    for other in (fixcore.capture(networks[1], IMAGES, cache=cache), fixcore.capture_all(networks, IMAGES)[1]):
        assert torch.equal(other.record(IMAGES).logits, fixcore.capture(networks[1], IMAGES).record(IMAGES).logits)
    assert len(cache) == 2


def test_other_weights_shapes_or_code_are_another_network(exports):
    cache: dict[str, str] = {}
    network = integer_network(Residual, 0)
    fixcore.capture(network, IMAGES, cache=cache)
    network.fc.weight.data[0, 0] += 1
    fixcore.capture(network, IMAGES, cache=cache)
    fixcore.capture(network, integer_images(0, 2, height=8), cache=cache)

    class Residual2(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(-x)

    other = Residual2().eval()
    other.load_state_dict(network.state_dict())
    fixcore.capture(other, IMAGES, cache=cache)
    assert len(cache) == len(exports) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("aten.add.Tensor", "aten.sub.Tensor"),
        lambda text: text.replace("aten.add.Tensor", "aten.nothing.at_all"),
        lambda text: text.replace("aten.add.Tensor", "os.system"),
        lambda text: json.dumps({**json.loads(text), "images": "nobody"}),
        lambda text: "[]",
        lambda text: "null",
    ],
    ids=["empty", "half", "another network", "unknown", "no operation", "no images", "list", "null"],
)
def test_a_damaged_text_is_made_anew(damage, exports):
    network, cache = integer_network(Residual, 0), {}
    first = fixcore.capture(network, IMAGES, cache=cache)
    ((key, text),) = cache.items()
    cache[key] = damage(text)
    assert cache[key] != text
    assert same(first, fixcore.capture(network, IMAGES, cache=cache))
    assert len(exports) == 2
    assert cache[key] == text


@pytest.mark.parametrize("name", ["builtins.eval", "operator.attrgetter", "torchvision.nms.default", "aten.ops"])
def test_only_operations_of_aten_are_looked_up(name):
    cache: dict[str, str] = {}
    fixcore.capture(integer_network(Residual, 0), IMAGES, cache=cache)
    text = next(iter(cache.values())).replace("aten.add.Tensor", name)
    with pytest.raises((ValueError, AttributeError)):
        from_json(text)


class Plain(nn.Module):
    """Holds a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.offset = nn.Linear(2, 3), torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3))) + self.offset


def test_what_the_module_does_not_show_is_not_kept(exports):
    cache: dict[str, str] = {}
    for _ in range(2):
        graph = fixcore.capture(Plain().eval(), IMAGES, cache=cache)
        assert graph.classes == 3
    assert not cache
    assert len(exports) == 2


class Nearest(nn.Module):
    """How near the channels come to learned ones; how many images there are is asked by len()."""

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.Parameter(torch.rand(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(2).mT, self.known.expand(len(x), 4, 2)).amin(1)


def test_what_was_taken_apart_is_kept_until_there_is_a_rule(exports, monkeypatch):
    cache: dict[str, str] = {}
    network = Nearest().eval()
    graphs = [fixcore.capture(network, IMAGES, cache=cache) for _ in range(2)]
    assert len(exports) == len(cache) == 1
    assert same(*graphs)
    monkeypatch.setattr(module, "FOLLOWED", module.FOLLOWED | {torch.ops.aten.cdist.default})
    fixcore.capture(network, IMAGES, cache=cache)
    assert len(exports) == len(cache) == 2


def test_what_cannot_be_taken_apart_stays_whole_and_is_named(monkeypatch):
    def fails(*values: Tensor) -> Tensor:
        raise RuntimeError("only for two images")

    every = dict(torch.export.default_decompositions())
    told = {**every, torch.ops.aten.cdist.default: fails}
    monkeypatch.setattr(torch.export, "default_decompositions", lambda: told)
    recording = fixcore.capture(Nearest().eval(), IMAGES).record(IMAGES)
    with pytest.raises(fixcore.MissingRule, match="cdist"):
        fixcore.backtrack(recording, TARGET)


def test_a_network_in_train_mode_is_refused_before_the_cache():
    network, cache = integer_network(Residual, 0), {}
    fixcore.capture(network, IMAGES, cache=cache)
    with pytest.raises(fixcore.CaptureError, match="train mode"):
        fixcore.capture(network.train(), IMAGES, cache=cache)


def test_a_program_that_was_decomposed_by_others_is_captured():
    """After saving and loading, a batch norm's statistics are outputs that nothing reads."""
    network = integer_network(Residual, 5)
    program = torch.export.export(network, (IMAGES,), dynamic_shapes=({0: Dim.DYNAMIC},)).run_decompositions({})
    for node in [node for node in program.graph.nodes if "batch_norm" in str(node.target)]:
        with program.graph.inserting_after(node):
            extra = program.graph.call_function(__import__("operator").getitem, (node, 1))
            extra.meta = dict(node.meta)
            extra.meta["val"] = node.meta["val"][1]
    torch.testing.assert_close(fixcore.capture(program, IMAGES).record(IMAGES).logits, network(IMAGES).detach())


def assert_same_logits(graph: fixcore.Graph, network: nn.Module, images: Tensor) -> None:
    """Not a bit may differ, however the images lie in memory."""
    with torch.inference_mode():
        expected = network(images)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        laid_out = images.contiguous(memory_format=memory_format)
        assert torch.equal(graph.record(laid_out).logits, expected)
        assert torch.equal(graph.classify(laid_out), expected)


class Fire(nn.Module):
    """Branches that are concatenated: two rectified, one as it is, one rectified that something else reads, too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 2, 3, padding=1) for _ in range(4))
        self.last = nn.Linear(4 * 2 * 6 * 7, 5)
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        shared = self.fourth(images).relu()
        parts = [self.first(images).relu(), self.second(images), torch.relu_(self.third(images)), shared]
        return self.last(torch.cat(parts, self.dim).flatten(1)) + shared.sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, -3, 2, 3])
def test_concatenations_give_what_the_network_gives(dim, dtype):
    """A ReLU waits for a concatenation that alone reads it, which is a compiled loop in float32 and channels last."""
    generator = torch.Generator().manual_seed(0)
    network = Fire(dim).eval().to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    images = torch.randint(-2, 3, (2, 3, 6, 7), generator=generator).to(dtype)
    graph = fixcore.capture(network, images)
    assert sum(node.meta["rectifies"] for node in graph.nodes if "relu" in str(node.target)) == 2
    assert_same_logits(graph, network, images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_packed_convolutions_give_what_the_network_gives(batch, dtype):
    """Their weights are laid out once, again for another number of images, and follow what is written to them."""
    generator = torch.Generator().manual_seed(0)
    convolutions = [
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.Conv2d(8, 8, (1, 3), padding=(0, 2), dilation=(1, 2), groups=8),
        nn.Conv2d(8, 4, 3, padding="same"),
        nn.Conv2d(4, 5, 1),
    ]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().to(dtype)
    network = network.to(memory_format=torch.channels_last)  # so that the graph reads these very weights
    images = torch.randint(-2, 3, (batch, 3, 16, 16), generator=generator).to(dtype)
    graph = fixcore.capture(network, images)
    for _ in range(2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
        for some in (images, images[:1], images):
            assert_same_logits(graph, network, some)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("convolves", [True, False])
def test_pools_give_what_the_network_gives(convolves, dtype):
    """A ReLU waits for its pool, and a pool is a compiled loop, in float32 and channels last: not a bit may differ."""
    generator = torch.Generator().manual_seed(0)
    first = nn.Conv2d(3, 3, 3, padding=1) if convolves else nn.Identity()
    pools = [nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 1, padding=1)]
    network = nn.Sequential(first, *pools, nn.Flatten(), nn.Linear(3 * 7 * 6, 5)).eval().to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():  # whole numbers add up to the same in any order
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
        if convolves:
            first.bias.fill_(-12)  # windows without anything above 0 are common
    images = torch.randint(-2, 3, (2, 3, 12, 11), generator=generator).to(dtype)
    graph = fixcore.capture(network, images)
    assert_same_logits(graph, network, images)


class Returns(nn.Module):
    """Logits in a dictionary, beside what the caller says."""

    def __init__(self, beside: str) -> None:
        super().__init__()
        self.conv, self.fc, self.beside = nn.Conv2d(2, 4, 3), nn.Linear(4, 3), beside

    def forward(self, images: Tensor) -> dict[str, Tensor | None]:
        pooled = self.conv(images).mean((2, 3))
        return {"logits": self.fc(pooled), "states": pooled if self.beside == "a tensor" else None}


def test_logits_may_come_beside_nothing_else():
    """As models return them that may also return hidden states, and here do not."""
    images = torch.randn(3, 2, 6, 8)
    network = Returns("nothing").eval()
    recording = fixcore.capture(network, images).record(images)
    torch.testing.assert_close(recording.logits, network(images)["logits"].detach())
    with pytest.raises(fixcore.CaptureError, match="returns 2 values; wrap it"):
        fixcore.capture(Returns("a tensor").eval(), images)


class Writes(nn.Module):
    """Does more than answer."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.last, self.into = nn.Linear(3, 2), into
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.into == "images":
            images.sub_(0.5)
        if self.into == "seen":
            self.seen.add_(1)
        means = images.mean((2, 3))
        if self.into == "branches":
            means = torch.cond(means.sum() > 0, lambda x: x * 2, lambda x: x + 1, (means,))
        return self.last(means)


@pytest.mark.parametrize(
    ("into", "said"),
    [
        ("images", "writes into the images that it is given"),
        ("seen", "writes into its buffer 'seen'"),
        ("branches", "chooses between parts of itself"),
    ],
)
def test_a_model_that_is_no_function_of_the_images_is_refused_in_its_own_words(into, said):
    with torch.no_grad(), pytest.raises(fixcore.CaptureError, match=said):
        fixcore.capture(Writes(into).eval(), torch.randn(2, 3, 8, 8))


def test_a_program_for_one_number_of_images_or_for_any_size_is_refused():
    model, images = Writes("nothing").eval(), torch.randn(3, 3, 8, 8)
    with pytest.raises(fixcore.CaptureError, match="takes exactly 3 images"):
        fixcore.capture(torch.export.export(model, (images,)), images)
    anyhow = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with pytest.raises(fixcore.CaptureError, match="images of any size"):
        fixcore.capture(torch.export.export(model, (images,), dynamic_shapes=(anyhow,)), images)


def test_images_of_another_type_are_refused():
    images = torch.randn(2, 3, 8, 8)
    graph = fixcore.capture(Writes("nothing").eval(), images)
    with pytest.raises(fixcore.InputError, match=r"images are torch\.float64 on cpu; .* captured for torch\.float32"):
        graph.record(images.double())


class Scaled(nn.Module):
    """A linear layer whose weights depend on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        means = images.mean((2, 3))
        return self.last(torch.relu(nn.functional.linear(means, self.hidden.weight * means.mean())))


class Doubled(nn.Module):
    """Sees each image and its mirror image in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        one, other = self.last(torch.cat([images, images.flip(3)]).mean((2, 3))).chunk(2)
        return one + other


@pytest.mark.parametrize(
    ("model", "said"),
    [(Scaled(), "has a weight that depends on the images"), (Doubled(), r"no backtracking rule for aten\.")],
)
def test_what_no_rule_follows_is_captured_and_named(model, said):
    images = torch.randn(2, 3, 8, 8)
    recording = fixcore.capture(model.eval(), images).record(images)
    torch.testing.assert_close(recording.logits, model(images))
    with pytest.raises(fixcore.MissingRule, match=said):
        fixcore.backtrack(recording, torch.tensor([0, 1]))
