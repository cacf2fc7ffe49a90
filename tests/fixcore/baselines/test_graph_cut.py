"""Cutting an object out of a picture: the cheapest cut against trying all, and a picture whose object is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixcore
from fixcore.baselines import graph_cut_masks
from fixcore.baselines.graph_cut import _borders, _cheapest
from fixcore.evidence.saliency import blurred


def energy(inside: np.ndarray, outside: np.ndarray, borders: tuple[np.ndarray, ...], chosen: np.ndarray) -> float:
    """What a choice costs, as Boykov and Jolly write it down."""
    own = sum(inside.flat[at] if chosen.flat[at] else outside.flat[at] for at in range(inside.size))
    parted = sum(cost for a, b, cost in zip(*borders, strict=True) if chosen.flat[a] != chosen.flat[b])
    return float(own + parted)


@given(height=st.integers(1, 3), width=st.integers(1, 3), seed=st.integers(0, 1000))
def test_no_other_choice_of_cells_is_cheaper(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    inside, outside = random.integers(0, 60, (2, height, width)).astype(float)
    first, second, border = _borders(random.random((height, width, 2), dtype=np.float32))
    borders = (first, second, border.round())
    chosen = _cheapest(inside, outside, *borders)
    everything = (np.reshape(one, (height, width)) for one in product((False, True), repeat=height * width))
    least = min(energy(inside, outside, borders, one) for one in everything)
    assert energy(inside, outside, borders, chosen) == least


def test_neighbours_are_the_eight_around_a_cell_each_pair_once() -> None:
    first, second, border = _borders(np.zeros((3, 3, 1), dtype=np.float32))
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(pairs) == len(first) == 20  # 12 along the axes, 8 diagonals
    middle = [cost for a, b, cost in zip(first, second, border, strict=True) if 4 in (a, b)]
    assert sorted(middle) == pytest.approx([50 / 2**0.5] * 4 + [50] * 4)


def scene() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A reddish square on a greenish ground, and evidence on a part of it."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 96, 96, dtype=torch.bool)
    truth[:, 20:60, 30:80] = True
    ground, object_ = (torch.tensor(colour).view(1, 3, 1, 1) for colour in ((0.2, 0.6, 0.3), (0.7, 0.3, 0.2)))
    picture = torch.where(truth[:, None], object_, ground) + 0.05 * torch.randn(1, 3, 96, 96, generator=generator)
    maps = torch.zeros(1, 96, 96)
    maps[:, 30:45, 40:60] = 1.0
    return blurred(maps, 6.0), picture.clamp(0, 1), truth


def test_an_object_is_cut_out_along_its_borders_from_evidence_on_a_part_of_it() -> None:
    maps, picture, truth = scene()
    mask = graph_cut_masks(maps, picture)
    shared, either = (mask & truth).sum(), (mask | truth).sum()
    assert shared / either > 0.97


def test_of_two_objects_of_one_colour_the_larger_is_kept() -> None:
    maps, picture, _ = scene()
    picture[:, :, 80:90, 5:15] = picture[:, :, 30:40, 40:50]
    mask = graph_cut_masks(maps, picture)
    assert not mask[:, 78:, :].any()
    assert bool(mask[:, 30:50, 40:70].all())


def test_images_are_cut_one_by_one_and_any_number_of_channels_will_do() -> None:
    maps, picture, _ = scene()
    alone = graph_cut_masks(maps, picture[:, :1])
    beside = graph_cut_masks(
        torch.cat([maps.roll(30, 2), maps]), torch.cat([picture[:, :1].roll(9, 3), picture[:, :1]])
    )
    assert torch.equal(beside[1:], alone)


def test_a_map_of_a_few_points_among_zeros_points_at_those() -> None:
    maps, picture, truth = scene()
    few = torch.zeros_like(maps)
    few[:, 35, 45] = few[:, 50, 60] = 1.0
    mask = graph_cut_masks(few, picture)
    assert not mask[~truth].any()
    assert bool(mask[:, 35, 45].all())


def test_a_map_that_leaves_out_a_corner_points_at_the_rest() -> None:
    maps, picture, _ = scene()
    most = torch.ones_like(maps)
    most[:, :16, :16] = 0.0
    mask = graph_cut_masks(most, picture)
    assert bool(mask[:, 20:, 20:].all())
    assert not mask[:, :12, :12].any()


@pytest.mark.parametrize("value", [0.0, 0.5, torch.nan, torch.inf])
def test_without_evidence_nothing_is_cut_out(value: float) -> None:
    maps, picture, _ = scene()
    assert not graph_cut_masks(torch.full_like(maps, value), picture).any()


def test_a_picture_of_one_colour_and_one_of_a_few_pixels() -> None:
    maps, picture, _ = scene()
    assert graph_cut_masks(maps, torch.zeros_like(picture)).shape == maps.shape
    assert graph_cut_masks(torch.ones(2, 1, 2), torch.rand(2, 3, 1, 2)).shape == (2, 1, 2)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(fixcore.InputError, match=r"maps are \(N, H, W\)"):
        graph_cut_masks(torch.ones(1, 4, 4), torch.ones(1, 3, 5, 4))
