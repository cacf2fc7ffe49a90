"""What a judge sees, and what its verdict explains: each class set against the mean of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fixcore
from pipeline.geometry import InputSpec
from pipeline.judging import train
from pipeline.judging.judge import Judge, JudgePlan, Verdict


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
    assert torch.equal(verdict.activity(), fixcore.activity_maps(recording))
    coarse = replace(verdict, rules="mass")
    assert coarse.explain(rows, target).margin == 2.0
    assert torch.equal(coarse.activity(), fixcore.activity_maps(recording, finer=False))
    assert not torch.equal(coarse.activity(), verdict.activity())
    head = recording.graph.head
    assert head is not None
    probed = replace(verdict, head=(head.weight - head.weight.mean(0)).expand(2, -1, -1))
    assert torch.equal(probed.explain(rows, target).mass, verdict.explain(rows, target).mass)


def test_networks_that_learned_from_mirror_images_judge_those_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8), np.arange(64) % 2
    folds, spec = (np.arange(64) // 2 % 2).astype(np.int16), InputSpec(size=32, fit="squash")
    files = [tmp_path / f"{fold}.safetensors" for fold in (0, 1)]
    plan = train.TrainPlan(class_count=2, input=spec, epochs=8)
    for fold, harmless in enumerate((True, False)):
        monkeypatch.setattr(train, "mirroring_is_harmless", lambda *_, found=harmless: found)
        train.train_fold(pixels, labels, folds, fold, usable=np.ones(64, bool), plan=plan, out=files[fold])
        assert train.learned_mirrored(files[fold]) == harmless
    judge = Judge(
        JudgePlan(
            predict="train",
            class_names=("a", "b"),
            input=spec,
            train=plan,
            fold_weights=tuple(str(path) for path in files),
        )
    )
    images = judge.images(pixels)
    seen, own = judge.normalised(images), torch.from_numpy(folds) == 0
    first, second = (train.load_fold_network(plan, path) for path in files)
    expected = torch.empty(64, 2)
    with torch.no_grad():
        expected[own] = (first(seen[own]).softmax(1) + first(seen[own].flip(3)).softmax(1)) / 2
        expected[~own] = second(seen[~own]).softmax(1)
        assert (first(seen[own]).softmax(1) - expected[own]).abs().max() > 1e-3
    found = torch.empty(64, 2)
    for verdict in judge.judge(images, folds):
        found[torch.from_numpy(verdict.image)] = verdict.probs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(judge.probabilities(images, folds), expected, rtol=1e-4, atol=1e-5)
