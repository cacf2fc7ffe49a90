import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fixcore
from fixcore.errors import InputError
from fixcore.evidence.guided_filter import RADIUS, SMOOTHNESS
from fixcore.evidence.saliency import SIGMA
from tests.fixcore.oracles_results import make


def filtered(told: Tensor, picture: Tensor) -> np.ndarray:
    """He, Sun and Tang, equations 14 to 16 and 19, window by window: (H, W) of (H, W) and (C, H, W)."""
    height, width = told.shape
    image, p = picture.double().numpy(), told.double().numpy()
    radius = max(1, round(RADIUS * math.hypot(height, width)))
    smooth = SMOOTHNESS * np.mean([image[c].var() for c in range(len(image))])

    def window(k: tuple[int, int]) -> tuple[slice, slice]:
        return (slice(max(0, k[0] - radius), k[0] + radius + 1), slice(max(0, k[1] - radius), k[1] + radius + 1))

    a, b = np.zeros(image.shape), np.zeros(p.shape)
    for k in np.ndindex(p.shape):
        seen, of = image[:, *window(k)].reshape(len(image), -1), p[window(k)].ravel()
        variance = np.cov(seen, bias=True).reshape(len(image), len(image)) + max(smooth, 1e-12) * np.eye(len(image))
        a[:, *k] = np.linalg.solve(variance, (seen * of).mean(1) - seen.mean(1) * of.mean())  # 14
        b[k] = of.mean() - a[:, *k] @ seen.mean(1)  # 15
    found = np.zeros(p.shape)
    for i in np.ndindex(p.shape):
        near = window(i)
        found[i] = a[:, *near].mean((1, 2)) @ image[:, *i] + b[near].mean()  # 16
    found = found.clip(0)
    return found * (p.max() / found.max()) if found.max() > 0 else p


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(3, 18), st.integers(3, 18), st.integers(0, 1000), st.sampled_from([1, 255]))
def test_matches_the_paper(colours: int, height: int, width: int, seed: int, scale: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    told = torch.randint(0, 4, (2, height, width), generator=draw).float()
    pictures = torch.randint(0, 4, (2, colours, height, width), generator=draw).float() * scale
    found = fixcore.guided_filter(told, pictures)
    assert found.dtype == torch.float32
    for own, one, picture in zip(found, told, pictures, strict=True):
        np.testing.assert_allclose(own, filtered(one, picture), rtol=1e-3, atol=1e-3)


def test_a_blob_takes_the_outline_of_what_it_lies_on() -> None:
    disc = (torch.arange(224.0)[:, None] - 120).square() + (torch.arange(224.0) - 100).square() < 50**2
    picture = torch.where(disc, torch.tensor([200.0, 40.0, 30.0])[:, None, None], 60.0)
    blob = fixcore.saliency_maps(make([[(105, 120, 1.0)]], 224, 224), sigma=40.0)
    found = fixcore.guided_filter(blob, picture[None])

    def covers(maps: Tensor) -> float:
        best = [((maps[0] >= level) & disc).sum() / ((maps[0] >= level) | disc).sum() for level in (0.3, 0.4, 0.5, 0.6)]
        return float(max(best))

    assert covers(blob) < 0.7
    assert covers(found) > 0.85
    assert found.max() == pytest.approx(1)


def test_contrast_brightness_and_kind_of_numbers_do_not_matter() -> None:
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 128, (2, 3, 70, 90), generator=draw, dtype=torch.uint8)
    told = torch.rand(2, 70, 90, generator=draw)
    found = fixcore.guided_filter(told, pictures)
    torch.testing.assert_close(fixcore.guided_filter(told, pictures.float() / 255 - 3), found, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fixcore.guided_filter(told * 7, pictures), found * 7)
    last = pictures.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fixcore.guided_filter(told, last), found)
    assert fixcore.guided_filter(told.bfloat16(), pictures).dtype == torch.float32


def test_pictures_of_one_colour_blur_and_maps_of_zeros_stay() -> None:
    told = torch.zeros(2, 40, 40)
    told[0, 20, 20] = 1
    found = fixcore.guided_filter(told, torch.full((2, 3, 40, 40), 9.0))
    reach = round(RADIUS * math.hypot(40, 40))
    assert found[0].argmax() == 20 * 40 + 20
    torch.testing.assert_close(found[0, 20, 20 + reach], torch.tensor((reach + 1) / (2 * reach + 1)))  # two boxes' tent
    assert found[0, 20, 21 + 2 * reach] == 0
    assert torch.equal(found[1], told[1])
    assert fixcore.guided_filter(told[:0], torch.zeros(0, 3, 40, 40)).shape == (0, 40, 40)


def test_maps_and_masks_of_fixations_follow_edges() -> None:
    fixations, draw = make([[(20, 30, 1.0)]], 224, 224), torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 224, 224, generator=draw)
    drawn = fixcore.guided_filter(fixcore.saliency_maps(fixations), picture)
    assert torch.equal(fixcore.saliency_maps(fixations, pictures=picture), drawn)
    assert torch.equal(fixcore.saliency_masks(fixations, threshold=0.5, pictures=picture), drawn >= 0.5)


def test_a_window_is_three_of_the_fixations_widths() -> None:
    assert pytest.approx(3 * SIGMA) == RADIUS


def test_pictures_must_be_those_of_the_maps() -> None:
    for shape in ((2, 3, 8, 8), (1, 3, 8, 9), (1, 8, 8)):
        with pytest.raises(InputError, match="pictures are"):
            fixcore.guided_filter(torch.ones(1, 8, 8), torch.ones(shape))
