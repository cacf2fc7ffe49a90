"""Drawings against what they draw: paths are read back and compared with the points, box and mask they came from."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline import rle
from pipeline.errors import RunFolderError
from pipeline.geometry import MAP_SIDE
from pipeline.pages.findings import ClassEvidence
from pipeline.pages.overlay import HEAT_LEVELS, SPAN, Canvas, draw, heat, mask_of


def evidence(x, y, mass, box=None, mask=None, levels=()):
    """One class's evidence; of its map the `levels` {(row, column): level}, zeros elsewhere."""
    drawn = np.zeros((MAP_SIDE, MAP_SIDE), np.uint8)
    for place, level in dict(levels).items():
        drawn[place] = level
    points = np.asarray(x, np.int32), np.asarray(y, np.int32), np.asarray(mass, np.float32)
    return ClassEvidence(*points, box, mask, drawn)


def rings(path):
    """Read `M x y l dx dy ... Z` back into lists of corners."""
    found = []
    for start, steps in re.findall(r"M([^lZ]+)l([^Z]*)Z", path):
        corners = [np.array([int(part) for part in start.split()])]
        numbers = [int(part) for part in steps.split()]
        for pair in zip(numbers[::2], numbers[1::2], strict=True):
            corners.append(corners[-1] + pair)
        found.append([tuple(corner) for corner in corners])
    return found


