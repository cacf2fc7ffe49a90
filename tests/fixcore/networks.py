"""Tiny networks with integer weights, one per family of the field, so that whole walks can be checked exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Convolutions, max pooling, two linear layers on the flattened map (VGG)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 4, 3, stride=2)
        self.fc1 = nn.Linear(4, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.relu(self.conv2(x)).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class Residual(nn.Module):
    """Skip connections with and without a projection, batch norm, global average pool (ResNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.down = nn.Conv2d(3, 4, 2, stride=2)
        self.skip = nn.Conv2d(3, 4, 1, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = F.relu(self.conv(x) + x)
        x = F.relu(self.down(x) + self.skip(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inception(nn.Module):
    """Parallel branches, concatenated, one with a grouped and dilated convolution; average pool in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1)
        self.b = nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2)
        self.c = nn.Conv2d(2, 2, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(F.max_pool2d(x, 3, 1, 1)))], 1)
        x = F.relu(self.head(F.avg_pool2d(x, 2)))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Dense(nn.Module):
    """Each layer reads all before it through its own batch norm (DenseNet); a gate on the channels (squeeze-excite)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.gate = nn.Conv2d(6, 6, 1)
        self.hidden = nn.Linear(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        x = x * F.relu(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = F.pad(x, (0, 1, 0, 1))
        return self.fc(F.relu(self.hidden(x.mean((2, 3)))))


class Attentive(nn.Module):
    """Patches as tokens that look at each other, two heads, residuals, mean of the tokens (ViT without class token)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 4, 2, stride=2)
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.query_key_value = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)
        self.hidden, self.back = nn.Linear(4, 6), nn.Linear(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = (
            part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.query_key_value(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        x = x + self.back(F.gelu(self.hidden(self.norm2(x))))
        return self.fc(x.mean(1))


class Recurrent(nn.Module):
    """A map read by an LSTM cell, which then looks at its own state once more (captioner)."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 3, 3, stride=3)
        self.embed = nn.Linear(12, 4)
        self.cell = nn.LSTMCell(4, 3)
        self.word = nn.Embedding(3, 4)
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(torch.tanh(self.embed(F.relu(self.look(x)).flatten(1))))
        said = self.fc(state[0]).argmax(1)
        hidden, _ = self.cell(self.word(said), state)
        return self.fc(hidden)


class Channelwise(nn.Module):
    """Depthwise convolutions, a pooled map whose features are normalised before the last layer (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 2, stride=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.adaptive_avg_pool2d(x + self.depthwise(F.gelu(x)), 1)
        return self.fc(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(1))


class Pooled(nn.Module):
    """Two pooled maps read by hidden layers, each with a norm of its own kind (heads of MobileNetV3, RepViT, LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.other = nn.Conv2d(2, 3, 2, stride=2)
        self.first, self.group = nn.Linear(7, 6), nn.GroupNorm(2, 4)
        self.second, self.layer = nn.Linear(6, 6), nn.LayerNorm(6)
        self.before, self.after = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.relu(self.other(x)).mean((2, 3))
        fine = self.group(F.avg_pool2d(F.relu(self.stem(x)), (6, 8))).flatten(1)
        x = F.hardswish(self.after(self.first(torch.cat([fine, coarse], 1))))
        return self.fc(self.before(F.relu(self.layer(self.second(x)))))


FAMILIES: tuple[type[nn.Module], ...] = (
    Plain, Residual, Inception, Dense, Attentive, Recurrent, Channelwise, Pooled,
)  # fmt: skip


def integer_network(family: type[nn.Module], seed: int) -> nn.Module:
    """Return a network in eval mode with weights in -2..2; its batch norms scale by 1 or 2 and shift by integers."""
    network = family().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            size = module.weight.shape
            module.weight.data = torch.randint(1, 3, size, generator=generator).float()
            module.bias.data = torch.randint(-1, 2, size, generator=generator).float()
            module.eps = 0.0
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            for parameter in module.parameters():
                parameter.data = torch.randint(-1, 3, parameter.shape, generator=generator).float()
        elif isinstance(module, nn.Conv2d | nn.Linear | nn.LSTMCell | nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    return network


def integer_images(seed: int, count: int, channels: int = 2, height: int = 6, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 4, (count, channels, height, width), generator=generator).float()
