"""Confident learning against cleanlab and nested loops; the explanations and the cut by loops; what is refused."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.filter import find_label_issues
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ProbabilitiesError
from pipeline.labels import cut as cut_module
from pipeline.labels import label_errors as module
from pipeline.labels.cut import choose_cut, explanations
from pipeline.labels.label_errors import (
    SelfConfidence,
    Survey,
    check_probabilities,
    find_label_errors,
    judge_labels,
    unjudged,
)

KINDS = (np.float16, np.float32, np.float64)


@st.composite
def audits(draw):
    """Rows of small whole numbers scaled to sum to 1: ties everywhere, and exact in every float type or nearly so."""
    classes = draw(st.integers(2, 5))
    count = draw(st.integers(1, 30))
    weights = draw(
        st.lists(st.lists(st.integers(0, 4), min_size=classes, max_size=classes), min_size=count, max_size=count)
    )
    table = np.array(weights, dtype=np.float64)
    table[table.sum(1) == 0] = 1
    given_labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    kind = draw(st.sampled_from(KINDS))
    return (table / table.sum(1, keepdims=True)).astype(kind), np.array(given_labels)


def in_chunks(probs, labels, size):
    confidence = SelfConfidence(probs.shape[1])
    for start in range(0, len(probs), size):
        confidence.add(probs[start : start + size], labels[start : start + size])
    return confidence


@settings(max_examples=300, deadline=None)
@given(audits(), st.integers(1, 8))
def test_thresholds_are_cleanlabs_whatever_the_chunks(audit, size):
    probs, labels = audit
    ours = in_chunks(probs, labels, size).thresholds()
    theirs = get_confident_thresholds(labels, probs.astype(np.float64))
    present = np.isin(np.arange(probs.shape[1]), labels)
    np.testing.assert_allclose(ours[present], theirs[present], rtol=0, atol=1e-12)
    assert np.isinf(ours[~present]).all()
    assert (theirs[~present] == 2).all()  # also out of reach


@settings(max_examples=300, deadline=None)
@given(audits())
def test_confident_joint_is_cleanlabs(audit):
    probs, labels = audit
    judged = judge_labels(probs, labels, in_chunks(probs, labels, 7).thresholds())
    joint = np.zeros((probs.shape[1], probs.shape[1]), dtype=int)
    counted = judged.confident_class >= 0
    np.add.at(joint, (labels[counted], judged.confident_class[counted]), 1)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))  # cleanlab's guarantee, not the paper's
    theirs = compute_confident_joint(labels, probs.astype(np.float64), calibrate=False)
    assert joint.tolist() == theirs.tolist()


@settings(max_examples=300, deadline=None)
@given(audits())
def test_doubted_labels_are_cleanlabs_to_the_last_flag(audit):
    probs, labels = audit
    if len(set(labels.tolist())) < 2:
        return  # cleanlab refuses these
    judged = judge_labels(probs, labels, in_chunks(probs, labels, 7).thresholds())
    theirs = find_label_issues(labels, probs.astype(np.float64), filter_by="confident_learning", n_jobs=1)
    assert judged.is_doubted.tolist() == theirs.tolist()


def test_doubted_labels_are_cleanlabs_on_many_classes_in_half_precision():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 60, 4000)
    labels = np.where(rng.random(4000) < 0.2, rng.integers(0, 60, 4000), truth)
    logits = rng.normal(0, 1.5, (4000, 60))
    logits[np.arange(4000), truth] += 5
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    half = probs.astype(np.float16)
    judged = judge_labels(half, labels, in_chunks(half, labels, 300).thresholds())
    theirs = find_label_issues(labels, half.astype(np.float64), filter_by="confident_learning", n_jobs=1)
    assert 500 < theirs.sum() < 1000
    assert judged.is_doubted.tolist() == theirs.tolist()


@settings(max_examples=300, deadline=None)
@given(audits(), st.data())
def test_each_row_as_nested_loops_say(audit, data):
    probs, labels = audit
    hidden = data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels)))
    labels = np.where(hidden, -1, labels)
    judged = judge_labels(probs, labels, in_chunks(probs, labels, 7).thresholds())
    for row, label, at in zip(probs.astype(np.float64), labels.tolist(), range(len(labels)), strict=True):
        ordered = sorted(row, reverse=True)
        assert judged.confidence[at] == pytest.approx(ordered[0], abs=1e-6)
        readings = [p * 3 / 4 + (k == label) / 4 if label >= 0 else p for k, p in enumerate(row)]
        assert judged.agreement[at] == pytest.approx(sum(share * share for share in readings), abs=1e-6)
        if label < 0:
            assert math.isnan(judged.own_share[at])
            assert not judged.is_doubted[at]
            assert not judged.is_candidate[at]
            assert judged.likely[at] == np.argmax(row)
            continue
        rival = max(p for k, p in enumerate(row) if k != label)
        assert judged.own_share[at] == pytest.approx(row[label] / (row[label] + rival), abs=1e-6)
        assert judged.likely[at] == (label if row[label] >= rival else np.argmax(row))
        in_play = round(math.exp(-sum(p * math.log(p) for p in row if p > 0)))
        rank = 1 + sum(p > row[label] for p in row)
        assert judged.is_candidate[at] == (rival > row[label] and rank <= in_play)


def test_an_image_between_two_classes_is_more_ambiguous_than_a_label_that_a_sure_network_contradicts():
    probs = np.array([[1.0, 0, 0], [1.0, 0, 0], [0.5, 0.5, 0], [0.4, 0.3, 0.3]], np.float32)
    agreement = judge_labels(probs, np.array([0, 1, 1, 1]), np.full(3, 0.5)).agreement
    assert (np.diff(agreement) < 0).all()
    assert agreement[0] == 1


def noisy(rng, count, classes, rate, margin=2.0):
    """Gaussian scores of a model that is sometimes mistaken, and labels of which a share is wrong."""
    truth = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), truth] += margin
    probs = np.exp(logits * margin)
    wrong = rng.random(count) < rate
    labels = np.where(wrong, (truth + rng.integers(1, classes, count)) % classes, truth)
    return probs / probs.sum(1, keepdims=True), labels, wrong


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_the_order_of_the_rows_changes_nothing(classes):
    rng = np.random.default_rng(classes)
    probs, labels, _ = noisy(rng, 1500, classes, 0.1)
    order = rng.permutation(len(labels))
    whole, mixed = find_label_errors(probs, labels), find_label_errors(probs[order], labels[order])
    assert mixed.suggested_label.tolist() == whole.suggested_label[order].tolist()
    np.testing.assert_allclose(mixed.label_score, whole.label_score[order], atol=1e-3)
    assert (mixed.is_error != whole.is_error[order]).sum() <= 2  # sums in float32 end in other last digits
    assert mixed.estimated_errors == pytest.approx(whole.estimated_errors, rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(audits())
def test_flags_are_disagreements_and_a_prefix_of_their_ranking(audit):
    probs, labels = audit
    found = find_label_errors(probs, labels)
    assert ((found.label_score >= 0) & (found.label_score <= 1)).all()
    assert (found.suggested_label[found.is_error] != labels[found.is_error]).all()
    spared = (found.suggested_label != labels) & ~found.is_error
    if found.is_error.any():
        if spared.any():
            assert found.label_score[found.is_error].max() < found.label_score[spared].min()
        assert 0 < found.estimated_precision <= 1 + 1e-6
        assert found.precision_range[0] <= found.estimated_precision <= found.precision_range[1]
    else:
        assert math.isnan(found.estimated_precision)
    assert found.errors_range[0] <= found.estimated_errors <= found.errors_range[1]
    left = found.estimated_errors - (1 - found.label_score[found.is_error].astype(float)).sum()
    assert not (found.is_in_doubt & found.is_error).any()
    assert (found.suggested_label[found.is_in_doubt] != labels[found.is_in_doubt]).all()
    if found.is_in_doubt.any():
        certain = spared & ~found.is_in_doubt
        assert found.is_in_doubt.sum() >= min(left, spared.sum()) - 1e-3
        last = found.label_score == found.label_score[found.is_in_doubt].max()
        assert (found.is_in_doubt & ~last).sum() < left + 1e-3  # equal scores are treated alike
        if certain.any():
            assert found.label_score[found.is_in_doubt].max() < found.label_score[certain].min()
    assert found.estimated_errors == pytest.approx((1 - found.label_score.astype(float)).sum(), abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(audits(), st.integers(1, 9))
def test_the_explanations_as_loops_say(audit, rows_a_block):
    """Confident learning's number of each class, and how often images as clear as this one are confirmed."""
    probs, labels = audit
    survey = Survey(probs.shape[1])
    survey.add(probs, labels)
    judged = survey.standards().judge(probs, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut_module, "_BLOCK_ROWS", rows_a_block)
        wrong = explanations(judged)
    thresholds = in_chunks(probs, labels, 7).thresholds(fill_absent=True)
    row = judge_labels(probs, labels, thresholds)
    pruned = set()
    for label in set(labels.tolist()):
        of_class = [at for at in range(len(labels)) if labels[at] == label]
        shown = [at for at in of_class if row.confident_class[at] >= 0]
        other = sum(row.is_doubted[at] for at in shown)
        number = round(len(of_class) * other / max(len(shown), other + 1))
        outdone = sorted((row.own_share[at], at) for at in of_class if row.own_share[at] < 0.5)
        pruned |= {at for _, at in outdone[:number]}
    ordered = sorted(row.confidence.tolist())
    blocks = min(50, len(labels) // rows_a_block)
    edges = sorted({ordered[(len(ordered) - 1) * part // blocks] for part in range(1, blocks)}) if blocks > 1 else []

    def block(at):
        return sum(edge < row.confidence[at] for edge in edges)

    differ = row.own_share < 0.5
    for at in range(len(labels)):
        scattered = judged["scattered"][at]
        alike = [other for other in range(len(labels)) if block(other) == block(at)]
        opinion = 1 - sum(differ[other] for other in alike) / len(alike) if differ[at] else 0
        expected = [scattered, judged["transitions"][at], scattered, max(opinion, scattered)]
        if at in pruned:
            expected[2] = max(1 - row.own_share[at], scattered)
        np.testing.assert_allclose(wrong[:, at], expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(audits())
def test_no_other_cut_has_a_better_mean_f1(audit):
    probs, labels = audit
    survey = Survey(probs.shape[1])
    survey.add(probs, labels)
    judged = survey.standards().judge(probs, labels)
    wrong = explanations(judged).astype(float)
    score, cut = choose_cut(judged)
    outdone = judged["own_share"] < 0.5

    def mean_f1(limit):
        flags = outdone & (score <= limit)
        return np.mean([2 * one[flags].sum() / max(flags.sum() + one.sum(), 1e-9) for one in wrong])

    if cut.limit >= 0:
        assert mean_f1(cut.limit) >= max(mean_f1(limit) for limit in score[outdone]) - 1e-5
    elif outdone.any():
        best = max(score[outdone], key=mean_f1)
        assert wrong[:, outdone & (score <= best)].sum(axis=1).mean() <= 0.5 + 1e-4


def test_equal_scores_are_flagged_together():
    judged = unjudged(40)
    judged["own_share"], judged["confidence"] = 0.99, 0.9
    judged["scattered"] = judged["transitions"] = 0
    judged["own_share"][:6] = 0.2
    judged["scattered"][:6] = judged["transitions"][:6] = 0.5
    score, cut = choose_cut(judged)
    assert (score <= cut.limit).sum() in (0, 6)
    assert (score <= cut.limit).tolist() == [True] * 6 + [False] * 34


def test_the_precision_of_every_prefix_is_its_mean_probability_of_an_error():
    probs, labels, _ = noisy(np.random.default_rng(1), 400, 4, 0.1)
    labels[::50] = -1
    found = find_label_errors(probs, labels)
    prefix = found.estimated_prefix_precision()
    assert len(prefix) == (labels >= 0).sum()
    order = np.argsort(found.label_score, kind="stable")
    for count in (1, 7, 100, len(prefix)):
        assert prefix[count - 1] == pytest.approx((1 - found.label_score[order[:count]]).mean(), abs=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
def test_scattered_noise_is_counted_and_its_precision_known(rate):
    """Where wrong labels do fall anywhere, that explanation must find their number; the estimate hedges."""
    probs, labels, wrong = noisy(np.random.default_rng(7), 8000, 6, rate)
    found = find_label_errors(probs, labels)
    right = (found.is_error & wrong).sum() / found.is_error.sum()
    f1 = 2 * (found.is_error & wrong).sum() / (found.is_error.sum() + wrong.sum())
    plain = probs.argmax(1) != labels
    assert f1 > 2 * (plain & wrong).sum() / (plain.sum() + wrong.sum())
    assert found.errors_range[0] <= wrong.sum() * 1.05
    assert found.precision_range[0] - 0.05 <= right <= found.precision_range[1] + 0.05


def clear_rows(labels, classes=3, sure=0.94):
    probs = np.full((len(labels), classes), (1 - sure) / (classes - 1))
    probs[np.arange(len(labels)), labels] = sure
    return probs


def test_finds_what_was_flipped_and_suggests_the_truth():
    truth = np.arange(300) % 3
    given_labels = truth.copy()
    given_labels[::20] = (truth[::20] + 1) % 3
    found = find_label_errors(clear_rows(truth), given_labels)
    assert np.flatnonzero(found.is_error).tolist() == list(range(0, 300, 20))
    assert found.suggested_label.tolist() == truth.tolist()
    assert found.estimated_errors == pytest.approx(15, abs=3)
    assert found.estimated_precision > 0.8
    assert found.label_score[0] < 0.2
    assert found.label_score[1] > 0.99


def test_rows_without_label_are_not_judged_and_do_not_count():
    truth = np.arange(60) % 3
    given_labels = np.where(np.arange(60) % 10 == 0, -1, truth)
    found = find_label_errors(clear_rows(truth), given_labels)
    assert np.isnan(found.label_score).tolist() == (given_labels < 0).tolist()
    assert not found.is_error.any()
    assert found.suggested_label.tolist() == truth.tolist()
    assert found.estimated_errors < 0.1


def test_no_label_at_all():
    found = find_label_errors(clear_rows(np.array([0, 1, 2])), np.array([-1, -1, -1]))
    assert np.isnan(found.label_score).all()
    assert not found.is_error.any()


def test_two_images():
    probs = np.array([[0.02, 0.98], [0.03, 0.97]], dtype=np.float16)
    assert find_label_errors(probs, np.array([0, 1])).is_error.tolist() == [True, False]
    assert find_label_errors(probs, np.array([1, 1])).is_error.tolist() == [False, False]


def test_an_image_of_an_absent_class_is_told_from_the_only_class_given():
    """Auditing a folder of one class with a network of many: cleanlab can name no other class there."""
    shown = np.zeros(50, dtype=int)
    shown[[7, 30]] = 2
    found = find_label_errors(clear_rows(shown, classes=5), np.zeros(50, dtype=int))
    assert np.flatnonzero(found.is_error).tolist() == [7, 30]
    assert found.suggested_label[7] == 2


def test_a_class_that_is_never_probable_is_not_shown_by_a_probability_of_zero():
    """The mean of class 1 is 0, which every row would reach."""
    probs = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float16)
    labels = np.array([0, 0, 2, 1])
    judged = judge_labels(probs, labels, in_chunks(probs, labels, 4).thresholds())
    assert judged.confident_class.tolist() == [0, 0, 2, 0]


def test_candidates_are_what_the_entropy_leaves_in_play():
    probs = np.array([[0.2, 0.8, 0], [0.05, 0.95, 0], [0.3, 0.36, 0.34], [0.05, 0.5, 0.45], [0.8, 0.2, 0]])
    judged = judge_labels(probs, np.zeros(5, dtype=int), np.full(3, np.inf))
    assert judged.is_candidate.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("probs", "labels", "message"),
    [
        ([[0.5, np.nan], [0.5, 0.5]], [0, 1], "row 0 of the probabilities: with a value that is not a finite number"),
        ([[0.5, 0.5], [np.inf, 0.5]], [0, 1], "row 1 of the probabilities: with a value that is not a finite number"),
        ([[0.5, 0.5], [1.25, -0.25]], [0, 1], "row 1 of the probabilities: with a negative value"),
        ([[0.5, 0.5], [0.5, 0.375]], [0, 1], r"row 1 of the probabilities: not summing to 1 \(the sum is 0.875\)"),
        ([[50, 50]], [0], "not summing to 1"),
        ([[0.5, 0.5]], [2], "row 0 of the probabilities: label 2 is out of range; 2 classes are 0 to 1"),
        ([[0.5, 0.5]], [-2], "label -2 is out of range"),
        ([[1.0], [1.0]], [0, 0], "probabilities of 1 class cannot contradict a label"),
        ([[0.5, 0.5]], [0, 1], r"\(1, 2\) and labels \(2,\) do not fit"),
        ([0.5, 0.5], [0, 1], r"\(2,\) and labels \(2,\) do not fit"),
        (
            [[0.5, 0.5]],
            [0.0],
            "labels must be class indices, one per image, not float64",
        ),
        (np.zeros((0, 3)), [], "there are no probabilities: 0 rows"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_refuses_in_one_line(probs, labels, message, kind):
    labels = np.array(labels) if len(labels) else np.zeros(0, dtype=int)
    with pytest.raises(ProbabilitiesError, match=message) as caught:
        find_label_errors(np.array(probs, dtype=kind), labels)
    assert "\n" not in str(caught.value)


def test_the_row_at_fault_is_named_beyond_the_first_chunk(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_VALUES", 6)
    probs = clear_rows(np.arange(11) % 3)
    probs[9] = 0
    with pytest.raises(ProbabilitiesError, match="row 9 "):
        find_label_errors(probs, np.arange(11) % 3)


def test_an_image_is_named_where_its_name_is_known():
    probs = clear_rows(np.array([0, 1]))
    probs[1, 2] = -0.1
    with pytest.raises(ProbabilitiesError, match=r"the probabilities of dog/b\.png: with a negative value"):
        check_probabilities(probs, np.array([0, 1]), names=["cat/a.png", "dog/b.png"])


def test_half_precision_of_a_thousand_classes_is_let_in():
    probs = np.random.default_rng(0).dirichlet(np.full(1000, 0.05), 200).astype(np.float16)
    check_probabilities(probs, np.zeros(200, dtype=int))
    check_probabilities(np.full((1, 1000), 1e-3, dtype=np.float16), np.zeros(1, dtype=int))


def test_unsigned_labels_are_read_as_they_are():
    truth = np.arange(30) % 3
    assert not find_label_errors(clear_rows(truth), truth.astype(np.uint8)).is_error.any()


@settings(max_examples=40, deadline=None)
@given(audits())
def test_chunks_change_nothing(audit):
    probs, labels = audit
    whole = find_label_errors(probs, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_VALUES", 3 * probs.shape[1])
        parts = find_label_errors(probs, labels)
    assert parts.is_error.tolist() == whole.is_error.tolist()
    np.testing.assert_array_equal(parts.label_score, whole.label_score)


def test_the_probabilities_are_never_copied_whole():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 200, 60_000)
    probs = np.full((60_000, 200), 0.002, dtype=np.float16)  # 24 MB; as float64 96 MB
    probs[np.arange(60_000), labels] = 0.602
    tracemalloc.start()
    found = find_label_errors(probs, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.is_error.any()
    assert peak < 80e6


@pytest.mark.shared
@pytest.mark.parametrize("name", ["aggregate_resnet18", "synthetic20_resnet18"])
def test_on_measured_probabilities_the_cut_beats_plain_disagreement_or_cleanlabs(name):
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "noise_probs" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"the benchmark data is not beside the project: {path}")
    arrays = np.load(path)
    labels = arrays["noisy_label"].astype(np.int64)
    wrong = labels != arrays["true_label"]
    found = find_label_errors(arrays["pred_probs"], labels)

    def f1(flags):
        return 2 * (flags & wrong).sum() / (flags.sum() + wrong.sum())

    theirs = find_label_issues(labels, arrays["pred_probs"].astype(np.float64), n_jobs=1)
    others = sorted((f1(theirs), f1(arrays["pred_probs"].argmax(1) != labels)))
    assert f1(found.is_error) > others[0]
    assert f1(found.is_error) > others[1] - 0.04


def test_one_class_with_nearly_all_images():
    """999 of 1,000 carry one label; what is rare and shown clearly is flagged, the only other label is left alone."""
    rng = np.random.default_rng(0)
    shown = np.zeros(1000, dtype=int)
    shown[[3, 40, 500]] = 1
    labels = np.zeros(1000, dtype=int)
    labels[500] = 1
    probs = clear_rows(shown, classes=3, sure=0.97) + rng.uniform(0, 0.01, (1000, 3))
    found = find_label_errors(probs / probs.sum(1, keepdims=True), labels)
    assert np.flatnonzero(found.is_error).tolist() == [3, 40]
    assert found.label_score[500] > 0.5
