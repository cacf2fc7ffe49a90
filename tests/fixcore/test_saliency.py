import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.errors import InputError
from fixcore.fixations import Fixations
from fixcore.saliency import SIGMA, THRESHOLD, evidence_distance, evidence_overlap, saliency_maps, saliency_masks
from tests.fixcore.oracles_results import Point, density, make, overlap


@st.composite
def images(draw: st.DrawFn, count: int) -> tuple[list[list[Point]], int, int]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    place = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    found = []
    for _ in range(count):
        places = draw(st.sets(place, max_size=5))
        masses = draw(st.lists(st.integers(1, 9), min_size=len(places), max_size=len(places)))
        found.append([(row, col, mass / sum(masses)) for (row, col), mass in zip(places, masses, strict=True)])
    return found, height, width


@settings(max_examples=50, deadline=None)
@given(images(2), st.sampled_from([None, 0.3, 1.0, 4.0]))
def test_maps_match_the_oracle(case: tuple[list[list[Point]], int, int], sigma: float | None) -> None:
    points, height, width = case
    found = saliency_maps(make(points, height, width), sigma=sigma)
    assert found.dtype == torch.float32
    for own, each in zip(points, found, strict=True):
        rooted = [(row, col, math.sqrt(mass)) for row, col, mass in own]
        plain = torch.tensor(density(rooted, height, width, sigma or SIGMA * math.hypot(height, width)))
        expected = plain / plain.max() if own else plain
        torch.testing.assert_close(each, expected.float(), rtol=1e-4, atol=1e-6)
        assert each.max() == (1 if own else 0)


def test_default_sigma_is_the_codes_on_its_photograph() -> None:
    maps = saliency_maps(make([[(187, 250, 1.0)]], 375, 500))
    assert maps[0, 187, 270] == pytest.approx(math.exp(-0.5), rel=1e-5)  # one sigma, 20 pixels, away


def test_the_points_of_a_class_map_are_as_wide_as_its_cells() -> None:
    maps = saliency_maps(make([[(187, 250, 1.0)]], 375, 500, margin=7.5))  # a cell of 15 pixels: sigma is 25
    assert maps[0, 187, 275] == pytest.approx(math.exp(-0.5), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(images(2), st.sampled_from([0.5, 2.0]), st.integers(0, 1000))
def test_points_share_among_the_pixels_that_respond(
    case: tuple[list[list[Point]], int, int], sigma: float, seed: int
) -> None:
    points, height, width = case
    activity = torch.randint(0, 4, (2, height, width), generator=torch.Generator().manual_seed(seed)).float()
    found = saliency_maps(make(points, height, width), sigma=sigma, activity=activity)
    for own, each, responds in zip(points, found, activity.tolist(), strict=True):
        mean = sum(map(sum, responds)) / (height * width)
        total = torch.zeros(height, width, dtype=torch.float64)
        for row, col, mass in own:
            near = torch.tensor(density([(row, col, 1.0)], height, width, sigma), dtype=torch.float64)
            for y in range(height):
                for x in range(width):
                    near[y, x] *= (responds[y][x] / mean if mean else 1) + 0.001
            total += math.sqrt(mass) * near / near.sum()
        expected = total / total.max() if own else total
        torch.testing.assert_close(each, expected.float(), rtol=1e-3, atol=1e-5)


def test_activity_decides_around_a_point_and_not_between_points() -> None:
    fixations = make([[(20, 10, 0.5), (20, 70, 0.5)], []], 41, 81)
    activity = torch.zeros(2, 41, 81)
    activity[:, :, 12:40] = 1.0  # beside the first point; nothing at all near the second
    plain = saliency_maps(fixations, sigma=4.0)
    found = saliency_maps(fixations, sigma=4.0, activity=activity)
    left, right = found[0, :, :41].sum(), found[0, :, 41:].sum()
    torch.testing.assert_close(left, right, rtol=1e-2, atol=0.0)
    assert int(found[0, 20, :41].argmax()) == 12
    torch.testing.assert_close(found[0, :, 50:] / found[0, :, 50:].max(), plain[0, :, 50:], rtol=1e-3, atol=1e-3)
    assert not found[1].any()
    masks = saliency_masks(fixations, threshold=0.5, sigma=4.0, activity=3 * activity)  # on any scale
    torch.testing.assert_close(masks, found >= 0.5)


def test_masks_hold_the_peak_and_what_is_near() -> None:
    fixations = make([[(50, 50, 1.0)], []], 101, 101)
    masks = saliency_masks(fixations, threshold=0.5, sigma=10.0)
    reach = 10 * math.sqrt(2 * math.log(2))  # where the Gaussian falls to one half
    rows, cols = torch.meshgrid(torch.arange(101), torch.arange(101), indexing="ij")
    assert masks.dtype == torch.bool
    assert torch.equal(masks[0], (rows - 50) ** 2 + (cols - 50) ** 2 <= reach**2)
    assert not masks[1].any()
    assert int(saliency_masks(fixations, threshold=1.0).sum()) == 1
    assert torch.equal(saliency_masks(fixations), saliency_maps(fixations) >= THRESHOLD)


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


def test_no_targets() -> None:
    empty = make([], 5, 7)
    assert saliency_maps(empty).shape == (0, 5, 7)
    assert saliency_masks(empty).shape == (0, 5, 7)
    assert evidence_overlap(empty, empty).shape == (0,)


def test_bad_settings_raise() -> None:
    fixations: Fixations = make([[(0, 0, 1.0)]], 4, 4)
    with pytest.raises(InputError, match="sigma"):
        saliency_maps(fixations, sigma=0.0)
    with pytest.raises(InputError, match=r"activity is \(2, 4, 4\)"):
        saliency_maps(fixations, activity=torch.ones(2, 4, 4))
    with pytest.raises(InputError, match="sigma"):
        saliency_maps(fixations, sigma=0.0, activity=torch.ones(1, 4, 4))
    for threshold in (0.0, 1.01):
        with pytest.raises(InputError, match="threshold"):
            saliency_masks(fixations, threshold=threshold)
    with pytest.raises(InputError, match="agree"):
        evidence_overlap(fixations, make([[(0, 0, 1.0)]], 4, 5))
    with pytest.raises(InputError, match="agree"):
        evidence_overlap(fixations, make([[], []], 4, 4))


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
