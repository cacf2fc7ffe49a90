"""Networks that say several words about an image: starts by word, and the evidence of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fixcore
from tests.fixcore.networks import integer_images


class Says(nn.Module):
    """An LSTM cell that receives the image once and then its own words, by greedy choice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 6))
        self.cell, self.embedding, self.says = nn.LSTMCell(6, 6), nn.Embedding(5, 6), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden, state = self.cell(self.encoder(images))
        logits = []
        for _ in range(3):
            logits.append(self.says(hidden))
            hidden, state = self.cell(self.embedding(logits[-1].argmax(1)), (hidden, state))
        return torch.stack(logits, 1)


@pytest.fixture(scope="module")
def recording() -> fixcore.Recording:
    torch.manual_seed(0)
    images = integer_images(0, 4)
    return fixcore.capture(Says().eval(), images).record(images)


def test_words_are_explained_in_their_order(recording):
    said = recording.logits.argmax(2)
    assert said.shape == (4, 3)
    found = fixcore.backtrack(recording, said)
    assert len(found) == 12
    total = torch.zeros(12).index_add_(0, found.image, found.mass)
    torch.testing.assert_close(total, torch.ones(12))
    for image, word in ((0, 0), (1, 2), (3, 1)):
        one = fixcore.backtrack(recording, fixcore.Start(torch.tensor([image]), word * 5 + said[image, word, None]))
        here = found.image == image * 3 + word
        assert one.row.tolist() == found.row[here].tolist()
        assert one.col.tolist() == found.col[here].tolist()
        torch.testing.assert_close(one.mass, found.mass[here])


def test_a_word_may_be_left_out(recording):
    target = torch.full((4, 3), -1)
    target[2, 1] = 3
    found = fixcore.backtrack(recording, target)
    assert set(found.image.tolist()) == {2 * 3 + 1}
    assert found.target.tolist() == [-1] * 7 + [5 + 3] + [-1] * 4


def test_a_caption_is_all_its_words_together(recording):
    words = fixcore.backtrack(recording, recording.logits.argmax(2))
    whole = fixcore.join_targets(words, torch.arange(4).repeat_interleave(3))
    assert len(whole) == 4
    expected = torch.zeros(4, 6, 8)
    expected.index_put_((words.image // 3, words.row, words.col), words.mass / 3, accumulate=True)
    found = torch.zeros(4, 6, 8)
    found[whole.image, whole.row, whole.col] = whole.mass
    torch.testing.assert_close(found, expected)
    key = (whole.image * 6 + whole.row) * 8 + whole.col
    assert (key.diff() > 0).all(), "sorted and unique"


def test_targets_without_a_group_are_left_out(recording):
    words = fixcore.backtrack(recording, recording.logits.argmax(2))
    group = torch.full((12,), -1)
    group[4] = 0
    alone = fixcore.join_targets(words, group)
    here = words.image == 4
    assert alone.row.tolist() == words.row[here].tolist()
    torch.testing.assert_close(alone.mass, words.mass[here])
    with pytest.raises(fixcore.InputError, match=r"group is \(3,\)"):
        fixcore.join_targets(words, torch.zeros(3, dtype=torch.int64))


def test_targets_of_a_caption_name_every_word(recording):
    with pytest.raises(fixcore.TargetError, match=r"one class per image and word is \(4, 3\)"):
        fixcore.backtrack(recording, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(fixcore.TargetError, match=r"classes 0\.\.4"):
        fixcore.backtrack(recording, torch.full((4, 3), 5))


def test_what_was_said_before_is_no_evidence(recording):
    """The way back goes by the state; the word said last was chosen, and no mass ends at it."""
    graph = recording.graph
    choices = [node for node in graph.nodes if node.target is torch.ops.aten.embedding.default]
    assert len(choices) == 2
    assert all(node.meta["is_constant"] for node in choices)
