"""Softmax in a recording: what is too small to count is none, and all else as torch has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fixcore
from fixcore.network.shares import softmax

SCORES = torch.tensor([[0.0, -1.0, -80.0, -100.0, -200.0], [torch.nan, 0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shares_are_torchs_but_for_those_that_are_no_normal_numbers(dtype: torch.dtype) -> None:
    scores = SCORES.to(dtype)
    own, usual = softmax(scores, -1), torch.softmax(scores, -1)
    tiny = 0.0 if dtype is torch.float16 else torch.finfo(dtype).tiny
    assert torch.equal(own[0], torch.where(usual[0] <= tiny, 0.0, usual[0]))
    assert bool((own[0, -2] == 0) == (dtype is not torch.float64))
    assert bool(own[1].isnan().all())
    assert torch.equal(scores.nan_to_num(), SCORES.to(dtype).nan_to_num())


class Windowed(nn.Module):
    """Tokens of two windows that do not see each other: masked by -100, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("mask", -100.0 * (torch.arange(16)[:, None] // 8 != torch.arange(16) // 8))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        shares = (self.query(tokens) @ tokens.transpose(1, 2) + self.mask).softmax(-1)
        return self.head((shares @ tokens).mean(1))


def test_recorded_shares_of_masked_windows_are_none() -> None:
    torch.manual_seed(0)
    model, images = Windowed().eval(), torch.randn(2, 3, 16, 16)
    recording = fixcore.capture(model, images).record(images)
    (shares,) = (value for node, value in recording.values.items() if node.target is torch.ops.aten.softmax.int)
    assert bool((shares[:, :8, 8:] == 0).all() and (shares[:, 8:, :8] == 0).all() and (shares[:, :8, :8] > 0).all())
    torch.testing.assert_close(recording.logits, model(images).detach())
