"""Folds: copies stay together, labels spread evenly, rows may come in any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DatasetError
from pipeline.judging.folds import assign_folds, fold_warnings


def unique_groups(count):
    return [f"{i:064x}" for i in range(count)]


def table(labels, folds, fold_count):
    """Images per label (rows, -1 first) and fold."""
    counts = np.zeros((labels.max() + 2, fold_count), dtype=int)
    np.add.at(counts, (labels + 1, folds), 1)
    return counts


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60).map(lambda known: np.array([0, 1, *known])),
    fold_count=st.integers(2, 7),
    seed=st.integers(0, 5),
)
def test_unique_images_spread_evenly(labels, fold_count, seed):
    folds = assign_folds(labels, unique_groups(len(labels)), fold_count, seed)
    counts = table(labels, folds, fold_count)
    assert folds.dtype == np.int16
    assert counts.sum() == len(labels)
    assert np.ptp(counts, axis=1).max() <= 1
    assert np.ptp(counts.sum(axis=0)) <= 1


@given(
    rows=st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 12)), min_size=2, max_size=60),
    fold_count=st.integers(2, 6),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_copies_share_a_fold_and_order_does_not_matter(rows, fold_count, seed, data):
    rows = [(0, 0), (1, 1), *rows]
    labels, names = np.array([label for label, _ in rows]), [f"digest {name}" for _, name in rows]
    folds = assign_folds(labels, names, fold_count, seed)
    assert folds.min() >= 0
    assert folds.max() < fold_count
    fold_of = dict(zip(names, folds.tolist(), strict=True))
    assert [fold_of[name] for name in names] == folds.tolist()

    order = np.array(data.draw(st.permutations(range(len(rows)))))
    again = assign_folds(labels[order], [names[i] for i in order], fold_count, seed)
    assert again.tolist() == folds[order].tolist()


@given(sizes=st.lists(st.integers(1, 9), min_size=4, max_size=40), fold_count=st.integers(2, 6))
def test_groups_of_copies_are_balanced_up_to_the_largest(sizes, fold_count):
    names = [f"digest {group}" for group, size in enumerate(sizes) for _ in range(size)]
    labels = np.array([group % 2 for group, size in enumerate(sizes) for _ in range(size)])
    counts = table(labels, assign_folds(labels, names, fold_count, 0), fold_count)
    assert np.ptp(counts, axis=1).max() <= max(sizes)


def test_single_images_fill_up_what_copies_left_uneven():
    names = ["copied"] * 4 + unique_groups(16) + ["other label"]
    labels = np.array([0] * 20 + [1])
    folds = assign_folds(labels, names, 5, 0)
    assert table(labels, folds, 5)[1].tolist() == [4, 4, 4, 4, 4]


def test_remainders_of_many_small_classes_do_not_pile_up():
    labels = np.repeat(np.arange(50), 3)
    folds = assign_folds(labels, unique_groups(150), 5, 0)
    assert np.bincount(folds).tolist() == [30] * 5


def test_a_copy_with_another_label_follows_the_majority():
    labels = np.array([2, 1, 2] + [2] * 7 + [0] * 10)
    names = ["copy"] * 3 + unique_groups(17)
    folds = assign_folds(labels, names, 5, 0)
    assert len(set(folds[:3].tolist())) == 1
    # Of ten images in five folds the copies are three in one, so the seven others belong in the other four.
    assert folds[0] not in folds[3:10]


def test_unknown_labels_are_dealt_too():
    labels = np.array([0, 1] * 5 + [-1] * 10)
    folds = assign_folds(labels, unique_groups(20), 5, 0)
    assert np.bincount(folds[labels == -1]).tolist() == [2] * 5


def test_seed_deals_anew_and_same_seed_the_same():
    labels, names = np.arange(100) % 2, unique_groups(100)
    first, second = (assign_folds(labels, names, 5, seed) for seed in (0, 1))
    assert (first != second).any()
    assert (first == assign_folds(labels, names, 5, 0)).all()


def test_fold_of_an_image_does_not_follow_the_alphabet():
    folds = assign_folds(np.arange(1000) % 2, unique_groups(1000), 5, 0)
    neighbours = np.mean(folds[2:] == folds[:-2])
    assert 0.1 < neighbours < 0.3


def test_one_class_is_no_audit():
    with pytest.raises(
        DatasetError, match=r"^a label audit in probe or train mode needs .* two classes; use --predict"
    ):
        assign_folds(np.array([3, 3, -1]), unique_groups(3), 5, 0)


@pytest.mark.parametrize("folds", [-1, 0, 1, 40_000])
def test_number_of_folds_is_checked(folds):
    with pytest.raises(ConfigError, match=f"folds = {folds} is out of range"):
        assign_folds(np.array([0, 1]), unique_groups(2), folds, 0)


def test_our_own_mistakes_are_caught():
    with pytest.raises(ValueError, match="3 groups but labels of shape"):
        assign_folds(np.array([0, 1]), unique_groups(3), 5, 0)
    with pytest.raises(ValueError, match="a group is missing"):
        assign_folds(np.array([0, 1]), ["a", None], 5, 0)


def test_no_warning_when_every_class_is_in_every_fold():
    labels = np.arange(20) % 2
    assert fold_warnings(labels, assign_folds(labels, unique_groups(20), 5, 0), ["cat", "dog"]) == ()


def test_small_classes_are_named_in_one_line_each():
    labels = np.array([0] * 10 + [1] + [2] * 3 + [-1] * 5)
    folds = assign_folds(labels, unique_groups(len(labels)), 5, 0)
    alone, few = fold_warnings(labels, folds, ["cat", "dog", "eel", "no image of it"])
    assert alone.startswith("fewer different images than folds (5): dog (1); no judge of these images has seen")
    assert few.startswith("fewer different images than folds (5): eel (3); the judges of these classes saw only a few")


def test_copies_do_not_make_a_class_large():
    labels = np.array([0] * 10 + [1] * 10)
    names = unique_groups(10) + ["one picture ten times"] * 10
    (line,) = fold_warnings(labels, assign_folds(labels, names, 5, 0), ["cat", "dog"])
    assert "dog (10); no judge" in line


def test_a_long_list_of_small_classes_is_cut():
    labels = np.array([0] * 10 + list(range(1, 13)))
    (line,) = fold_warnings(labels, assign_folds(labels, unique_groups(22), 5, 0), [f"class{k}" for k in range(13)])
    assert "class5 (1) and 7 more;" in line
    assert "class6" not in line
