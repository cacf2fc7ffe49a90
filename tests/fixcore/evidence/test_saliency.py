import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.errors import InputError
from fixcore.evidence.fixations import Fixations
from fixcore.evidence.saliency import SIGMA, THRESHOLD, saliency_maps, saliency_masks
from tests.fixcore.oracles_results import Point, density, images, make


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


def test_no_targets() -> None:
    empty = make([], 5, 7)
    assert saliency_maps(empty).shape == (0, 5, 7)
    assert saliency_masks(empty).shape == (0, 5, 7)


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
