"""Softmax without shares too small to count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten


def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return each score's share along `dim`, as `torch.softmax`; on CPU 0 for a share that is not a normal number.

    Where a score was masked by -100 (Swin), exp(-100) is left, about 4e-44. Products with such numbers take processors
    thirty times as long, and are lost in every sum. float16 keeps them: there 1e-5 is one already.
    """
    shares: Tensor = aten.softmax.int(scores, dim, dtype)
    if shares.device.type != "cpu" or shares.dtype is torch.float16:
        return shares
    return functional.threshold(shares, torch.finfo(shares.dtype).tiny, 0.0, inplace=True)
