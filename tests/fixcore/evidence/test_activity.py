"""Where a network responds: against a sum written out, and what it must not depend on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fixcore
from fixcore.methods import find_methods


class TwoStages(nn.Module):
    """Two maps of 8 x 8 that convolutions read, then two of 4 x 4, of which a pool reads the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.fine = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)
        for parameter in self.parameters():
            parameter.data = torch.randint(-3, 4, parameter.shape).float()

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(images).relu())  # not rectified: a pool reads it
        one = functional.max_pool2d(fine, 2)
        two = self.first(one)  # a convolution reads what is below 0 too
        return one, two

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.maps(images)[1]).relu().mean((2, 3)))


class FewPlaces(nn.Module):
    """A map of 10 x 12, then two of 5 x 6, of which a convolution reads the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.fine, self.mid = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 4, 3, 2, 1)
        self.last, self.head = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 3)
        for parameter in self.parameters():
            parameter.data = torch.randint(-3, 4, parameter.shape).float()

    def forward(self, images: Tensor) -> Tensor:
        mid = self.mid(self.fine(images).relu()).relu()
        return self.head(self.last(mid).relu().mean((2, 3)))


class GuidedRelu(torch.autograd.Function):
    """Springenberg et al., 3.4: of what comes back, what is positive goes on where the image was let through."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        return above.clamp(min=0) * (value > 0)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(-4, 5, (3, 2, 8, 8), generator=torch.Generator().manual_seed(1)).float()


def written_out(maps: tuple[Tensor, ...], number: int) -> Tensor:
    """The mean over maps of what is positive at each place, each map's mean over places made 1."""
    total = torch.zeros(4, 4)
    for map_ in maps:
        own = torch.zeros(4, 4)
        for channel in map_[number].tolist():
            for row in range(4):
                for col in range(4):
                    own[row, col] += max(channel[row][col], 0)
        total += own / (own.sum() / 16)
    return total / len(maps)


