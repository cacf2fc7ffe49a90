"""Networks of every kind are captured, give their own logits, and are traced to pixels with all of the mass."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

import fixcore
from benchmarks.all_models import build

SMALL = {
    "vit": lambda: VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5),
    "swin": lambda: SwinTransformer([2, 2], 16, [2, 2], [2, 2], [3, 3], num_classes=5),
    "swin v2": lambda: SwinTransformer(
        [2, 2], 16, [2, 2], [2, 2], [3, 3], num_classes=5, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
    "maxvit": lambda: MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=5),
    **{
        name: lambda name=name: torchvision.models.get_model(name, weights=None, num_classes=5)
        for name in (
            "alexnet",
            "convnext_tiny",
            "efficientnet_b0",
            "mnasnet0_5",
            "mobilenet_v3_small",
            "regnet_y_400mf",
            "resnext50_32x4d",
            "shufflenet_v2_x0_5",
            "squeezenet1_1",
        )
    },
}


def check(network: nn.Module, images: Tensor) -> fixcore.Fixations:
    """Assert that the recorded logits are the network's, and that every image's evidence is whole and in the image."""
    network = network.eval()
    recording = fixcore.capture(network, images).record(images)
    with torch.no_grad():
        torch.testing.assert_close(recording.logits, network(images), rtol=1e-3, atol=1e-4)
    fixations = fixcore.backtrack(recording, recording.logits.argmax(1))
    mass = torch.zeros(len(images)).index_add_(0, fixations.image, fixations.mass)
    assert (mass - 1).abs().max() < 1e-5
    assert fixations.mass.min() > 0
    assert 0 <= fixations.row.min() <= fixations.row.max() < images.shape[2]
    assert 0 <= fixations.col.min() <= fixations.col.max() < images.shape[3]
    return fixations


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_one_network_of_each_family(name: str) -> None:
    torch.manual_seed(0)
    check(
        SMALL[name](),
        noise(
            3, 3, 64 if name[0] not in "vsm" or "_" in name else 32, 64 if name[0] not in "vsm" or "_" in name else 32
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the largest take six minutes on four cores
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_classifier_of_torchvision(name: str) -> None:
    network, side = build(name)
    check(network, noise(2, 3, side, side))


class Functional(nn.Module):
    """Functional and in-place ReLU, one layer called twice, padding on two sides only, local response norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.local_response_norm(F.relu(self.first(F.pad(x, (0, 1, 0, 1)))), 3)
        x = self.twice(x)
        x.relu_()
        x += self.twice(x)
        return self.head(F.avg_pool2d(x, x.shape[-1]).flatten(1))


def after(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), *layers)


class Recurrent(nn.Module):
    """Reads the columns of a map one after the other (captions, paper III-D)."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 4, 5, stride=5)
        self.read = recurrent
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.look(x).relu().flatten(1, 2).transpose(1, 2)
        return self.head(self.read(columns)[0][:, -1])


class Cell(nn.Module):
    """An LSTM cell that looks twice at the same features."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.cell, self.head = nn.Conv2d(3, 4, 10, stride=10), nn.LSTMCell(16, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.look(x).relu().flatten(1)
        nothing = features.new_zeros(features.shape[0], 5)
        return self.head(self.cell(features, self.cell(features, (nothing, torch.ones_like(nothing))))[0])


FOREIGN = {
    "functional, reused, padded, normalised": Functional,
    "flattened": lambda: after(nn.Flatten(), nn.Linear(8 * 36, 4)),
    "1x1 convolution as head": lambda: after(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.Flatten()),
    "convolution over the whole map as head": lambda: after(nn.Conv2d(8, 4, 6), nn.Flatten()),
    "convolution and average pool as head": lambda: after(nn.Conv2d(8, 4, 3), nn.AvgPool2d(4), nn.Flatten()),
    "grouped and dilated": lambda: after(nn.Conv2d(8, 8, 3, groups=4, dilation=2), nn.Flatten(), nn.Linear(32, 4)),
    "overlapping mean": lambda: after(nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(128, 4)),
    "adaptive mean": lambda: after(nn.AdaptiveAvgPool2d((4, 3)), nn.Flatten(), nn.Linear(96, 4)),
    "global maximum": lambda: after(nn.Conv2d(8, 8, 1), Maximum(), nn.Linear(8, 4)),
    "pixels shuffled": lambda: after(nn.PixelShuffle(2), nn.Flatten(), nn.Linear(2 * 144, 4)),
    "parametric and smooth activations": lambda: after(nn.PReLU(), nn.Mish(), nn.Flatten(), nn.Linear(288, 4)),
    "lstm": lambda: Recurrent(nn.LSTM(16, 5, batch_first=True)),
    "gru": lambda: Recurrent(nn.GRU(16, 5, batch_first=True)),
    "lstm cell, called twice": Cell,
}


class Maximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of torch.export, for recurrent layers
@pytest.mark.parametrize("name", FOREIGN)
def test_networks_that_were_not_written_for_us(name: str) -> None:
    torch.manual_seed(0)
    check(FOREIGN[name](), noise(3, 3, 20, 20))


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(channels: int) -> None:
    """A sketch has one (paper, IV-D), a satellite's image many."""
    torch.manual_seed(0)
    check(
        nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)), noise(2, channels, 8, 8)
    )


def test_a_program_exported_by_somebody_else() -> None:
    torch.manual_seed(0)
    network = FOREIGN["flattened"]().eval()
    images = noise(3, 3, 20, 20)
    file = io.BytesIO()
    dynamic = ({0: torch.export.Dim("count", min=1, max=64)},)
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=dynamic), file)
    file.seek(0)
    recording = fixcore.capture(torch.export.load(file), images).record(images)
    torch.testing.assert_close(recording.logits, network(images).detach())
    own = fixcore.capture(network, images).record(images)
    target = torch.tensor([0, 1, 2])
    one, two = fixcore.backtrack(recording, target), fixcore.backtrack(own, target)
    assert torch.equal(one.row, two.row)
    torch.testing.assert_close(one.mass, two.mass)


def test_a_learned_token_is_never_where_the_evidence_ends() -> None:
    """The class token is no pixel: what it looked at is followed, even where its own value is the larger."""
    torch.manual_seed(0)
    network = VisionTransformer(16, 8, 1, 1, 8, 8, num_classes=2)
    nn.init.constant_(network.class_token, 50.0)
    nn.init.normal_(network.heads.head.weight)
    check(network, noise(4, 3, 16, 16))


def test_what_changes_nothing_is_left_out():
    """A pool to the size that is there, and dropout in evaluation; the layer's name stays."""
    network = after(nn.AdaptiveAvgPool2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, 4)).eval()
    images = torch.rand(2, 3, 20, 20)
    graph = fixcore.capture(network, images)
    names = [str(node.target) for node in graph.nodes]
    assert not any("pool" in name or "dropout" in name for name in names)
    torch.testing.assert_close(graph.record(images).logits, network(images).detach())
    assert graph.layer("2") is graph.layer("1")
