from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore.errors import InputError
from fixcore.evidence import boxes
from fixcore.evidence.boxes import (
    box_iou,
    evidence_boxes,
    max_sum_boxes,
    moment_boxes,
    threshold_boxes,
    threshold_region_boxes,
)
from tests.fixcore.oracles_results import best_box_score, box_score, iou, make, moment_box, region_boxes


@settings(deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 12))
def test_moment_boxes_match_the_oracle(data: st.DataObject, height: int, width: int) -> None:
    cells = st.lists(st.integers(0, 4), min_size=height * width, max_size=height * width)
    maps = [data.draw(cells) for _ in range(3)]
    found = moment_boxes(torch.tensor(maps, dtype=torch.float32).view(3, height, width))
    for cell, box in zip(maps, found, strict=True):
        if sum(cell):
            assert box.tolist() == pytest.approx(moment_box(cell, height, width), abs=1e-4)
        else:
            assert box.isnan().all()


def test_an_evenly_filled_rectangle_is_its_own_moment_box() -> None:
    maps = torch.zeros(1, 40, 60)
    maps[0, 10:25, 20:50] = 7
    assert moment_boxes(maps)[0].tolist() == pytest.approx([20, 10, 50, 25], abs=1e-4)


def test_the_box_of_the_evidence_counts_points_and_not_their_mass() -> None:
    places = [(row, col) for row in range(10, 20) for col in range(5, 25)]
    masses = [float(1 + number % 7) for number in range(len(places))]
    points = [(row, col, mass / sum(masses)) for (row, col), mass in zip(places, masses, strict=True)]
    assert evidence_boxes(make([points, []], 40, 40))[0].tolist() == pytest.approx([5, 10, 25, 20], abs=1e-4)
    assert evidence_boxes(make([points, []], 40, 40))[1].isnan().all()


def test_the_box_around_one_point_is_its_pixel_and_of_a_cell_wider() -> None:
    assert evidence_boxes(make([[(3, 7, 1.0)]], 64, 64))[0].tolist() == pytest.approx([7, 3, 8, 4], abs=1e-4)
    wide = evidence_boxes(make([[(32, 32, 1.0)]], 64, 64, margin=2.0))[0]
    assert wide.tolist() == pytest.approx(
        [32.5 - 3**0.5 * 4, 32.5 - 3**0.5 * 4, 32.5 + 3**0.5 * 4, 32.5 + 3**0.5 * 4], abs=0.05
    )


@settings(deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.25, 0.5, 1.0]))
def test_threshold_boxes_match_the_oracle(data: st.DataObject, height: int, width: int, share: float) -> None:
    cells = st.lists(st.integers(0, 4), min_size=height * width, max_size=height * width)
    maps = [data.draw(cells) for _ in range(2)]
    given_maps = torch.tensor(maps, dtype=torch.float32).view(2, height, width)
    found, every = threshold_boxes(given_maps, share), threshold_region_boxes(given_maps, share)
    for cell, box, own in zip(maps, found, every, strict=True):
        if max(cell):
            above = [value >= share * max(cell) for value in cell]
            expected = region_boxes(above, height, width)
            assert box.tolist() == expected[0]
            assert own[: len(expected)].tolist() == expected
            assert own[len(expected) :].isnan().all()
        else:
            assert box.isnan().all()
            assert own.isnan().all()


whole_boxes = st.tuples(*[st.integers(0, 6)] * 4).map(lambda b: (b[0], b[1], max(b[0], b[2]), max(b[1], b[3])))


@settings(deadline=None)
@given(st.lists(st.tuples(whole_boxes, whole_boxes), min_size=1, max_size=8))
def test_iou_counts_pixels(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    a, b = (torch.tensor([pair[side] for pair in pairs], dtype=torch.float32) for side in (0, 1))
    assert box_iou(a, b).tolist() == pytest.approx([iou(*pair) for pair in pairs], rel=1e-6)


def test_iou_of_nothing_and_of_broadcast_boxes() -> None:
    nan = float("nan")
    missing = torch.tensor([[nan] * 4, [0, 0, 2, 2]])
    found = box_iou(missing, torch.tensor([0.0, 0.0, 2.0, 1.0]))
    assert found[0].isnan()
    assert found[1] == 0.5
    assert not bool(found[0] >= 0.5)
    assert box_iou(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0]


small_maps = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 4), min_size=width, max_size=width), min_size=1, max_size=6)
)


@settings(deadline=None)
@given(st.lists(small_maps, min_size=1, max_size=1), st.sampled_from(["1/8", "1/3", "1", "3/2", "9"]))
def test_max_sum_box_scores_as_the_best_of_all_boxes(images: list[list[list[int]]], penalty: str) -> None:
    image, weight = images[0], Fraction(penalty)
    flipped = image[::-1]
    found = max_sum_boxes(torch.tensor([image, flipped]), float(weight))
    for version, box in zip((image, flipped), found, strict=True):
        if sum(map(sum, version)):
            whole = [int(edge) for edge in box]
            assert whole == box.tolist()
            assert box_score(version, whole, weight) == best_box_score(version, weight)
        else:
            assert box.isnan().all()


def test_max_sum_box_by_hand() -> None:
    maps = torch.zeros(3, 6, 8)
    maps[0, 1:3, 2:5] = 7
    maps[0, 5, 7] = 1  # not worth the area
    maps[1, 2, 0] = maps[1, 2, 4] = 1  # both, over the gap, beat one
    maps[2, 0, 0] = float("inf")
    found = max_sum_boxes(maps, 1.0)
    assert found[:2].tolist() == [[2, 1, 5, 3], [0, 2, 5, 3]]
    assert found[2].isnan().all()
    tie = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 0, 1]]])  # one pixel scores 1/4 in either place
    assert max_sum_boxes(tie, 1.0)[0].tolist() == [0, 0, 1, 1]
    assert max_sum_boxes(tie, 1.5)[1].tolist() == [1, 0, 2, 1]
    assert max_sum_boxes(tie.mT, 1.0)[0].tolist() == [0, 0, 1, 1]


def test_max_sum_boxes_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(7, 9, 5, generator=torch.Generator().manual_seed(1))
    together = max_sum_boxes(maps, 0.9)
    monkeypatch.setattr(boxes, "_CHUNK", 100)
    assert torch.equal(max_sum_boxes(maps, 0.9), together)
    assert max_sum_boxes(maps[:0], 0.9).shape == (0, 4)


@pytest.mark.parametrize(("shape", "penalty"), [((4, 4), 1.0), ((1, 0, 4), 1.0), ((1, 4, 4), 0.0)])
def test_max_sum_boxes_refuse(shape: tuple[int, ...], penalty: float) -> None:
    with pytest.raises(InputError, match="must be"):
        max_sum_boxes(torch.ones(shape), penalty)
