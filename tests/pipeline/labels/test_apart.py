"""Whether two evidences lie on two objects, against the definition written out image by image."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.labels.apart import ENOUGH, LOOKED_AT, USUAL_DISTANCE, Usual, is_looked_at, usual_share

WHOLE = st.integers(0, 12).map(float)


def learned(distances, swings) -> Usual:
    return Usual.of(np.array(distances, np.float32), np.array(swings, np.float32))


def said(usual: Usual, distance: float, swing: float) -> bool:
    (found,) = usual.is_apart(np.array([distance], np.float32), np.array([swing], np.float32))
    return bool(found)


@given(
    st.lists(st.tuples(WHOLE, WHOLE), min_size=ENOUGH, max_size=ENOUGH + 40),
    st.lists(st.tuples(WHOLE, WHOLE | st.just(math.nan)), min_size=1, max_size=20),
)
def test_an_image_stands_out_as_the_definition_says(usual, asked):
    count = len(usual)

    def rarity(distance, swing):
        far = 1 + sum(one >= distance for one, _ in usual)
        swung = 1 + sum(one >= swing for _, one in usual)
        return far / (count + 1) * (swung / (count + 1))

    def quantile(values, share):
        place = share * (count - 1)
        low, ordered = math.floor(place), sorted(values)
        return ordered[low] + (place - low) * (ordered[min(low + 1, count - 1)] - ordered[low])

    limit = quantile([rarity(*one) for one in usual], 0.05)
    farthest = quantile([one for one, _ in usual], 0.95)
    known = learned(*zip(*usual, strict=True))
    for distance, swing in asked:
        gap = distance - farthest if math.isnan(swing) else limit - rarity(distance, swing)
        if abs(gap) > 1e-9:
            assert said(known, distance, swing) == (gap > 0)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.0])
def test_what_is_as_usual_as_all_others_is_not_apart(value):
    usual = learned([value] * ENOUGH, [value] * ENOUGH)
    assert not said(usual, value, value)
    assert not said(usual, value, math.nan)
    assert said(usual, value + 1, value + 1)


def test_either_measure_alone_may_say_it_and_neither_where_both_are_usual():
    spread = np.arange(ENOUGH * 2)
    usual = learned(spread / 100, np.random.default_rng(0).permutation(spread))
    assert said(usual, 5.0, 100.0)
    assert said(usual, 1.0, 500.0)
    assert not said(usual, 1.0, 100.0)


def test_one_measure_beyond_all_does_not_make_up_for_the_other():
    """The share that reaches it is not 0: a hundred images do not say how rare it is."""
    usual = learned(np.arange(ENOUGH), np.arange(ENOUGH))
    assert not said(usual, 1e6, -1.0)
    assert not said(usual, -1.0, 1e6)
    assert said(usual, 1e6, ENOUGH - 10)


def test_few_images_do_not_say_what_is_usual():
    for usual in (learned([], []), learned([0.1] * (ENOUGH - 1), [0.1] * (ENOUGH - 1))):
        assert said(usual, USUAL_DISTANCE, math.nan)
        assert not said(usual, USUAL_DISTANCE - 0.01, 50.0)
        assert not said(usual, math.nan, math.nan)


def test_without_a_distance_nothing_lies_apart():
    usual = learned(np.arange(200) / 100, np.arange(200))
    assert not said(usual, math.nan, 1000.0)
    assert not said(usual, math.nan, math.nan)


@pytest.mark.parametrize("images", [1, LOOKED_AT, 10 * LOOKED_AT])
def test_as_many_are_looked_at_as_are_needed_and_always_the_same(images):
    share = usual_share(images)
    names = [f"train/cat/{at:05}.jpg" for at in range(images)]
    chosen = [name for name in names if is_looked_at(name, share)]
    assert len(chosen) == pytest.approx(min(images, LOOKED_AT), rel=0.15)
    assert chosen == [name for name in names if is_looked_at(name, share)]
