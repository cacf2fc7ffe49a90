"""A small residual network for images that no pretrained network knows.

N images, S x S pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

_LARGE = 56
"""From this size on, in pixels, one more pooling keeps the class map near 4 x 4 and the work in bounds."""


class _Residual(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(_bare_convolution(channels, channels), nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape, (N, C, h, w)."""
        skip: Tensor = x
        changed: Tensor = self.relu(skip + self.second(self.first(x)))
        return changed


def small_network(class_count: int, size: int) -> nn.Module:
    """Return an untrained network for (N, 3, `size`, `size`) inputs, with (N, `class_count`) logits; 0.46 M parameters.

    It ends in a linear layer on a global average, so a class has a map: an eighth of `size` on each side (4 x 4 for 32
    pixels), a sixteenth from 56 pixels on. So few places say little of where; but it shrinks by max pooling, whose
    winners tell CNN-Fixations where inside a cell the evidence lies, as strides would not, and rules="finer" asks an
    earlier map of two to four times as many places a side. With a last map of 8 x 8, at the same cost, it judges worse.
    """
    shrinking = [_convolution(3, 32), nn.MaxPool2d(2), _convolution(32, 64), nn.MaxPool2d(2)]
    if size >= _LARGE:
        shrinking += [_convolution(64, 64), nn.MaxPool2d(2)]
    return nn.Sequential(
        *shrinking,
        _Residual(64),
        _convolution(64, 128),
        nn.MaxPool2d(2),
        _Residual(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, class_count),
    )


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_bare_convolution(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())


def _bare_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
