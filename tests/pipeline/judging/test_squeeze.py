"""The smoothed copy, against a loop over windows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judging.squeeze import median_smoothed


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_two_middle_values_of_each_window(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, height, width), dtype=np.uint8)
    padded = np.pad(pixels.astype(int), ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")
    expected = np.empty_like(pixels)
    for at in np.ndindex(*pixels.shape):
        n, c, y, x = at
        window = sorted(padded[n, c, y : y + 2, x : x + 2].ravel())
        expected[at] = (window[1] + window[2] + 1) // 2
    found = median_smoothed(torch.from_numpy(pixels))
    assert found.dtype == torch.uint8
    assert (found.numpy() == expected).all()


def test_a_lone_pixel_vanishes_and_a_flat_picture_stays():
    lone = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    lone[..., 4, 4] = 255
    assert median_smoothed(lone).sum() == 0
    flat = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert (median_smoothed(flat) == 255).all()
