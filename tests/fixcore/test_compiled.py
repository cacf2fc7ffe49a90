"""Compiled steps beside those of torch: what meets is joined, what parts is sorted, where a class begins."""

from __future__ import annotations

from collections import defaultdict

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixcore.points import Points, merged, summed_by_key
from fixcore.rules.layout import _by_part, _ownership, by_part
from fixcore.start import _class_maps, class_maps

KEYS = st.integers(0, 9) | st.integers(0, 2**44)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, st.integers(-8, 8)), max_size=60))
@example([])
@example([(0, 1), (0, 2)])
@example([(2**43, 1), (2**11, 2), (2**43, 3), (2**11 - 1, 4)])  # digits of the sort
def test_masses_are_summed_by_key(pairs):
    expected = defaultdict(float)
    for place, amount in pairs:
        expected[place] += amount
    key = torch.tensor([place for place, _ in pairs], dtype=torch.int64)
    mass = torch.tensor([amount for _, amount in pairs], dtype=torch.float32)
    for precision in (torch.float32, torch.float64):  # compiled, and in torch
        distinct, total = summed_by_key(key, mass.to(precision))
        assert distinct.tolist() == sorted(expected)
        assert total.tolist() == [expected[place] for place in sorted(expected)]
        assert total.dtype == precision


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
def test_class_maps_add_up_products(seed, images, targets, places, features, channels_last):
    generator = torch.Generator().manual_seed(seed)
    by_place = torch.randint(-4, 5, (images, features, places), generator=generator).float().transpose(1, 2)
    if channels_last:
        by_place = by_place.contiguous()
    weight = torch.randint(-4, 5, (targets, features), generator=generator).float()
    image = torch.randint(images, (targets,), generator=generator)
    found = class_maps(by_place, weight, image)
    assert torch.equal(found, torch.einsum("tld,td->tl", by_place[image], weight))
    assert torch.equal(found, _class_maps(by_place, weight, image))
