import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.errors import InputError
from fixcore.evidence.comparison import evidence_distance, evidence_halves, evidence_overlap
from fixcore.evidence.saliency import SIGMA
from tests.fixcore.oracles_results import Point, density, images, make, overlap


@settings(max_examples=50, deadline=None)
@given(images(2), st.sampled_from([None, 1.0, 4.0]))
def test_overlap_matches_the_oracle(case: tuple[list[list[Point]], int, int], sigma: float | None) -> None:
    points, height, width = case
    a, b = make([points[0]], height, width), make([points[1]], height, width)
    found = evidence_overlap(a, b, sigma=sigma)
    assert found.shape == (1,)
    if points[0] and points[1]:
        wide = sigma or SIGMA * math.hypot(height, width)
        expected = overlap(*(density(own, height, width, wide) for own in points))
        assert found.item() == pytest.approx(expected, abs=1e-5)
        assert evidence_overlap(b, a, sigma=sigma).item() == pytest.approx(found.item(), abs=1e-6)
    else:
        assert found.isnan().all()


def test_overlap_of_the_same_the_far_and_the_missing() -> None:
    one: list[Point] = [(10, 10, 0.5), (12, 14, 0.5)]
    a = make([one, one, one, []], 200, 200)
    b = make([one, [(190, 190, 1.0)], [], []], 200, 200)
    found = evidence_overlap(a, b)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[0] <= 1
    assert found[1] < 1e-6
    assert found[2:].isnan().all()


def test_overlap_never_exceeds_one() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 64, (40, 6, 2), generator=generator).tolist()
    fixations = make([[(row, col, 1 / 6) for row, col in {tuple(p) for p in points}] for points in places], 64, 64)
    found = evidence_overlap(fixations, fixations)
    assert found.max() <= 1
    assert found.min() > 1 - 1e-5


def middle_and_spread(points: list[Point]) -> tuple[tuple[float, float], float]:
    """The weighted median on each axis, and the mean distance from it."""
    total = sum(mass for _, _, mass in points)
    middle = []
    for axis in (0, 1):
        running = 0.0
        for point in sorted(points, key=lambda one: one[axis]):
            running += point[2]
            if running >= total / 2 - 1e-6 * total:
                middle.append(float(point[axis]))
                break
    row, col = middle
    return (row, col), sum(mass * math.hypot(r - row, c - col) for r, c, mass in points) / total


@given(images(2), images(2), st.sampled_from([0.0, 0.5, 4.0]))
def test_distance_matches_the_oracle(first, second, margin: float) -> None:
    height, width = max(first[1], second[1]), max(first[2], second[2])
    a, b = make(first[0], height, width, margin), make(second[0], height, width, margin)
    found = evidence_distance(a, b).tolist()
    for one, other, got in zip(first[0], second[0], found, strict=True):
        if not one or not other:
            assert math.isnan(got)
            continue
        (m1, s1), (m2, s2) = middle_and_spread(one), middle_and_spread(other)
        expected = math.dist(m1, m2) / max((s1 + s2) / 2 + margin, 0.5)
        assert got == pytest.approx(expected, abs=1e-4)


def test_distance_of_the_same_the_far_and_the_missing() -> None:
    rng = torch.Generator().manual_seed(0)
    cloud = (torch.randn(4000, 2, generator=rng) * 10 + 60).round().long().clamp(0, 199).tolist()
    here = [(row, col, 1.0) for row, col in cloud]
    there = [(row, col + 20, 1.0) for row, col in cloud]
    a, b = make([here, here, here], 200, 200), make([here, there, []], 200, 200)
    same, apart, missing = evidence_distance(a, b).tolist()
    assert same == 0
    assert apart == pytest.approx(20 / (10 * math.sqrt(math.pi / 2)), rel=0.05)  # two deviations
    assert math.isnan(missing)
    stray = make([[*here, (199, 199, 40.0)]], 200, 200)
    assert evidence_distance(make([here], 200, 200), stray).item() < 0.05
    with pytest.raises(InputError, match="must agree in targets, height and width"):
        evidence_distance(a, make([here], 200, 200))


@given(images(2), images(2))
def test_halves_match_the_oracle(first, second) -> None:
    height, width = max(first[1], second[1]), max(first[2], second[2])
    found = evidence_halves(make(first[0], height, width), make(second[0], height, width))
    assert found.dtype == torch.bool
    for one, other, got in zip(first[0], second[0], found, strict=True):
        for row, col in torch.cartesian_prod(torch.arange(height), torch.arange(width)).tolist():
            if not one or not other:
                assert not got[row, col]
                continue
            near, far = (math.dist((row, col), centre(points)) for points in (one, other))
            if abs(near - far) > 1e-6:
                assert got[row, col] == (near < far)


def centre(points: list[Point]) -> tuple[float, float]:
    total = sum(mass for _, _, mass in points)
    return sum(row * mass for row, _, mass in points) / total, sum(col * mass for _, col, mass in points) / total


def test_what_lies_half_way_belongs_to_the_second() -> None:
    a, b = make([[(1, 0, 1.0)]], 3, 5), make([[(1, 4, 1.0)]], 3, 5)
    assert evidence_halves(a, b)[0].tolist() == [[True, True, False, False, False]] * 3
    assert evidence_halves(b, a)[0].tolist() == [[False, False, False, True, True]] * 3
    assert not evidence_halves(a, a).any()


def test_what_cannot_be_compared() -> None:
    empty = make([], 5, 7)
    assert evidence_overlap(empty, empty).shape == evidence_distance(empty, empty).shape == (0,)
    assert evidence_halves(empty, empty).shape == (0, 5, 7)
    one = make([[(0, 0, 1.0)]], 4, 4)
    for compare in (evidence_overlap, evidence_distance, evidence_halves):
        for other in (make([[(0, 0, 1.0)]], 4, 5), make([[], []], 4, 4)):
            with pytest.raises(InputError, match="must agree in targets, height and width"):
                compare(one, other)
