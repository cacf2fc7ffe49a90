"""The compiled search for the winning channel and the plain loop find the same, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.rules import winner
from fixcore.rules.winner import winning_channels


def case(seed: int, points: int, groups: int, channels: int, kernel: tuple[int, int], channels_last: bool) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (points,), generator=generator)

    images = torch.randn(2, groups * channels, 6, 7, generator=generator)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(groups * 3, channels, *kernel, generator=generator).permute(0, 2, 3, 1)
    place = (below(2), below(9) - 2, below(10) - 2)
    out = below(groups * 3)
    return images.permute(0, 2, 3, 1), kernels, place, (out // 3 * channels, out), (1, 2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    points=st.integers(0, 40),
    groups=st.integers(1, 3),
    channels=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels_last=st.booleans(),
)
def test_compiled_and_looped_are_the_same(seed, points, groups, channels, kernel, channels_last):
    given_case = case(seed, points, groups, channels, kernel, channels_last)
    assert torch.equal(winning_channels(*given_case), winner._looped(*given_case))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(winner, "_SMALL", 1)
    given_case = case(0, 50, 2, 8, (3, 3), True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(winning_channels(*given_case), winner._looped(*given_case))
    finally:
        torch.set_num_threads(before)


def test_ties_go_to_the_lowest_channel():
    images, kernels = torch.ones(1, 2, 2, 5), torch.ones(1, 2, 2, 5)
    here = torch.zeros(1, dtype=torch.int64)
    for find in (winning_channels, winner._looped):
        assert find(images, kernels, (here, here, here), (here, here), (1, 1)).tolist() == [0]


def test_half_precision_finds_the_winner_of_its_own_numbers():
    images, kernels, *rest = case(1, 30, 1, 8, (3, 3), True)
    halves = images.bfloat16(), kernels.bfloat16()
    rounded = winning_channels(halves[0].float(), halves[1].float(), *rest)
    assert torch.equal(winning_channels(*halves, *rest), rounded)
