"""Linear heads: no head has seen what it judges, whatever is missing or broken."""

import numpy as np
import pytest

from pipeline.errors import DatasetError, RunFolderError
from pipeline.judging.folds import assign_folds
from pipeline.judging.probe import Heads, fit_heads


def blobs(count=200, width=10, classes=4, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = 3 * rng.normal(size=(classes, width))
    return (centres[labels] + spread * rng.normal(size=(count, width)) + 2).astype(np.float32), labels


def dealt(count, folds=5, seed=0):
    return (np.random.default_rng(seed).permutation(count) % folds).astype(np.int16)


@pytest.fixture(scope="module")
def noise():
    """Labels that mean nothing, and more features than images, so that any head can learn its images by heart."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(300) % 3
    folds = assign_folds(labels, [str(i) for i in range(300)], 5, 0)
    return rng.normal(size=(300, 600)).astype(np.float32), labels, folds


def test_a_leak_would_show(noise):
    features, labels, folds = noise
    heads = fit_heads(features, labels, folds, class_count=3, seed=0)
    held_out = np.mean(heads.logits(features, folds).argmax(1) == labels)
    leaked = np.mean(heads.logits(features, (folds + 1) % 5).argmax(1) == labels)
    assert leaked > 0.9
    assert abs(held_out - 1 / 3) < 3 * np.sqrt(2 / 9 / 300)


def test_a_head_does_not_depend_on_its_fold(noise):
    """Other labels and other features in fold f leave head f as it is to the last bit, and change the others."""
    features, labels, folds = noise
    mine = folds == 3
    other_labels, other_features = labels.copy(), features.copy()
    other_labels[mine] = (labels[mine] + 1) % 3
    other_features[mine] += 1
    before = fit_heads(features, labels, folds, class_count=3, seed=0)
    after = fit_heads(other_features, other_labels, folds, class_count=3, seed=0)
    assert [fold for fold in range(5) if (after.weight[fold] == before.weight[fold]).all()] == [3]
    assert (after.bias[3] == before.bias[3]).all()


def test_planted_errors_get_low_probability():
    features, labels = blobs()
    given = labels.copy()
    wrong = np.arange(0, 200, 17)
    given[wrong] = (labels[wrong] + 1) % 4
    folds = dealt(200)
    heads = fit_heads(features, given, folds, class_count=4, seed=0)
    probs = heads.probabilities(features, folds)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    assert np.mean(probs.argmax(1) == labels) > 0.98
    self_confidence = probs[np.arange(200), given]
    assert set(np.argsort(self_confidence)[: len(wrong)]) == set(wrong)


def test_logits_are_the_linear_layer_of_the_image_s_own_fold():
    rng = np.random.default_rng(0)
    heads = Heads(rng.normal(size=(3, 4, 5)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32))
    features, folds = rng.normal(size=(7, 5)).astype(np.float32), np.array([2, 0, 1, 1, 0, 2, 2])
    one_by_one = [heads.weight[fold] @ row + heads.bias[fold] for row, fold in zip(features, folds, strict=True)]
    np.testing.assert_allclose(heads.logits(features, folds), one_by_one, rtol=1e-5, atol=1e-5)


def test_broken_rows_and_unknown_labels_are_never_used():
    features, labels = blobs()
    folds = dealt(200)
    good = np.arange(200) >= 20
    features[:10], labels[10:20] = np.nan, -1
    features[10:20] = 1e6  # would ruin the scaling
    heads = fit_heads(features, labels, folds, class_count=4, seed=0)
    clean = fit_heads(features[good], labels[good], folds[good], class_count=4, seed=0)
    assert (heads.weight == clean.weight).all()
    logits = heads.logits(features, folds)
    assert np.isnan(logits[:10]).all()
    assert np.isfinite(logits[10:]).all()


def test_class_absent_from_a_training_part_keeps_an_output_of_about_zero():
    features, labels = blobs()
    folds = dealt(200)
    labels[labels == 3] = 2
    labels[7] = 3  # the only image of its class
    heads = fit_heads(features, labels, folds, class_count=5, seed=0)
    probs = heads.probabilities(features, folds)
    assert (heads.weight[folds[7], 3] == 0).all()
    assert probs[7, 3] < 1e-12
    assert probs[7, 3] > 0
    assert (heads.weight[(folds[7] + 1) % 5, 3] != 0).any()
    assert probs[:, 4].max() < 1e-12


def test_constant_features_are_harmless():
    features, labels = blobs()
    rounding = np.where(np.arange(200) % 2, np.float32(1e4), np.nextafter(np.float32(1e4), np.float32(2e4)))[:, None]
    features = np.hstack([features, rounding, np.zeros((200, 1), np.float32)])
    folds = dealt(200)
    heads = fit_heads(features, labels, folds, class_count=4, seed=0)
    assert (heads.weight[:, :, -2:] == 0).all()
    assert np.mean(heads.logits(features, folds).argmax(1) == labels) > 0.98


def test_two_folds_choose_their_penalty_inside_the_only_other_fold():
    features, labels = blobs()
    folds = dealt(200, folds=2)
    heads = fit_heads(features, labels, folds, class_count=4, seed=0)
    assert np.mean(heads.logits(features, folds).argmax(1) == labels) > 0.98


def test_training_part_with_a_single_class():
    features, labels = blobs(classes=2, count=20)
    folds = labels.astype(np.int16)  # each fold is one class, so no head has seen its own
    probs = fit_heads(features, labels, folds, class_count=2, seed=0).probabilities(features, folds)
    np.testing.assert_allclose(probs[np.arange(20), 1 - labels], 1)


def test_memory_map_gives_the_same_heads(tmp_path):
    features, labels = blobs()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    folds = dealt(200)
    expected = fit_heads(features, labels, folds, class_count=4, seed=0)
    assert (fit_heads(mapped, labels, folds, class_count=4, seed=0).weight == expected.weight).all()


def test_nothing_to_learn_from():
    features, labels = blobs(count=8)
    with pytest.raises(DatasetError, match="no readable labelled image outside fold 0"):
        fit_heads(features, labels, np.zeros(8, np.int16), class_count=4, seed=0)


def test_saved_heads_come_back(tmp_path):
    rng = np.random.default_rng(0)
    heads = Heads(rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32))
    path = tmp_path / "work" / "heads.safetensors"
    heads.save(path)
    again = Heads.load(path)
    assert (again.weight == heads.weight).all()
    assert (again.bias == heads.bias).all()
    assert [file.name for file in path.parent.iterdir()] == ["heads.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"no tensors here, just text"])
def test_broken_file_of_heads_is_one_line(tmp_path, content):
    path = tmp_path / "heads.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"cannot read the heads in .*heads\.safetensors") as caught:
        Heads.load(path)
    assert "\n" not in str(caught.value)


def test_folds_without_a_head_are_refused():
    heads = Heads(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="folds reach from 0 to 2, the heads from 0 to 1"):
        heads.logits(np.zeros((2, 4), np.float32), np.array([0, 2]))
    with pytest.raises(ValueError, match="folds reach from -1"):
        heads.logits(np.zeros((1, 4), np.float32), np.array([-1]))
    with pytest.raises(ValueError, match="2 feature rows but 1 folds"):
        heads.logits(np.zeros((2, 4), np.float32), np.array([0]))
    assert heads.logits(np.zeros((0, 4), np.float32), np.zeros(0, np.int16)).shape == (0, 3)