def test_it_is_what_is_positive_in_the_coarsest_maps_that_convolutions_read(images: Tensor) -> None:
    model = TwoStages().eval()
    found = fixcore.activity_maps(fixcore.capture(model, images).record(images))
    assert found.shape == (3, 8, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2)), torch.ones(3))
    for number in range(3):
        coarse = written_out(tuple(one.detach() for one in model.maps(images)), number)
        fine = functional.interpolate(coarse[None, None], (8, 8), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(found[number], fine / fine.mean())


def test_where_the_last_map_has_few_places_it_is_told_by_what_that_rests_on_too() -> None:
    model = FewPlaces().eval()
    images = torch.randint(-4, 5, (3, 2, 20, 24), generator=torch.Generator().manual_seed(3)).float()
    fine = model.fine(images).relu().detach().requires_grad_()
    mid = GuidedRelu.apply(model.mid(fine))
    last = GuidedRelu.apply(model.last(mid))
    (slope,) = torch.autograd.grad(last.sum(), fine)
    rests = (slope * fine).clamp(min=0).sum(1).detach()
    assert bool((rests > 0).flatten(1).any(1).all())  # of each image there is something to tell

    def on_pixels(maps: Tensor) -> Tensor:
        wide = functional.interpolate(maps[:, None], (20, 24), mode="bilinear", align_corners=False)[:, 0]
        return wide / wide.mean((1, 2), keepdim=True)

    expected = (on_pixels(mid.sum(1).detach()) * on_pixels(rests)).sqrt()
    found = fixcore.activity_maps(fixcore.capture(model, images).record(images))
    torch.testing.assert_close(found, expected / expected.mean((1, 2), keepdim=True))
    coarse = fixcore.activity_maps(fixcore.capture(model, images).record(images), finer=False)
    torch.testing.assert_close(coarse, on_pixels(mid.sum(1).detach()))


def test_an_image_that_the_network_cuts_into_several_has_the_activity_of_its_last_stage() -> None:
    class Cut(FewPlaces):
        def forward(self, images: Tensor) -> Tensor:
            parts = torch.cat([images[:, :, :20], images[:, :, 20:]], 1).view(-1, 2, 20, 24)
            features = self.last(self.mid(self.fine(parts).relu()).relu()).relu().mean((2, 3))
            return self.head(features.view(-1, 2, 5).mean(1))

    images = torch.randint(-4, 5, (3, 2, 40, 24), generator=torch.Generator().manual_seed(3)).float()
    recording = fixcore.capture(Cut().eval(), images).record(images)
    assert recording.graph.finer is not None
    assert torch.equal(fixcore.activity_maps(recording), fixcore.activity_maps(recording, finer=False))


def test_the_map_of_the_last_map_alone_asks_no_finer_one() -> None:
    images = torch.randint(-4, 5, (3, 2, 20, 24), generator=torch.Generator().manual_seed(3)).float()
    graph, target = fixcore.capture(FewPlaces().eval(), images), torch.tensor([0, 2, 1])
    recording = graph.record(images)
    for finer, rules, method in ((True, "finer", "fixations"), (False, "mass", "mass")):
        fixations = fixcore.backtrack(recording, target, rules=rules, contrast="mean")
        expected = fixcore.saliency_maps(fixations, activity=fixcore.activity_maps(recording, finer=finer))
        torch.testing.assert_close(find_methods([method])[0].explain(graph, images, target), expected)


@pytest.mark.parametrize("model", [TwoStages, FewPlaces])
def test_it_depends_neither_on_the_other_images_nor_on_the_layout_of_memory(model: type[nn.Module]) -> None:
    sides = (8, 8) if model is TwoStages else (20, 24)
    images = torch.randint(-4, 5, (3, 2, *sides), generator=torch.Generator().manual_seed(1)).float()
    graph = fixcore.capture(model().eval(), images)
    found = fixcore.activity_maps(graph.record(images))
    alone = fixcore.activity_maps(graph.record(images[1:2]))
    last = fixcore.activity_maps(graph.record(images.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(alone[0], found[1])
    torch.testing.assert_close(last, found)


def test_an_image_to_which_nothing_responds_has_ones_whatever_its_last_map() -> None:
    few = FewPlaces().eval()
    few.last.weight.data.abs_().neg_()
    few.last.bias.data.fill_(-1)
    few.mid.weight.data.zero_()
    few.mid.bias.data.zero_()
    images = torch.ones(2, 2, 20, 24)
    found = fixcore.activity_maps(fixcore.capture(few, images).record(images))
    assert torch.equal(found, torch.ones(2, 20, 24))


def test_an_image_to_which_nothing_responds_has_ones() -> None:
    model = TwoStages().eval()
    model.fine.weight.data.zero_()
    model.fine.bias.data.fill_(-1)  # what is below 0 there stays so
    model.first.weight.data.abs_()
    model.first.bias.data.fill_(-1)
    images = torch.ones(2, 2, 8, 8)
    found = fixcore.activity_maps(fixcore.capture(model, images).record(images))
    assert torch.equal(found, torch.ones(2, 8, 8))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1), nn.Flatten()),
    ],
    ids=["no convolution", "only of the image", "only of one place"],
)
def test_without_maps_it_is_one_everywhere(model: nn.Module, images: Tensor) -> None:
    found = fixcore.activity_maps(fixcore.capture(model.eval(), images).record(images))
    assert torch.equal(found, torch.ones(3, 8, 8))


def test_a_gate_that_reads_one_place_is_no_map(images: Tensor) -> None:
    class Gated(TwoStages):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Conv2d(6, 6, 1)

        def forward(self, images: Tensor) -> Tensor:
            features = self.second(self.maps(images)[1]).relu()
            return self.head((features * self.gate(features.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))

    plain, gated = (fixcore.capture(kind().eval(), images).record(images) for kind in (TwoStages, Gated))
    assert torch.equal(fixcore.activity_maps(gated), fixcore.activity_maps(plain))


def test_half_precision_is_added_in_full(images: Tensor) -> None:
    graph = fixcore.capture(TwoStages().eval().bfloat16(), images.bfloat16())
    found = fixcore.activity_maps(graph.record(images.bfloat16()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2)), torch.ones(3))
