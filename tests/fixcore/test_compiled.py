"""Compiled steps beside those of torch: what meets is joined, what parts is sorted, where a class begins."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numba
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba.core import caching
from torch.nn import functional

from fixcore.compiled import threads
from fixcore.compiled.concatenation import concatenated
from fixcore.compiled.join import joined as compiled_joined
from fixcore.compiled.pooling import max_pool
from fixcore.network.class_map import _places_above_mean, places_above_mean
from fixcore.points import Points, joined, merged
from fixcore.rules.layout import _by_part, _ownership, by_part
from fixcore.window import pooling_window

PLACES = st.integers(0, 9) | st.integers(0, 2**40 - 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), PLACES, st.integers(-8, 8)), max_size=60),
)
@example([])
@example([(0, 0, 1), (0, 0, 2), (1, 0, 3)])
@example([(0, 2**39, 1), (0, 2**11, 2), (0, 2**39, 3), (0, 2**11 - 1, 4)])
def test_what_meets_is_joined(points):
    expected = defaultdict(float)
    for trace, index, amount in points:
        expected[trace, index] += amount
    column = list(zip(*points, strict=True)) if points else [[], [], []]
    trace, index = (torch.tensor(column[at], dtype=torch.int64) for at in (0, 1))
    mass = torch.tensor(column[2], dtype=torch.float32)
    for join in (joined, compiled_joined):
        found_trace, found_index, total = join(trace, index, 2**40, mass)
        assert list(zip(found_trace.tolist(), found_index.tolist(), strict=True)) == sorted(expected)
        assert total.tolist() == [expected[place] for place in sorted(expected)]


def test_points_of_several_targets_are_joined_each_with_its_own():
    parts = [
        Points(torch.tensor([5, 2, 5]), torch.tensor([1, 0, 1]), torch.tensor([0.5, 0.25, 0.25])),
        Points(torch.tensor([5, 2]), torch.tensor([0, 0]), torch.tensor([1.0, 0.5])),
    ]
    found = merged(parts, 6)
    assert found.trace.tolist() == [0, 0, 1]
    assert found.index.tolist() == [2, 5, 5]
    assert found.mass.tolist() == [0.75, 1.0, 0.75]
    assert found.distinct
    by_place = merged(parts, 6, targets=2)
    assert by_place.index.tolist() == [2, 5, 5]
    assert by_place.trace.tolist() == [0, 0, 1]
    assert by_place.mass.tolist() == [0.75, 1.0, 0.75]
    apart = [replace(part, index=5 - part.index) for part in parts]
    assert merged(apart, 6, targets=2).index.tolist() == [0, 0, 3]
    assert merged(apart, 6, targets=2).trace.tolist() == [0, 1, 0]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    outer=st.integers(1, 3),
    extents=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    inner=st.integers(1, 4),
    points=st.integers(0, 30),
)
def test_elements_are_found_in_their_part(seed, outer, extents, inner, points):
    numbered = torch.cat(
        [torch.arange(outer * extent * inner).view(outer, extent, inner) for extent in extents], 1
    ).flatten()
    owner = torch.cat([torch.full((outer, extent, inner), part) for part, extent in enumerate(extents)], 1).flatten()
    index = torch.randint(len(owner), (points,), generator=torch.Generator().manual_seed(seed))
    owners = _ownership(tuple(extents), index.device)
    place, order, counts = by_part(index, owners, inner, len(extents))
    in_torch = _by_part(index, owners, inner, len(extents))
    assert [place.tolist(), order.tolist(), counts] == [in_torch[0].tolist(), in_torch[1].tolist(), in_torch[2]]
    assert order.tolist() == sorted(range(points), key=lambda point: int(owner[index[point]]))  # stable
    assert place.tolist() == numbered[index[order]].tolist()
    assert counts == [int((owner[index] == part).sum()) for part in range(len(extents))]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    targets=st.integers(0, 4),
    places=st.integers(1, 40),
    features=st.integers(1, 40),
    channels_last=st.booleans(),
)
def test_classes_begin_above_the_mean_of_their_maps(seed, images, targets, places, features, channels_last):
    generator = torch.Generator().manual_seed(seed)
    by_place = torch.randint(-2, 3, (images, features, places), generator=generator).float().transpose(1, 2)
    if channels_last:
        by_place = by_place.contiguous()
    weight = torch.randint(-2, 3, (targets, features), generator=generator).float()
    image = torch.randint(images, (targets,), generator=generator)
    product = by_place[image] * weight[:, None]
    class_map = product.sum(2)
    above = class_map * places > class_map.sum(1, keepdim=True)  # of whole numbers, exactly
    above |= ~above.any(1, keepdim=True)
    excess = class_map.double() - class_map.double().mean(1, keepdim=True)
    excess[above.all(1)] = 1
    shares = excess / (excess * above).sum(1, keepdim=True)
    for find in (places_above_mean, _places_above_mean):
        row, place, channel, share = find(by_place, weight, image)
        assert torch.equal(torch.stack([row, place], 1), above.nonzero())
        assert channel.tolist() == product[row, place].argmax(1).tolist()
        torch.testing.assert_close(share.double(), shares[row, place], rtol=1e-5, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    channels=st.integers(1, 9),
    lowest=st.sampled_from([-math.inf, 0.0]),
)
def test_a_maximum_pool_is_torchs_to_the_bit(seed, kernel, stride, dilation, ceil_mode, channels, lowest):
    generator = torch.Generator().manual_seed(seed)
    strange = torch.tensor([-2, -1, 0, 1, 2, 3, math.nan, math.inf, -math.inf])
    chosen = torch.randint(len(strange), (2, channels, 8, 7), generator=generator)
    images = strange[chosen].contiguous(memory_format=torch.channels_last)
    sizes = [kernel, stride, [extent // 2 for extent in kernel], [dilation]]
    expected = functional.max_pool2d(images, *sizes, ceil_mode=ceil_mode)
    window = pooling_window(sizes, images.shape[2:], expected.shape[2:])
    found = max_pool(images, window, lowest)
    torch.testing.assert_close(found, expected.clamp(min=lowest), rtol=0, atol=0, equal_nan=True)
    assert found.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    parts=st.lists(st.tuples(st.integers(1, 9), st.sampled_from([-math.inf, 0.0])), min_size=1, max_size=5),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_a_concatenation_is_torchs_to_the_bit(seed, parts, height, width):
    generator = torch.Generator().manual_seed(seed)
    strange = torch.tensor([-2, -1, 0, 1, 2, 3, math.nan, math.inf, -math.inf])
    maps, expected = [], []
    for channels, lowest in parts:
        chosen = torch.randint(len(strange), (2, channels, height, width), generator=generator)
        maps.append(strange[chosen].contiguous(memory_format=torch.channels_last))
        expected.append(maps[-1].relu() if lowest == 0 else maps[-1])
    found = concatenated(maps, [lowest for _, lowest in parts])
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=0, atol=0, equal_nan=True)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_where_nothing_can_be_kept_loops_are_compiled_anew(monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    def add(one, other):
        return one + other

    with pytest.raises(RuntimeError, match="no locator"):
        numba.njit(cache=True)(add)
    assert threads.alone(add)(2, 3) == 5
