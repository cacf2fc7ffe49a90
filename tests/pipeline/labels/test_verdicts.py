"""People's verdicts: what they make of four explanations, which labels are asked about, what becomes of the cut."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.labels import verdicts as module
from pipeline.labels.label_errors import find_label_errors
from pipeline.labels.verdicts import ASKED, DRAWS, RIGHT, UNSEEN, WRONG, weighed, worth_a_look


def odds(probability):
    return math.log(probability / (1 - probability))


def loss_by_hand(weights, explained, verdicts):
    """Minus the logarithm of prior times likelihood, from the docstring's formulas, row by row."""
    total = (weights[0] ** 2 + sum((weight - 0.25) ** 2 for weight in weights[1:])) / 2
    for row, verdict in zip(explained.T, verdicts, strict=True):
        z = weights[0] + sum(b * odds(min(max(q, 0.01), 0.99)) for b, q in zip(weights[1:], row, strict=True))
        wrong = 1 / (1 + math.exp(-z))
        total -= math.log(wrong if verdict == WRONG else 1 - wrong)
    return total


def numbers(count, least=0.0, most=1.0):
    return st.lists(st.floats(least, most), min_size=count, max_size=count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(numbers(4 * n), st.lists(st.booleans(), min_size=n, max_size=n))))
def test_the_posterior_is_where_the_loss_is_least_and_as_wide_as_it_is_flat(drawn):
    values, wrong = drawn
    explained = np.array(values, np.float32).reshape(4, -1)
    verdicts = np.where(wrong, WRONG, RIGHT)
    mean, spread = module._posterior(module._log_odds(explained), verdicts == WRONG)
    at_mean = loss_by_hand(mean, explained.astype(float), verdicts)
    step = 1e-3
    curvature = np.zeros((5, 5))
    for i, j in itertools.product(range(5), repeat=2):
        corners = [
            a * b * loss_by_hand(mean + step * (a * np.eye(5)[i] + b * np.eye(5)[j]), explained.astype(float), verdicts)
            for a, b in itertools.product((-1, 1), repeat=2)
        ]
        curvature[i, j] = sum(corners) / (4 * step**2)
    for direction in np.eye(5):
        for sign in (-1, 1):
            assert loss_by_hand(mean + sign * 0.05 * direction, explained.astype(float), verdicts) > at_mean
    np.testing.assert_allclose(spread @ spread.T @ curvature, np.eye(5), atol=2e-3)


def test_opinions_are_drawn_around_the_posterior_and_keep_to_the_verdicts():
    rng = np.random.default_rng(0)
    explained = rng.uniform(0.3, 0.7, (4, 60)).astype(np.float32)  # so that no opinion rounds to 0 or 1
    explained[:, 59] = np.nan
    outdone = np.arange(60) < 40
    verdict = np.full(60, UNSEEN)
    verdict[:4], verdict[50], verdict[51], verdict[59] = (WRONG, RIGHT, WRONG, WRONG), WRONG, RIGHT, RIGHT
    beliefs = weighed(explained, verdict, outdone)
    assert beliefs.shape == (DRAWS, 60)
    assert (beliefs[:, :4] == [1, 0, 1, 1]).all()
    assert (beliefs[:, 50] == 1).all()
    assert (beliefs[:, 51] == 0).all()
    assert np.isnan(beliefs[:, 59]).all()
    # of labels that nothing outdoes, each opinion has one explanation's
    others = [52, 53, 58]
    np.testing.assert_array_equal(beliefs[:, others], explained[np.arange(DRAWS) % 4][:, others])
    # the log-odds of the opinions are linear in the posterior's weights: in pairs around its mean
    mean, spread = module._posterior(module._log_odds(explained[:, :4]), verdict[:4] == WRONG)
    inputs = module._log_odds(explained[:, 4:40])
    z = np.log(beliefs[:, 4:40]) - np.log1p(-beliefs[:, 4:40])
    np.testing.assert_allclose(z.mean(axis=0), mean @ inputs, atol=1e-3)
    expected = np.sqrt(((spread.T @ inputs) ** 2).sum(axis=0))
    assert 0.7 < np.median(z.std(axis=0) / expected) < 1.3


def test_many_verdicts_for_one_explanation_end_near_it():
    """Errors are drawn as the second explanation says; the others say the opposite, or nothing."""
    rng = np.random.default_rng(1)
    second = rng.random(600).astype(np.float32)
    explained = np.stack([np.full_like(second, 0.5), second, 1 - second, np.full_like(second, 0.5)])
    wrong = rng.random(600) < second
    verdict = np.where(np.arange(600) < 400, np.where(wrong, WRONG, RIGHT), UNSEEN)
    opinion = weighed(explained, verdict, np.ones(600, bool)).mean(axis=0)[400:]
    assert np.abs(opinion - second[400:]).mean() < 0.05
    assert np.abs(explained.mean(axis=0)[400:] - second[400:]).mean() > 0.2


