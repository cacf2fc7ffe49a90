from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.geometry import (
    MAP_SIDE,
    InputSpec,
    Region,
    original_box,
    original_map,
    original_mask,
    original_points,
    seen_region,
)

sides = st.one_of(st.integers(1, 12), st.integers(1, 700))
specs = st.builds(
    InputSpec,
    size=st.integers(1, 40),
    fit=st.sampled_from(["crop", "squash"]),
    resize=st.one_of(st.none(), st.integers(1, 60)),
)


def axis(length: int, other: int, spec: InputSpec) -> tuple[Fraction, Fraction]:
    """First edge and step of the region along one axis, in exact arithmetic, as torchvision's integers have it."""
    if spec.fit == "squash":
        return Fraction(0), Fraction(length, spec.size)
    short = max(spec.resize or spec.size, spec.size)
    resized = short if length <= other else floor(Fraction(short * length, other))
    step = Fraction(length, resized)
    return round(Fraction(resized - spec.size, 2)) * step, step


@settings(deadline=None)
@given(sides, sides, specs)
@example(10_000, 1, InputSpec(size=224, resize=256))
@example(1, 10_000, InputSpec(size=224))
@example(10_000, 3, InputSpec(size=224, resize=256))
def test_region_lies_where_exact_arithmetic_says(width: int, height: int, spec: InputSpec) -> None:
    region = seen_region(width, height, spec)
    (left, step_x), (top, step_y) = axis(width, height, spec), axis(height, width, spec)
    assert region.box == pytest.approx(
        (left, top, left + spec.size * step_x, top + spec.size * step_y), rel=1e-12, abs=1e-12
    )
    assert 0 <= region.left < region.right <= width
    assert 0 <= region.top < region.bottom <= height


@pytest.mark.parametrize(
    ("width", "height", "spec", "box"),
    [
        (500, 375, InputSpec(size=224, resize=256), (85.043988, 23.4375, 413.489736, 351.5625)),  # 341 x 256, at 58
        (224, 225, InputSpec(size=224), (0, 0, 224, 224)),  # half of 1 rounds to 0
        (224, 227, InputSpec(size=224), (0, 2, 224, 226)),  # half of 3 rounds to 2
        (100, 50, InputSpec(size=50), (25, 0, 75, 50)),
        (100, 50, InputSpec(size=50, resize=20), (25, 0, 75, 50)),  # never a border
        (10, 10, InputSpec(size=224, resize=224), (0, 0, 10, 10)),
        (640, 480, InputSpec(size=32, fit="squash"), (0, 0, 640, 480)),
    ],
)
def test_region_by_hand(width: int, height: int, spec: InputSpec, box: tuple[float, ...]) -> None:
    assert seen_region(width, height, spec).box == pytest.approx(box)


@settings(deadline=None)
@given(sides, sides, specs, st.data())
def test_points_match_exact_arithmetic(width: int, height: int, spec: InputSpec, data: st.DataObject) -> None:
    place = st.tuples(st.integers(0, spec.size - 1), st.integers(0, spec.size - 1))
    places = sorted(data.draw(st.sets(place, max_size=25)))
    masses = data.draw(st.lists(st.integers(1, 9), min_size=len(places), max_size=len(places)))
    (left, step_x), (top, step_y) = axis(width, height, spec), axis(height, width, spec)
    expected: dict[tuple[int, int], int] = {}
    for (row, col), mass in zip(places, masses, strict=True):
        y, x = floor(top + (row + Fraction(1, 2)) * step_y), floor(left + (col + Fraction(1, 2)) * step_x)
        expected[y, x] = expected.get((y, x), 0) + mass
    rows, cols = [row for row, _ in places], [col for _, col in places]
    region = seen_region(width, height, spec)
    found = original_points(region, np.array(rows, dtype=int), np.array(cols, dtype=int), masses)
    assert (found.x.dtype, found.y.dtype, found.mass.dtype) == (np.int32, np.int32, np.float32)
    assert list(zip(found.y.tolist(), found.x.tolist(), strict=True)) == sorted(expected)
    assert found.mass.tolist() == [expected[key] for key in sorted(expected)]
    assert all(0 <= y < height and 0 <= x < width for y, x in expected)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), specs, st.integers(0, 2**32 - 1))
