"""Points: what meets at one place is joined."""

from __future__ import annotations

from collections import defaultdict

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixcore.points import Points, merged, summed_by_key

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
