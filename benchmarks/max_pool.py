"""What a recording's maximum pool takes, as a share of torch's: `python -m benchmarks.max_pool [--runs 20]`.

For pools of squeezenet1_1, vgg16 and googlenet, batch 16, float32, channels last, each right after the convolution that
fills its input: the median over rounds of both in the same round, torch's with the ReLU that `fixcore` lets wait for
the pool. A minute on 4 cores.
"""

from __future__ import annotations

import argparse
import random
import statistics

import torch
from torch import Tensor, nn

from benchmarks.trace_cost import timed
from fixcore.compiled.pooling import max_pool
from fixcore.rules.window import pooling_window
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


@torch.inference_mode()
def measure(channels: int, side: int, kernel: int, stride: int, padding: int, runs: int) -> float:
    """Return the time of the compiled pool over torch's."""
    images = torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last)
    convolution = nn.Conv2d(channels, channels, 1).to(memory_format=torch.channels_last)

    def plain(filled: Tensor) -> Tensor:
        return torch.relu_(torch.max_pool2d(filled, kernel, stride, padding))

    window = pooling_window([[kernel], [stride], [padding], [1]], images.shape[2:], plain(images).shape[2:])

    def compiled(filled: Tensor) -> Tensor:
        return max_pool(filled, window, 0.0)

    assert torch.equal(plain(images), compiled(images))
    shares = []
    for number in range(runs):
        took = {}
        for work in random.Random(number).sample([plain, compiled], 2):
            filled = convolution(images)
            took[work] = timed(lambda work=work, filled=filled: work(filled), "cpu")  # type: ignore[misc]
        shares.append(took[compiled] / took[plain])
    return statistics.median(shares)


def main() -> None:
    """Print one line per pool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    keep_freed_memory()
    print("channels | side | kernel | stride | compiled / torch")
    for channels, side, kernel, stride, padding in POOLS:
        share = measure(channels, side, kernel, stride, padding, options.runs)
        print(f"{channels} | {side} | {kernel} | {stride} | {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