@settings(max_examples=100, deadline=None)
@given(numbers(40), st.lists(st.booleans(), min_size=40, max_size=40), st.integers(1, 45))
def test_as_many_are_asked_about_as_wanted_none_twice_and_only_those_in_question(scores, seen, count):
    score = np.array(scores, np.float32)
    verdict = np.where(seen, RIGHT, UNSEEN)
    outdone = np.arange(40) % 3 > 0
    asked = worth_a_look(score, outdone, verdict, count)
    open_rows = np.flatnonzero(outdone & (verdict == UNSEEN))
    assert len(asked) == len(set(asked.tolist())) == min(count, len(open_rows))
    assert set(asked.tolist()) <= set(open_rows.tolist())
    assert (np.diff(score[asked]) >= 0).all()  # the most suspicious first


def test_it_asks_most_where_it_is_unsure_and_some_everywhere():
    score = np.repeat(np.array([0.001, 0.5, 0.999], np.float32), 1000)
    asked = worth_a_look(score, np.ones(3000, bool), np.full(3000, UNSEEN), 50)
    sure_wrong, unsure, sure_right = np.bincount(asked // 1000, minlength=3)
    assert unsure > 40
    assert sure_wrong >= 2
    assert sure_right >= 2


def test_one_label_of_great_weight_is_asked_about_once():
    score = np.full(1000, 1, np.float32)
    score[3] = 0.5
    asked = worth_a_look(score, np.ones(1000, bool), np.full(1000, UNSEEN), 20)
    assert len(set(asked.tolist())) == 20
    assert 3 in asked


def planted(rng, images, rate):
    """Ten classes, an unsure model, and labels of which a share is wrong anywhere."""
    truth = rng.integers(0, 10, images)
    probs = rng.dirichlet(np.full(10, 0.2), images) * 0.6
    probs[np.arange(images), truth] += 0.4
    labels = np.where(rng.random(images) < rate, (truth + rng.integers(1, 10, images)) % 10, truth)
    return probs.astype(np.float32) / probs.sum(1, keepdims=True), labels, labels != truth


def f1(flags, wrong):
    return 2 * (flags & wrong).sum() / (flags.sum() + wrong.sum())


@pytest.mark.parametrize(("rate", "off"), [(0.005, 0.25), (0.05, 0.1), (0.3, 0.1)])  # 0.5 %: some thirty errors
def test_one_round_of_verdicts_tells_how_many_flags_are_right(rate, off):
    probs, labels, wrong = planted(np.random.default_rng(2), 6000, rate)
    before = find_label_errors(probs, labels)
    asked = before.to_review
    assert len(asked) == ASKED
    verdicts = np.full(len(labels), UNSEEN)
    verdicts[asked] = wrong[asked]
    after = find_label_errors(probs, labels, verdicts)
    assert f1(after.is_error, wrong) >= f1(before.is_error, wrong) - 0.01
    right = wrong[after.is_error].mean()
    assert abs(after.estimated_precision - right) < off
    assert after.precision_range[0] - 0.02 <= right <= after.precision_range[1] + 0.02
    np.testing.assert_array_equal(after.is_error[asked], wrong[asked])
    np.testing.assert_array_equal(after.label_score[asked], 1.0 - wrong[asked])
    assert not after.is_in_doubt[asked].any()
    assert not set(asked.tolist()) & set(after.to_review.tolist())


def test_a_verdict_counts_where_model_and_label_agree_and_not_where_there_is_no_label():
    probs, labels, _ = planted(np.random.default_rng(3), 500, 0.1)
    agrees = np.flatnonzero(probs.argmax(1) == labels)[:2]
    labels[7] = -1
    verdicts = np.full(500, UNSEEN)
    verdicts[agrees], verdicts[7] = WRONG, WRONG
    found = find_label_errors(probs, labels, verdicts)
    assert found.is_error[agrees].all()
    assert (found.label_score[agrees] == 0).all()
    assert not found.is_error[7]
    assert math.isnan(found.label_score[7])


def test_all_seen():
    probs, labels, wrong = planted(np.random.default_rng(4), 80, 0.2)
    found = find_label_errors(probs, labels, wrong.astype(int))
    np.testing.assert_array_equal(found.is_error, wrong)
    assert found.estimated_errors == wrong.sum()
    assert found.errors_range == (wrong.sum(), wrong.sum())
    assert found.estimated_precision == 1
    assert len(found.to_review) == 0
    nothing = find_label_errors(probs, labels, np.zeros(80, int))
    assert not nothing.is_error.any()
    assert math.isnan(nothing.estimated_precision)


def test_the_order_of_the_rows_changes_nothing():
    probs, labels, wrong = planted(np.random.default_rng(5), 400, 0.1)
    verdicts = np.where(np.arange(400) % 9 == 0, wrong, UNSEEN)
    order = np.random.default_rng(6).permutation(400)
    one, two = (find_label_errors(probs[at], labels[at], verdicts[at]) for at in (np.arange(400), order))
    np.testing.assert_allclose(two.label_score, one.label_score[order], atol=1e-4)
    np.testing.assert_array_equal(two.is_error, one.is_error[order])


@pytest.mark.parametrize("verdicts", [np.zeros(3, int), np.array([0, 1, 2, -1]), np.array([0.5, 0, 1, -1])])
def test_other_verdicts_are_refused(verdicts):
    with pytest.raises(ValueError, match="1 wrong, 0 right, -1 nobody looked"):
        find_label_errors(np.full((4, 2), 0.5), np.zeros(4, int), verdicts)
