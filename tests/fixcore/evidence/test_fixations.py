from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.errors import InputError
from fixcore.evidence.fixations import Fixations, drop_outliers
from tests.fixcore.oracles_results import Point, kept_points, make, points_of


@st.composite
def batches(draw: st.DrawFn, *, equal: bool) -> Fixations:
    """Images with up to 40 points; masses are small whole numbers, or 1/P each."""
    height, width = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    images: list[list[Point]] = []
    for _ in range(draw(st.integers(1, 3))):
        places = draw(st.sets(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=40))
        masses = draw(st.lists(st.integers(0, 9), min_size=len(places), max_size=len(places)))
        images.append(
            [(row, col, 1 / len(places) if equal else mass) for (row, col), mass in zip(places, masses, strict=True)]
        )
    return make(images, height, width)


def check(fixations: Fixations, radius: Fraction, share: Fraction, by_mass: bool) -> None:
    kept = drop_outliers(fixations, radius=float(radius), share=float(share), by_mass=by_mass)
    for number in range(len(fixations)):
        points = points_of(fixations, number)
        expected = kept_points(points, fixations.height, fixations.width, radius, share, by_mass)
        found = points_of(kept, number)
        assert [point[:2] for point in found] == [point[:2] for point in expected]
        total = sum(mass for _, _, mass in expected)
        if total > 0:
            assert [point[2] for point in found] == pytest.approx([mass / total for _, _, mass in expected], rel=1e-6)
            assert sum(point[2] for point in found) == pytest.approx(1, abs=1e-5)
    assert (kept.height, kept.width, kept.margin) == (fixations.height, fixations.width, fixations.margin)
    assert torch.equal(kept.target, fixations.target)


@settings(deadline=None)
@given(batches(equal=True))
def test_for_equal_masses_both_ways_are_the_papers_rule(fixations: Fixations) -> None:
    check(fixations, Fraction(1, 10), Fraction(1, 20), by_mass=False)
    by_number, by_mass = drop_outliers(fixations), drop_outliers(fixations, by_mass=True)
    assert torch.equal(by_number.image, by_mass.image)
    assert torch.equal(by_number.row, by_mass.row)
    assert torch.equal(by_number.col, by_mass.col)


@settings(deadline=None)
@given(
    batches(equal=False),
    st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 4), Fraction(1), Fraction(7)]),
    st.sampled_from([Fraction(0), Fraction(1, 20), Fraction(1, 4), Fraction(1, 2), Fraction(1)]),
    st.booleans(),
)
def test_weighted_points_match_the_oracle(
    fixations: Fixations, radius: Fraction, share: Fraction, by_mass: bool
) -> None:
    check(fixations, radius, share, by_mass)


def test_exactly_five_percent_stays_and_the_point_counts_itself() -> None:
    cluster = [(row, col, 1 / 20) for row in range(4) for col in range(5)][:19]
    stray = (59, 79, 1 / 20)  # 1 of 20 points: not fewer than 5 %
    assert len(drop_outliers(make([[*cluster, stray]], 60, 80)).row) == 20
    crowd = [(row, col, 1 / 21) for row in range(4) for col in range(5)]
    kept = drop_outliers(make([[*crowd, (59, 79, 1 / 21)]], 60, 80))
    assert points_of(kept, 0) == [(row, col, pytest.approx(1 / 20)) for row, col, _ in crowd]


def test_a_point_on_the_circle_is_inside() -> None:
    # 60 x 80: diagonal 100, radius 10. The pair 10 apart holds 2 of 40 points, 5 %; 11 apart each is alone.
    crowd = [(row, col, 1 / 40) for row in range(5) for col in range(8)][:38]
    together = make([[*crowd, (50, 40, 1 / 40), (50, 50, 1 / 40)]], 60, 80)
    apart = make([[*crowd, (50, 40, 1 / 40), (50, 51, 1 / 40)]], 60, 80)
    assert len(drop_outliers(together).row) == 40
    assert len(drop_outliers(apart).row) == 38


def test_heads_or_mass() -> None:
    faint = [(row, col, 0.001) for row in range(6) for col in range(5)]
    strong = (90, 90, 0.97)
    fixations = make([[*faint, strong]], 100, 100)
    assert points_of(drop_outliers(fixations), 0) == [(row, col, pytest.approx(1 / 30)) for row, col, _ in faint]
    assert points_of(drop_outliers(fixations, by_mass=True), 0) == [(90, 90, 1.0)]


def test_evenly_spread_points_all_stay() -> None:
    spread = [(row, col, 1 / 100) for row in range(5, 100, 10) for col in range(5, 100, 10)]
    even = make([spread, [(3, 4, 1.0)], []], 1000, 1000)
    assert len(drop_outliers(even, radius=0.001).row) == 101


def test_many_points_of_many_images_do_not_meet() -> None:
    generator = torch.Generator().manual_seed(0)
    busy = torch.rand((8, 120, 80), generator=generator) < 0.2  # about 1,000 points an image
    busy[:, :, 40:] &= torch.rand((8, 120, 40), generator=generator) < 0.01
    image, row, col = busy.nonzero(as_tuple=True)
    mass = 1 / busy.sum((1, 2)).float()[image]
    fixations = Fixations(image, row, col, mass, 120, 80, torch.zeros(8, dtype=torch.int64))
    kept = drop_outliers(fixations)
    reach = int(0.10 * (120**2 + 80**2) ** 0.5)
    offsets = torch.arange(-reach, reach + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= 0.01 * (120**2 + 80**2)).double()
    near = torch.nn.functional.conv2d(busy[:, None].double(), disc[None, None], padding=reach)[:, 0].round()
    expected = busy & (20 * near >= busy.sum((1, 2), keepdim=True))
    assert 0 < int(expected.sum()) < len(row)
    assert torch.equal(torch.stack([kept.image, kept.row, kept.col], 1), expected.nonzero())


def test_a_share_of_nothing_keeps_even_points_without_mass() -> None:
    fixations = make([[(0, 0, 1.0), (9, 9, 0.0)]], 10, 10)
    assert len(drop_outliers(fixations, radius=0.0, share=0.0, by_mass=True).row) == 2


@pytest.mark.parametrize(("radius", "share"), [(-0.1, 0.05), (0.1, -0.01), (0.1, 1.5), (float("nan"), 0.05)])
def test_settings_out_of_range_raise(radius: float, share: float) -> None:
    with pytest.raises(InputError, match="must"):
        drop_outliers(make([[(0, 0, 1.0)]], 2, 2), radius=radius, share=share)


def test_no_targets() -> None:
    assert len(drop_outliers(make([], 4, 4))) == 0
    assert len(drop_outliers(make([[], []], 4, 4)).row) == 0
