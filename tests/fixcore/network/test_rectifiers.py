"""ReLUs and quotients in other words are followed as what they are; what no pixel reaches is told by what depends."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fixcore
from fixcore import baselines

aten = torch.ops.aten

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2])


class Acts(nn.Module):
    """A convolution, something, a mean over places, two linear layers with something between."""

    def __init__(
        self,
        on_map: Callable[[Tensor], Tensor] = functional.relu,
        on_vector: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.hidden, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 8), nn.Linear(8, 5)
        self.on_map, self.on_vector = on_map, on_vector

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.on_vector(self.hidden(self.on_map(self.map(images)).mean((2, 3)))))


class WithPlaces(nn.Module):
    """Tells its layers where each place lies, by a constant map beside the others."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.more, self.last = nn.Conv2d(3, 7, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)
        self.register_buffer("place", torch.linspace(-1, 1, 8).expand(1, 1, 8, 8).clone())
        self.act = act

    def forward(self, images: Tensor) -> Tensor:
        first = self.act(self.map(images))
        told = torch.cat([first, self.place.expand(len(first), -1, -1, -1)], 1)
        return self.last((self.act(self.more(told)).roll(3, 2) + told).mean((2, 3)))


@functools.cache
def captured(network: Callable[..., nn.Module], *acts: Callable[[Tensor], Tensor]) -> fixcore.Graph:
    return fixcore.capture(network(*acts).eval(), IMAGES)


def evidence(graph: fixcore.Graph, rules: str = "mass") -> Tensor:
    found = fixcore.backtrack(graph.record(IMAGES), TARGET, rules=rules)
    return torch.zeros(3, 16, 16).index_put((found.image, found.row, found.col), found.mass)


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "where above": lambda x: torch.where(x > 0, x, 0.0),
    "where at least": lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
    "where below": lambda x: torch.where(x < 0, torch.zeros(()), x),
    "larger": lambda x: torch.maximum(x, torch.zeros(())),
    "larger of zero": lambda x: torch.maximum(torch.tensor(0.0), x),
    "times": lambda x: x * (x > 0),
    "filled": lambda x: x.masked_fill(x <= 0, 0.0),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_a_relu_in_other_words_is_a_relu(spelling: str):
    graph, own = captured(Acts, RELUS[spelling]), captured(Acts, functional.relu)
    assert [node.target for node in graph.nodes].count(aten.relu_.default) == 1
    torch.testing.assert_close(evidence(graph), evidence(own))
    guided = [baselines.guided_backprop(one, IMAGES, TARGET) for one in (graph, own)]
    torch.testing.assert_close(*guided)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "from one": lambda x: torch.where(x > 1, x, 0.0),
    "to one": lambda x: torch.where(x > 0, x, 1.0),
    "of another": lambda x: torch.where(x.flip(1) > 0, x, 0.0),
    "larger than one": lambda x: torch.maximum(x, torch.ones(())),
    "lower": lambda x: torch.where(x > 0, 0.0, x),
    "by place": lambda x: torch.maximum(x, torch.linspace(0, 1, 8)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_relu_is_left_as_it_is(name: str):
    network = Acts(OTHERS[name]).eval()
    graph = fixcore.capture(network, IMAGES)
    assert aten.relu_.default not in [node.target for node in graph.nodes]
    torch.testing.assert_close(graph.record(IMAGES).logits, network(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rules", ["mass", "finer", "paper"])
@pytest.mark.parametrize("act", [RELUS["where above"], OTHERS["from one"]], ids=["relu", "no relu"])
def test_a_choice_by_what_pixels_say_is_reached_by_pixels(act: Callable[[Tensor], Tensor], rules: str):
    graph = captured(WithPlaces, act)
    blank = {node.target: float(blanks.float().mean()) for node, blanks in graph.blanks.items()}
    assert blank == {aten.cat.default: 1 / 8}  # the constant map, and nothing behind it
    if act is RELUS["where above"]:
        own = captured(WithPlaces, functional.relu)
        torch.testing.assert_close(evidence(graph, rules), evidence(own, rules))


SIGMOIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "one over": lambda x: 1 / (1 + torch.exp(-x)),
    "to the power of minus one": lambda x: (1 + torch.exp(-x)) ** -1,
    "reciprocal": lambda x: (1 + torch.exp(-x)).reciprocal(),
    "ones over": lambda x: torch.ones(()) / (1 + torch.exp(-x)),
    "the root's, squared": lambda x: (1 + torch.exp(-x)).rsqrt() ** 2,
}


@pytest.mark.parametrize("rules", ["mass", "finer"])
@pytest.mark.parametrize("spelling", SIGMOIDS)
def test_a_divisor_speaks_against(spelling: str, rules: str):
    expected, found = (
        evidence(captured(Acts, functional.relu, act), rules) for act in (torch.sigmoid, SIGMOIDS[spelling])
    )
    shared = torch.minimum(expected, found).sum((1, 2))
    assert float(shared.min()) > 0.85  # turned round it was 0.00 to 0.01