def test_mask_looks_up_the_middle_of_what_is_seen(width: int, height: int, spec: InputSpec, seed: int) -> None:
    mask = np.random.default_rng(seed).random((spec.size, spec.size)) < 0.5
    (left, step_x), (top, step_y) = axis(width, height, spec), axis(height, width, spec)

    def indices(length: int, start: Fraction, step: Fraction) -> dict[int, int]:
        stop, found = start + spec.size * step, {}
        for place in range(length):
            low, high = max(start, Fraction(place)), min(stop, Fraction(place + 1))
            if low < high:
                found[place] = floor(((low + high) / 2 - start) / step)
        return found

    expected = np.zeros((height, width), dtype=bool)
    for y, row in indices(height, top, step_y).items():
        for x, col in indices(width, left, step_x).items():
            expected[y, x] = mask[row, col]
    found = original_mask(seen_region(width, height, spec), mask)
    assert found.dtype == np.bool_
    assert np.array_equal(found, expected)


@settings(deadline=None, max_examples=50)
@given(sides, sides, specs, st.data())
def test_a_map_is_the_mean_over_cells_of_the_whole_image(
    width: int, height: int, spec: InputSpec, data: st.DataObject
) -> None:
    places = st.tuples(st.integers(0, spec.size - 1), st.integers(0, spec.size - 1))
    lit = data.draw(st.dictionaries(places, st.integers(1, 9), min_size=1, max_size=4))
    drawn = np.zeros((spec.size, spec.size), np.float32)
    for place, value in lit.items():
        drawn[place] = value
    (left, step_x), (top, step_y) = axis(width, height, spec), axis(height, width, spec)

    def shared(cell: int, length: int, pixel: int, start: Fraction, step: Fraction) -> Fraction:
        low = max(Fraction(cell * length, MAP_SIDE), start + pixel * step)
        return max(min(Fraction((cell + 1) * length, MAP_SIDE), start + (pixel + 1) * step) - low, Fraction(0))

    expected = np.array(
        [
            [
                sum(
                    value * shared(row, height, y, top, step_y) * shared(col, width, x, left, step_x)
                    for (y, x), value in lit.items()
                )
                for col in range(MAP_SIDE)
            ]
            for row in range(MAP_SIDE)
        ]
    )
    found = original_map(seen_region(width, height, spec), drawn)
    assert found.dtype == np.uint8
    assert found.max() == 255
    np.testing.assert_allclose(found, (expected * 255 / expected.max()).astype(float), atol=0.51)


def test_a_map_of_zeros_stays_one() -> None:
    assert not original_map(seen_region(30, 20, InputSpec(size=16)), np.zeros((16, 16), np.float32)).any()


def test_a_region_thinner_than_a_pixel_keeps_its_mask() -> None:
    region = seen_region(10_000, 1, InputSpec(size=224, resize=256))
    assert region.right - region.left < 1
    mask = original_mask(region, np.ones((224, 224), dtype=bool))
    assert mask.shape == (1, 10_000)
    assert np.flatnonzero(mask).tolist() == [4999, 5000]
    points = original_points(region, [0, 223], [0, 223], [0.5, 0.5])
    assert points.x.tolist() == [4999, 5000]


@settings(deadline=None)
@given(sides, sides, specs)
def test_the_whole_input_maps_back_to_the_region(width: int, height: int, spec: InputSpec) -> None:
    region = seen_region(width, height, spec)
    assert original_box(region, (0, 0, spec.size, spec.size)) == pytest.approx(region.box)
    first = original_box(region, (0, 0, 1, 1))
    assert first[2] - first[0] == pytest.approx(region.step_x)
    assert first[3] - first[1] == pytest.approx(region.step_y)


def test_boxes_are_clipped_and_nan_stays() -> None:
    region = Region(100, 60, 10, 20.0, 0.0, 80.0, 60.0)
    assert original_box(region, (1, 2, 4, 5)) == (26, 12, 44, 30)
    assert original_box(region, (-50, -1, 50, 11)) == (0, 0, 100, 60)
    assert np.isnan(original_box(region, np.full(4, np.nan))).all()


def test_no_points() -> None:
    nothing = np.array([], dtype=int)
    points = original_points(seen_region(30, 20, InputSpec(size=8)), nothing, nothing, nothing)
    assert (len(points.x), len(points.y), len(points.mass)) == (0, 0, 0)


def test_bad_specs_raise() -> None:
    with pytest.raises(ConfigError, match="one of crop, squash"):
        InputSpec(size=8, fit="stretch")
    for size, resize in ((0, None), (8, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            InputSpec(size=size, resize=resize)
