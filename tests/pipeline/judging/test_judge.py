"""What a verdict explains: each class set against the mean of all, as the comparison of two classes needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import fixcore
from pipeline.judging.judge import Verdict


def test_a_class_is_set_against_the_mean_of_all() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        module[4].weight.add_(2.0)  # what all classes share, and softmax does not see
    images = torch.randn(2, 3, 12, 12)
    recording = fixcore.capture(module.eval(), images).record(images)
    rows, target = torch.arange(2), torch.tensor([1, 3])
    found = Verdict(np.arange(2), images, recording.logits.softmax(1), recording, None).explain(rows, target)
    against_mean, plain = (fixcore.backtrack(recording, target, contrast=one) for one in ("mean", None))
    assert torch.equal(found.mass, against_mean.mass)
    assert torch.equal(found.row, against_mean.row)
    assert found.mass.shape != plain.mass.shape or not torch.equal(found.mass, plain.mass)


def test_evidence_is_finer_than_a_last_map_of_few_places_unless_that_is_not_wanted() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    images = torch.randn(2, 3, 24, 24)
    recording = fixcore.capture(module, images).record(images)
    rows, target = torch.arange(2), torch.tensor([1, 3])
    verdict = Verdict(np.arange(2), images, recording.logits.softmax(1), recording, None)
    assert verdict.explain(rows, target).margin == 1.0
    assert replace(verdict, rules="mass").explain(rows, target).margin == 2.0
    head = recording.graph.head
    assert head is not None
    probed = replace(verdict, head=(head.weight - head.weight.mean(0)).expand(2, -1, -1))
    assert torch.equal(probed.explain(rows, target).mass, verdict.explain(rows, target).mass)
