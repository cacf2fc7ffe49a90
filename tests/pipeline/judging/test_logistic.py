"""The penalised regression: the same optimum as scikit-learn's, in chunks or whole, with a penalty that fits."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pipeline.judging import logistic
from pipeline.judging.logistic import Part, Scale, fit_logistic


def blobs(count, width, classes, *, spread, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centres = rng.normal(size=(classes, width))
    mixing = rng.normal(size=(width, width))
    features = (centres[labels] + spread * rng.normal(size=(count, width))) @ mixing + 5
    return features.astype(np.float32), labels


def part_of(features, labels):
    rows = np.arange(len(labels))
    return Part(features, rows, labels, labels.max() + 1, Scale.of(features, rows, torch.device("cpu")))


@pytest.mark.parametrize("swing", [0.1, 10.0])
def test_same_optimum_as_scikit_learn(swing):
    features, labels = blobs(300, 12, 4, spread=1.5)
    part = part_of(features, labels)
    axes = logistic._Axes.of(part)
    head = logistic._fit(part, torch.zeros(4, 13), swing, axes, 1e-5)
    scaled = torch.cat([chunk for chunk, _ in part.chunks()]).numpy()
    oracle = LogisticRegression(C=swing / 12, tol=1e-8, max_iter=5000).fit(scaled, labels)
    ours = torch.from_numpy(scaled) @ head[:, :-1].T + head[:, -1]
    np.testing.assert_allclose(ours.softmax(1).numpy(), oracle.predict_proba(scaled), atol=2e-3)


def test_scaled_features_are_centred_with_mean_variance_one():
    features, labels = blobs(500, 8, 3, spread=1.0)
    features[:, 3] = 7.25  # constant
    scaled = torch.cat([chunk for chunk, _ in part_of(features, labels).chunks()])
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    variance = scaled.var(0, unbiased=False).numpy()
    assert variance[3] == 0
    assert np.delete(variance, 3).mean() == pytest.approx(1, rel=1e-3)
    deviation = np.delete(features.std(0), 3)
    np.testing.assert_allclose(np.delete(variance, 3), deviation / deviation.mean(), rtol=1e-3)


def test_chunks_from_disk_give_the_same_head(monkeypatch):
    features, labels = blobs(200, 6, 3, spread=1.0)
    inner = np.arange(200) % 4 == 0
    whole = fit_logistic(part_of(features, labels), inner)
    monkeypatch.setattr(logistic, "_CHUNK_ROWS", 17)
    monkeypatch.setattr(logistic, "_KEEP_BYTES", 0)
    chunked = part_of(features, labels)
    np.testing.assert_allclose(fit_logistic(chunked, inner), whole, atol=2e-2, rtol=2e-2)
    assert chunked.kept == []


def test_penalty_fits_the_data():
    """Chosen on held-out rows, the penalty keeps the head near the best any fixed one reaches on fresh images."""
    features, labels = blobs(1200, 40, 3, spread=6.0)
    known, fresh = slice(0, 300), slice(300, None)
    part = part_of(features[known], labels[known])
    axes = logistic._Axes.of(part)
    rows = np.arange(900)
    judge = Part(features[fresh], rows, labels[fresh], 3, part.scale)
    fixed = [
        logistic._log_loss(judge, logistic._fit(part, torch.zeros(3, 41), swing, axes, 1e-3))
        for swing in logistic._SWINGS
    ]
    chosen = logistic._log_loss(judge, fit_logistic(part, np.arange(300) % 5 == 0))
    assert max(fixed) > 1.2 * min(fixed)
    assert chosen < 1.03 * min(fixed)


def test_pure_noise_is_not_learned_by_heart():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(80, 200)).astype(np.float32), np.arange(80) % 2
    part = part_of(features, labels)
    head = fit_logistic(part, np.arange(80) % 5 == 0)
    (scaled, _), *_ = part.chunks()
    confidence = (scaled @ head[:, :-1].T + head[:, -1]).softmax(1).amax(1)
    assert confidence.max() < 0.75


def test_one_class_gives_one_certain_output():
    features = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    head = fit_logistic(part_of(features, np.zeros(10, dtype=np.int64)), np.arange(10) % 3 == 0)
    assert head.shape == (1, 4)
    assert head.abs().max() == 0
