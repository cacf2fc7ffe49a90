"""Networks as a user would name them: package.module:function, called without arguments."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.geometry import InputSpec

SIDE = 64


class Bright(nn.Module):
    """Class 0 where bright pixels outweigh, class 1 elsewhere; its evidence for class 0 is where it is bright."""

    input_spec = InputSpec(size=SIDE, resize=80, mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 1, 4, stride=4)
        self.judge = nn.Linear(1, 2)
        with torch.no_grad():
            self.look.weight.fill_(1 / 48)
            self.look.bias.fill_(-0.5)
            self.judge.weight.copy_(torch.tensor([[100.0], [-100.0]]))
            self.judge.bias.copy_(torch.tensor([-0.5, 0.5]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(images).relu().mean((2, 3)))


def bright() -> nn.Module:
    return Bright()


class BrightTwice(Bright):
    """The same, and a second convolution reads what the first one saw, so that there is a map of responses."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(1, 1, 1, bias=False)
        self.again.weight.data.fill_(1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(self.again(self.look(images).relu()).relu().mean((2, 3)))


def bright_twice() -> nn.Module:
    return BrightTwice()


class BlueOrRed(nn.Module):
    """Class 0 where blue outweighs, class 1 where red does."""

    input_spec = InputSpec(size=SIDE, fit="squash", mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, 2, 4, stride=4, bias=False)
        self.judge = nn.Linear(2, 2)
        with torch.no_grad():
            self.look.weight.zero_()
            self.look.weight[0, 2] = self.look.weight[1, 0] = 1 / 16
            self.judge.weight.copy_(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
            self.judge.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.judge(self.look(images).relu().mean((2, 3)))


def blue_or_red() -> nn.Module:
    return BlueOrRed()


class Scrambled(nn.Module):
    """Random features, many enough to learn any small set of pictures by heart with one linear layer."""

    input_spec = InputSpec(size=16, fit="squash", mean=(0.5,) * 3, std=(0.25,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 96, 8, stride=4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(96 * 9, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def scrambled() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Scrambled()


class Normed(Bright):
    """Divides by what it saw: 0 by 0, of a black picture."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.look(images).add(0.5).mean((2, 3))
        return self.judge(seen / seen)


def normed() -> nn.Module:
    return Normed()
