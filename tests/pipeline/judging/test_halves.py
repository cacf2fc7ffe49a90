"""What a judge says of either half of an image, with a network that says how bright the image is."""

import math

import numpy as np
import pytest
import torch

from pipeline.judging.halves import halved, log_odds, swing
from pipeline.judging.judge import Judge
from tests.pipeline.judging.test_evidence import plan


def test_what_is_hidden_takes_the_median_colour_of_the_whole_image():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 5, 7), generator=generator, dtype=torch.uint8)
    shown = torch.rand(3, 5, 7, generator=generator) < 0.5
    found = halved(images, shown)
    assert found.shape == (6, 3, 5, 7)
    for at in range(3):
        for channel in range(3):
            ordered = sorted(images[at, channel].flatten().tolist())
            for row in range(5):
                for col in range(7):
                    own = images[at, channel, row, col]
                    both = [own, ordered[(len(ordered) - 1) // 2]]
                    if not shown[at, row, col]:
                        both.reverse()
                    assert found[[at, 3 + at], channel, row, col].tolist() == both


def asking(judge, folds, classes):
    return lambda shown: judge.log_odds(shown, np.tile(folds, 2), classes.repeat(2, 1))


def test_the_odds_swing_by_what_the_halves_alone_say():
    judge = Judge(plan())
    generator = torch.Generator().manual_seed(0)
    side = judge.plan.input.size
    images = torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
    first = (torch.arange(side) < side // 2).expand(4, side, side)
    folds = np.full(4, -1, np.int16)
    classes = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])
    found = swing(asking(judge, folds, classes), images, first)
    for at in range(4):
        odds = []
        for shown in halved(images[at : at + 1], first[at : at + 1]):
            probs = judge.probabilities(shown[None], folds[:1])[0].double()
            odds.append([math.log(probs[one] / (1 - probs[one])) for one in classes[at].tolist()])
        expected = odds[0][0] - odds[1][0] + odds[1][1] - odds[0][1]
        assert found[at].item() == pytest.approx(expected, abs=1e-3)
    assert found.abs().max() > 0.01
    mirrored = swing(asking(judge, folds, classes.flip(1)), images, ~first)
    torch.testing.assert_close(mirrored, found)


def test_log_odds_are_exact_where_a_probability_rounds_to_one():
    logits = torch.tensor([[40.0, 0.0], [0.0, 0.0]])
    assert log_odds(logits, torch.tensor([[0, 1], [1, 0]])).tolist() == [[40.0, -40.0], [0.0, 0.0]]


def test_log_odds_are_those_of_softmax():
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.randint(0, 5, (20, 3), generator=torch.Generator().manual_seed(1))
    probs = logits.softmax(1).gather(1, classes)
    torch.testing.assert_close(log_odds(logits, classes), (probs / (1 - probs)).log())
