"""The compiled searches and those of torch find the same, to the last bit, on any number of threads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fixcore.compiled import threads as running
from fixcore.compiled.pooling import max_pool
from fixcore.rules import winner
from fixcore.window import Window


def convolution(
    seed: int, points: int, groups: int, channels: int, kernel: tuple[int, int], channels_last: bool, at_centre: bool
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, groups * channels, 6, 7, generator=generator)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(groups * 3, channels, *kernel, generator=generator).permute(0, 2, 3, 1)
    window = Window(extent=(6, 7), out=(4, 9), kernel=kernel, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    index = torch.randint(0, 2 * groups * 3 * 4 * 9, (points,), generator=generator)
    index = index.repeat_interleave(torch.randint(1, 4, (points,), generator=generator))  # of several targets
    return images.permute(0, 2, 3, 1), kernels, index, window, groups, at_centre


def winners(given_case: tuple[Any, ...]) -> torch.Tensor:
    *rest, at_centre = given_case
    return winner.winning_inputs(*rest, at_centre=at_centre)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    points=st.integers(0, 40),
    groups=st.integers(1, 3),
    channels=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels_last=st.booleans(),
    at_centre=st.booleans(),
)
def test_compiled_and_looped_find_the_same_channel(seed, points, groups, channels, kernel, channels_last, at_centre):
    given_case = convolution(seed, points, groups, channels, kernel, channels_last, at_centre)
    assert torch.equal(winners(given_case), winner._looped_inputs(*given_case))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    points=st.integers(0, 40),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    channels_last=st.booleans(),
    lowest=st.sampled_from([-math.inf, 0.0]),
)
def test_compiled_and_looped_find_the_same_cell(seed, points, kernel, stride, dilation, channels_last, lowest):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-2, 3, (2, 3, 6, 7), generator=generator).float()  # ties are common
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    pairs = {"kernel": (kernel, kernel), "stride": (stride, stride), "dilation": (dilation, dilation)}
    padding = kernel // 2
    out = tuple((extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for extent in (6, 7))
    window = Window(extent=(6, 7), out=(out[0], out[1]), padding=(padding, padding), **pairs)
    index = torch.randint(0, 2 * 3 * out[0] * out[1], (points,), generator=generator)
    index = index.repeat_interleave(torch.randint(1, 4, (points,), generator=generator))
    by_place = images.permute(0, 2, 3, 1)
    found = winner.winning_cells(by_place, index, window, lowest)
    assert torch.equal(found, winner._looped_cells(by_place, index, window, lowest))


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads, openmp, monkeypatch):
    monkeypatch.setattr(running, "_SMALL", 1)
    monkeypatch.setattr(running, "_LARGE", 1)
    monkeypatch.setattr(running, "_has_openmp", lambda: openmp)
    convolutions = convolution(0, 50, 2, 8, (3, 3), True, False)
    images, _, index, window, *_ = convolutions
    cells = images, index % (2 * 16 * 36), window
    by_channel = images.permute(0, 3, 1, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(winners(convolutions), winner._looped_inputs(*convolutions))
        assert torch.equal(winner.winning_cells(*cells), winner._looped_cells(*cells, -math.inf))
        expected = functional.max_pool2d(by_channel, (3, 3), (2, 1), (1, 1), (1, 2))
        found = max_pool(by_channel, replace(window, padding=(1, 1), out=tuple(expected.shape[2:])), -math.inf)
        assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("at_centre", [True, False])
def test_ties_go_to_the_lowest_channel_and_the_first_place(at_centre):
    images, kernels = torch.ones(1, 2, 2, 5), torch.ones(1, 2, 2, 5)
    window = Window(extent=(2, 2), out=(1, 1), kernel=(2, 2), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    here = torch.zeros(1, dtype=torch.int64)
    given_case = (images, kernels, here, window, 1, at_centre)
    assert winners(given_case).tolist() == winner._looped_inputs(*given_case).tolist() == [0]


def test_nothing_but_zeros_has_a_winner():
    window = Window(extent=(6, 7), out=(6, 7), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    images, kernels = torch.zeros(1, 6, 7, 4), -torch.zeros(2, 3, 3, 4)
    index = torch.arange(2 * 6 * 7)
    found = winner.winning_inputs(images, kernels, index, window, 1, at_centre=True)
    assert torch.equal(found, index % 42)  # channel 0, the same place


@pytest.mark.parametrize("at_centre", [True, False])
def test_half_precision_finds_the_winner_of_its_own_numbers(at_centre):
    images, kernels, *rest = convolution(1, 30, 1, 8, (3, 3), True, at_centre)
    halves = images.bfloat16(), kernels.bfloat16()
    rounded = winners((halves[0].float(), halves[1].float(), *rest))
    assert torch.equal(winners((*halves, *rest)), rounded)