def filled(path, canvas):
    """Fill a path by the even-odd rule on a raster with the image's pixels: True where a pixel's centre is inside."""
    raster = np.zeros((canvas.height, canvas.width), bool)
    units = np.array(canvas.units)
    fine = 10
    for ring in rings(path):
        layer = Image.new("1", (canvas.width * fine, canvas.height * fine))
        corners = [tuple(np.array(corner) / units * (canvas.width * fine, canvas.height * fine)) for corner in ring]
        ImageDraw.Draw(layer).polygon(corners, fill=1)
        raster ^= np.asarray(layer)[fine // 2 :: fine, fine // 2 :: fine]
    return raster


def dots_of(drawing):
    return [
        (int(a), int(b), dots.diameter) for dots in drawing.dots for a, b in re.findall(r"M(\d+) (\d+)h0", dots.path)
    ]


def test_each_dot_lies_on_its_pixel_and_grows_with_mass():
    drawing = draw(evidence([0, 50, 99], [0, 10, 49], [0.1, 0.2, 0.7]), Canvas(100, 50), 200)
    dots = {(a, b): size for a, b, size in dots_of(drawing)}
    assert sorted(dots) == [(5, 5), (505, 105), (995, 495)]
    assert dots[5, 5] < dots[505, 105] < dots[995, 495]
    assert (drawing.points, drawing.points_drawn) == (3, 3)
    assert drawing.mass_drawn == pytest.approx(1)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_only_the_strongest_points_are_drawn(width, height, seed, limit):
    rng = np.random.default_rng(seed)
    pixel = rng.choice(width * height, size=min(30, width * height), replace=False)
    mass = rng.integers(1, 5, len(pixel)).astype(np.float32)
    mass /= mass.sum()
    drawing = draw(evidence(pixel % width, pixel // width, mass), Canvas(width, height), limit)
    scale = SPAN / max(width, height)
    # Slow and plain: sort by mass, then row, then column; take the first ones.
    order = sorted(range(len(pixel)), key=lambda i: (-mass[i], pixel[i] // width, pixel[i] % width))[:limit]
    expected = sorted(
        (round((pixel[i] % width + 0.5) * scale), round((pixel[i] // width + 0.5) * scale)) for i in order
    )
    assert sorted((a, b) for a, b, _ in dots_of(drawing)) == expected
    assert drawing.mass_drawn == pytest.approx(sum(mass[i] for i in order), abs=1e-5)


def test_a_box_is_scaled_and_stays_in_the_image():
    drawing = draw(evidence([5], [5], [1], (-3, 2, 50, 7.5)), Canvas(40, 20), 9)
    assert drawing.box == (0, 50, 1000, 137.5)


def test_a_tiny_box_can_still_be_seen():
    assert draw(evidence([5], [5], [1], (5, 5, 6, 6)), Canvas(5000, 5000), 9).box == (1, 1, 4, 4)


@settings(max_examples=40)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1))
def test_a_small_mask_is_drawn_pixel_by_pixel(width, height, seed):
    # The outline may cut a pixel's corner, never reach its centre.
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.4
    canvas = Canvas(width, height)
    drawing = draw(evidence([0], [0], [1], None, rle.encode(mask)), canvas, 9)
    assert (filled(drawing.mask, canvas) == mask).all()


def test_a_large_mask_is_drawn_to_within_a_cell():
    lines, columns = np.ogrid[:300, :400]
    mask = (columns - 130) ** 2 + (lines - 160) ** 2 < 90**2
    mask &= ~((columns - 130) ** 2 + (lines - 160) ** 2 < 30**2)  # a hole
    canvas = Canvas(400, 300)
    drawing = draw(evidence([0], [0], [1], None, rle.encode(mask)), canvas, 9)
    assert len(rings(drawing.mask)) == 2
    assert (filled(drawing.mask, canvas) != mask).mean() < 0.01
    assert drawing.shade == f"M0 0H1000V750H0Z{drawing.mask}"


@pytest.mark.parametrize("size", [(20, 10), (400, 200), (2000, 1000)])
def test_a_mask_keeps_its_edges_in_place(size):
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[height // 10 * 2 : height // 10 * 5, width // 20 * 3 : width // 20 * 12] = True
    (ring,) = rings(draw(evidence([0], [0], [1], None, rle.encode(mask)), Canvas(width, height), 9).mask)
    across, down = zip(*ring, strict=True)
    assert (min(across), max(across), min(down), max(down)) == pytest.approx((150, 600, 100, 250), abs=1)


def test_without_points_nothing_is_drawn():
    drawing = draw(evidence([], [], [], None, rle.encode(np.zeros((7, 9), bool))), Canvas(9, 7), 9)
    assert drawing.dots == ()
    assert drawing.heat == ()
    assert drawing.mask == drawing.shade == ""
    assert drawing.box is None
    assert not heat(evidence([], [], []), 9, 7).any()


def test_heat_is_the_stored_map_over_the_whole_image():
    warm = heat(evidence([10], [10], [1], levels={(21, 15): 255, (2, 1): 51}), 300, 100)
    assert warm.shape == (27, 80)
    assert warm.max() == 1
    row, column = np.unravel_index(warm.argmax(), warm.shape)
    assert (column + 0.5) / 80 == pytest.approx(15.5 / MAP_SIDE, abs=0.02)
    assert (row + 0.5) / 27 == pytest.approx(21.5 / MAP_SIDE, abs=0.03)
    # Half of the image between them has neither; the weaker place has a fifth of the stronger one.
    assert not warm[7:20].any()
    assert warm[:7].max() == pytest.approx(0.2, abs=0.03)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32 - 1))
@example(1, 54, 2379752)  # a column of pixels, whose levels are averaged away to below 1
@settings(deadline=None)
def test_heat_of_any_image_is_scaled_to_one(width, height, seed):
    drawn = np.random.default_rng(seed).integers(1, 256, 3)
    warm = heat(
        evidence([0], [0], [1], levels=dict(zip([(0, 0), (9, 20), (23, 23)], drawn, strict=True))), width, height
    )
    assert max(warm.shape) == 80
    assert min(warm.shape) == max(1, round(80 * min(width, height) / max(width, height)))
    assert warm.max() == pytest.approx(1)
    assert warm.min() >= 0


def test_heat_bands_lie_within_each_other():
    canvas = Canvas(200, 100)
    around = {(row, col): 255 - 6 * ((row - 12) ** 2 + (col - 12) ** 2) for row in range(8, 17) for col in range(8, 17)}
    drawing = draw(evidence([40, 60, 150], [50, 50, 30], [0.5, 0.3, 0.2], levels=around), canvas, 9)
    areas = [int(filled(band, canvas).sum()) for band in drawing.heat]
    assert len(areas) == len(HEAT_LEVELS)
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] > 0
    for outer, inner in zip(drawing.heat, drawing.heat[1:], strict=False):
        assert not (filled(inner, canvas) & ~filled(outer, canvas)).any()


@pytest.mark.parametrize(
    ("size", "view_box"),
    [
        ((400, 300), "0 0 1000 750"),
        ((1, 1), "0 0 1000 1000"),
        ((10000, 3), "0 -199.5 1000 400"),
        ((3, 9000), "-199.5 0 400 1000"),
    ],
)
def test_thin_images_get_a_frame_to_be_seen_in(size, view_box):
    assert Canvas(*size).view_box == view_box


@pytest.mark.parametrize("size", [(1, 1), (10000, 3), (3, 10000), (8, 8), (2, 1)])
def test_extreme_sizes_can_be_drawn(size):
    width, height = size
    mask = np.zeros((height, width), bool)
    mask[-1, -1] = True
    drawing = draw(
        evidence(
            [width - 1], [height - 1], [1], (width - 1, height - 1, width, height), rle.encode(mask), {(23, 23): 255}
        ),
        Canvas(width, height),
        9,
    )
    assert len(dots_of(drawing)) == 1
    assert drawing.heat
    assert drawing.box is not None


def test_a_damaged_mask_is_said_in_one_line():
    with pytest.raises(RunFolderError, match="the evidence is damaged: these RLE counts are no mask of 5 x 4 pixels"):
        mask_of("zz", 5, 4)
