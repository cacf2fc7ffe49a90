"""Evidence is the class's and the trained network's: on a network that learned handwritten digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.digits import DIGIT, SIDE, put, scans
from benchmarks.sanity import evidence, overlap
from benchmarks.two_objects import pairs, trained
from fixcore.metrics import layers_of, shuffled


@pytest.fixture(scope="module")
def learned() -> nn.Module:
    digits, labels, new_digits, new_labels = scans()
    network = trained("average pool", digits, labels, steps=150)
    middle = torch.full((len(new_digits),), (SIDE - DIGIT) // 2)
    with torch.inference_mode():
        right = network(put(new_digits, middle, middle)).argmax(1) == new_labels
    assert right.float().mean() > 0.9, "the network has learned what it is asked"
    return network


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor]:
    """Two digits apart, and their labels."""
    _, _, digits, labels = scans()
    shown = pairs(digits, labels, 48)
    return shown.apart, shown.labels


def test_two_classes_in_one_picture_have_their_own_evidence(learned, scenes):
    images, both = scenes
    first, second = (evidence(learned, images, both[:, side]) for side in (0, 1))
    again = evidence(learned, images, both[:, 0])
    assert overlap(first, again) == pytest.approx(1, abs=1e-5)
    assert overlap(first, second) < 0.25


def test_an_absent_class_has_other_evidence_than_the_prediction(learned, scenes):
    images, both = scenes
    absent = torch.tensor([next(k for k in range(10) if k not in pair) for pair in both.tolist()])
    for contrast, most in ((None, 0.7), ("mean", 0.7), ("softmax", 0.4)):
        own, other = (evidence(learned, images, target, contrast) for target in (both[:, 0], absent))
        assert overlap(own, other) < most, contrast


def test_evidence_falls_apart_as_layers_lose_their_weights(learned, scenes):
    """Adebayo et al.: cascading from the output down."""
    images, both = scenes
    own = evidence(learned, images, both[:, 0])
    names = layers_of(learned)
    assert len(names) == 4
    cascades = [shuffled(learned, names[: step + 1]) for step in range(len(names))]
    left = [overlap(own, evidence(cascade, images, both[:, 0])) for cascade in cascades]
    assert left[0] < 0.7, "without the last layer's weights it is another class's evidence"
    assert left[-1] < 0.5
    kept = evidence(learned, images, both[:, 0])
    assert overlap(own, kept) == pytest.approx(1, abs=1e-5), "the trained network itself was not touched"
