"""The two fitted explanations against loops over the formula, and against noise that was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.labels import noise as module
from pipeline.labels.noise import NoiseModel, Sample, logarithms

CLASSES = 4


def planted(transition, count=12_000, seed=0, sharpness=1.0):
    """Probabilities of a model that is right about itself, true classes drawn from them, and labels drawn from T."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(CLASSES, 0.15), count)
    true = (probs.cumsum(1) > rng.random((count, 1))).argmax(1)
    labels = (transition[true].cumsum(1) > rng.random((count, 1))).argmax(1)
    told = probs ** (1 / sharpness)
    return told / told.sum(1, keepdims=True), labels, true


def uniform(rate):
    return np.full((CLASSES, CLASSES), rate / (CLASSES - 1)) + np.eye(CLASSES) * (1 - rate - rate / (CLASSES - 1))


def fitted(probs, labels, *, by_class):
    sample = Sample(probs.shape[1])
    sample.add(probs, labels)
    return sample.fit(by_class=by_class)


@pytest.mark.parametrize("by_class", [False, True])
def test_the_probability_of_an_error_as_bayes_rule_in_loops(by_class):
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(CLASSES), 20), rng.integers(0, CLASSES, 20)
    table = rng.dirichlet(np.ones(CLASSES) * 3, CLASSES) if by_class else uniform(0.3)
    bias = torch.tensor([0.5, -0.5, 0.25, -0.25])
    told = torch.tensor(table, dtype=torch.float32) if by_class else torch.tensor([0.3])
    found = NoiseModel(1.5, bias, told).error_probability(probs, labels)
    for row, label, got in zip(probs, labels, found, strict=True):
        true = [math.exp(1.5 * math.log(p) + b) for p, b in zip(row, bias.tolist(), strict=True)]
        joint = [weight * table[z][label] for z, weight in enumerate(true)]
        assert got == pytest.approx(1 - joint[label] / sum(joint), abs=1e-5)


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.2, 0.4])
def test_scattered_noise_is_found_at_its_rate(rate):
    probs, labels, true = planted(uniform(rate))
    model = fitted(probs, labels, by_class=False)
    assert float(model.noise) == pytest.approx(rate, abs=0.003 + rate * 0.1)
    wrong = model.error_probability(probs, labels)
    assert wrong.mean() == pytest.approx((labels != true).mean(), abs=0.01)
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1)):  # what is said with 90 % is so in 90 %
        chosen = (wrong >= low) & (wrong < high)
        if chosen.sum() > 100:
            assert (labels != true)[chosen].mean() == pytest.approx(wrong[chosen].mean(), abs=0.06)


def test_transitions_are_found_each_at_its_rate():
    table = np.array([[0.9, 0.1, 0, 0], [0, 1, 0, 0], [0.02, 0, 0.7, 0.28], [0.05, 0.05, 0.05, 0.85]])
    probs, labels, _ = planted(table)
    model = fitted(probs, labels, by_class=True)
    np.testing.assert_allclose(model.noise.numpy(), table, atol=0.03)
    np.testing.assert_allclose(model.noise.sum(1).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize("sharpness", [0.5, 2.0])
def test_a_model_too_bold_or_too_shy_is_corrected(sharpness):
    probs, labels, _ = planted(uniform(0.1), sharpness=sharpness)
    model = fitted(probs, labels, by_class=False)
    assert model.sharpness == pytest.approx(sharpness, rel=0.1)
    assert float(model.noise) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("by_class", [False, True])
def test_each_step_makes_the_labels_more_probable(monkeypatch, by_class):
    probs, labels, _ = planted(uniform(0.15), count=2000, sharpness=1.7)
    likelihoods = []
    for steps in (1, 3, 10, 30):
        monkeypatch.setattr(module, "_ITERATIONS", steps)
        model = fitted(probs, labels, by_class=by_class)
        true = model.of_classes(logarithms(probs))
        table = model.noise.numpy() if by_class else uniform(float(model.noise))
        likelihoods.append(np.log((true.numpy() * table[:, labels].T).sum(1)).mean())
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0]


def test_a_handful_of_rows_and_none_send_nothing_anywhere():
    for by_class in (False, True):
        nothing = Sample(3).fit(by_class=by_class)
        assert nothing.sharpness == 1
        few = fitted(np.array([[0.98, 0.02], [0.03, 0.97]]), np.array([0, 0]), by_class=by_class)
        wrong = few.error_probability(np.array([[0.98, 0.02], [0.03, 0.97]]), np.array([0, 0]))
        assert np.isfinite(wrong).all()
        assert wrong[0] < wrong[1]


def test_a_probability_of_zero_is_no_veto():
    probs = np.array([[1, 0, 0]] * 50 + [[0, 0, 1]] * 50, dtype=np.float16)
    labels = np.repeat([0, 2], 50)
    labels[7] = 1
    for by_class in (False, True):
        model = fitted(probs, labels, by_class=by_class)
        wrong = model.error_probability(probs, labels)
        assert wrong[7] > 0.9
        assert wrong[8] < 0.1


def test_a_sample_is_bounded_fair_and_the_same_whatever_the_chunks(monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE_ROWS", 500)
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 6000).astype(np.float16)
    labels = np.arange(6000) % 3
    labels[::10] = -1

    def sampled(size):
        sample = Sample(3)
        for start in range(0, 6000, size):
            sample.add(probs[start : start + size], labels[start : start + size])
        return sample

    whole, parts = sampled(6000), sampled(77)
    assert len(whole._labels) == 500
    np.testing.assert_array_equal(np.sort(whole._probs, axis=0), np.sort(parts._probs, axis=0))
    assert (whole._labels >= 0).all()
    assert np.bincount(whole._labels).min() > 120
    assert whole.fit(by_class=False).sharpness == pytest.approx(parts.fit(by_class=False).sharpness, abs=1e-4)


def test_of_very_many_classes_pairs_have_no_rates_of_their_own(monkeypatch):
    probs, labels, _ = planted(uniform(0.1), count=500)
    assert fitted(probs, labels, by_class=True).noise.shape == (CLASSES, CLASSES)
    monkeypatch.setattr(module, "_MOST_CLASSES", CLASSES - 1)
    assert fitted(probs, labels, by_class=True).noise.shape == (1,)


@pytest.mark.parametrize("by_class", [False, True])
def test_a_class_that_nothing_is_labelled_with_is_not_explained_away(by_class):
    """A folder of one class with a few images of another: no bias may learn that the other is never given."""
    probs = np.full((2000, CLASSES), 0.02)
    probs[:, 0] = 0.94
    probs[:60] = [0.02, 0.94, 0.02, 0.02]
    model = fitted(probs, np.zeros(2000, int), by_class=by_class)
    assert model.bias.abs().max() == 0
    wrong = model.error_probability(probs, np.zeros(2000, int))
    assert wrong[:60].min() > 0.25
    assert wrong[60:].max() < 0.05


def test_a_handful_of_images_does_not_make_the_model_certain():
    sharpness = [
        fitted(np.tile([0.7, 0.2, 0.1], (count, 1)), np.arange(count) % 2 * 0, by_class=False).sharpness
        for count in (2, 20)
    ]
    assert 1 < sharpness[0] < sharpness[1] < 4
