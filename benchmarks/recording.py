"""What the parts of a recording take that are not torch's own, as a share of torch's: `python -m benchmarks.recording`.

Batch 16, float32, channels last, shapes of squeezenet1_1, vgg16, googlenet and resnet50: the median over rounds of both
in the same round, each right after the convolutions that fill what it reads. Torch's pools and concatenations with the
ReLU that `fixcore` lets wait for them; its convolutions with the weight as it is, `fixcore`'s with the weight laid out
beforehand. The results must be the same to the last bit. [--runs 20]; two minutes on 4 cores.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.trace_cost import timed
from fixcore.compiled.concatenation import concatenated
from fixcore.compiled.pooling import max_pool
from fixcore.network.packed import packed_convolution
from fixcore.window import Window, pooling_window
from jobs.machine import keep_freed_memory

POOLS = (
    (64, 111, 3, 2, 0),
    (128, 55, 3, 2, 0),
    (256, 27, 3, 2, 0),
    (64, 224, 2, 2, 0),
    (512, 28, 2, 2, 0),
    (512, 14, 3, 1, 1),
)
"""Channels, side, kernel, stride, padding."""
CONCATENATIONS = (((64, 64), 55), ((128, 128), 27), ((192, 192), 13), ((256, 256), 13), ((128, 192, 96, 64), 28))
"""Channels of each part, side."""
CONVOLUTIONS = (
    (3, 64, 224, 3),
    (64, 64, 224, 3),
    (512, 512, 14, 3),
    (16, 64, 55, 3),
    (512, 2048, 7, 1),
    (512, 1000, 13, 1),
)
"""Channels before and after, side, kernel."""

Work = Callable[[Sequence[Tensor]], Tensor]


def cases() -> Iterator[tuple[str, tuple[int, ...], int, Work, Work]]:
    """Yield a name, the channels and side of the maps that are read, and what torch and `fixcore` do with them."""
    for channels, side, kernel, stride, padding in POOLS:
        out = (side + 2 * padding - kernel) // stride + 1
        window = pooling_window([[kernel], [stride], [padding], [1]], (side, side), (out, out))
        name = f"maximum pool, {kernel} x {kernel} by {stride}"
        plain, once = partial(_pooled, sizes=(kernel, stride, padding)), partial(_pooled_once, window=window)
        yield name, (channels,), side, plain, once
    for widths, side in CONCATENATIONS:
        yield "concatenation", widths, side, _joined, lambda maps: concatenated(maps, [0.0] * len(maps))
    for before, after, side, kernel in CONVOLUTIONS:
        weight = torch.randn(after, before, kernel, kernel).contiguous(memory_format=torch.channels_last)
        sizes = {"stride": [1], "padding": [kernel // 2], "dilation": [1], "groups": 1}
        packed = packed_convolution(torch.conv2d, sizes)
        whole = partial(_convolved, weight=weight, bias=torch.randn(after), padding=kernel // 2)
        name = f"convolution to {after}, {kernel} x {kernel}"
        yield name, (before,), side, whole, partial(_convolved, run=packed, **whole.keywords)


def _pooled(maps: Sequence[Tensor], sizes: tuple[int, int, int]) -> Tensor:
    return torch.relu_(torch.max_pool2d(maps[0], *sizes))


def _pooled_once(maps: Sequence[Tensor], window: Window) -> Tensor:
    return max_pool(maps[0], window, 0.0)


def _joined(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.relu_() for part in maps], 1)


def _convolved(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor, padding: int, run: Callable[..., Tensor] = torch.conv2d
) -> Tensor:
    return run(maps[0], weight, bias, 1, padding)


@torch.inference_mode()
def measure(widths: tuple[int, ...], side: int, plain: Work, ours: Work, runs: int) -> float:
    """Return the time of ours over torch's."""
    seed = torch.randn(16, 8, side, side).contiguous(memory_format=torch.channels_last)
    kernels = [torch.randn(width, 8, 1, 1) for width in widths]

    def fill() -> list[Tensor]:
        return [torch.conv2d(seed, kernel) for kernel in kernels]

    assert torch.equal(plain(fill()), ours(fill()))
    shares = []
    for number in range(runs):
        took = {}
        for work in random.Random(number).sample([plain, ours], 2):
            took[work] = timed(partial(work, fill()), "cpu")
        shares.append(took[ours] / took[plain])
    return statistics.median(shares)


def main() -> None:
    """Print one line per operation and shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    keep_freed_memory()
    print("operation | channels | side | fixcore / torch")
    for name, widths, side, plain, ours in cases():
        share = measure(widths, side, plain, ours, options.runs)
        print(f"{name} | {' + '.join(map(str, widths))} | {side} | {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
