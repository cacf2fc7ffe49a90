from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixcore import boxes
from fixcore.boxes import box_iou, evidence_boxes, max_sum_boxes
from fixcore.errors import InputError
from tests.fixcore.oracles_results import Point, best_box_score, box_around, box_score, iou, kept_points, make


@settings(deadline=None)
@given(st.data(), st.integers(1, 25), st.integers(1, 25), st.sampled_from([0.0, 0.5, 3.5, 16.0]))
def test_boxes_match_the_oracle(data: st.DataObject, height: int, width: int, margin: float) -> None:
    place = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    images: list[list[Point]] = []
    for places in data.draw(st.lists(st.sets(place, max_size=30), min_size=1, max_size=3)):
        images.append([(row, col, 1 / len(places)) for row, col in places])
    found = evidence_boxes(make(images, height, width, margin))
    assert found.dtype == torch.float32
    assert found.shape == (len(images), 4)
    for points, box in zip(images, found, strict=True):
        if points:
            kept = kept_points(points, height, width, Fraction(1, 10), Fraction(1, 20))
            assert box.tolist() == box_around(kept, height, width, margin)
        else:
            assert box.isnan().all()


def test_the_stray_point_is_outside_the_box() -> None:
    crowd = [(row, col, 1 / 31) for row in range(10, 15) for col in range(20, 26)]
    assert evidence_boxes(make([[*crowd, (90, 90, 1 / 31)]], 100, 100)).tolist() == [[20, 10, 26, 15]]


def test_the_margin_stops_at_the_edges() -> None:
    assert evidence_boxes(make([[(0, 30, 1.0)]], 32, 32, margin=4.0)).tolist() == [[26, 0, 32, 5]]


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
