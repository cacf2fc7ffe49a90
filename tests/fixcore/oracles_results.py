"""What the functions on fixations must return, as nested loops over plain numbers; slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from hypothesis import strategies as st

from fixcore.evidence.fixations import Fixations

Point = tuple[int, int, float]  # row, column, mass


def points_of(fixations: Fixations, number: int) -> list[Point]:
    return [
        (int(row), int(col), float(mass))
        for image, row, col, mass in zip(fixations.image, fixations.row, fixations.col, fixations.mass, strict=True)
        if int(image) == number
    ]


def make(images: Sequence[Sequence[Point]], height: int, width: int, margin: float = 0.0) -> Fixations:
    """Fixations of the given points, masses as they are."""
    flat = [(number, *point) for number, points in enumerate(images) for point in sorted(points)]
    columns = list(zip(*flat, strict=True)) or [(), (), (), ()]
    return Fixations(
        image=torch.tensor(columns[0], dtype=torch.int64),
        row=torch.tensor(columns[1], dtype=torch.int64),
        col=torch.tensor(columns[2], dtype=torch.int64),
        mass=torch.tensor(columns[3], dtype=torch.float32),
        height=height,
        width=width,
        target=torch.arange(len(images)),
        margin=margin,
    )


@st.composite
def images(draw: st.DrawFn, count: int) -> tuple[list[list[Point]], int, int]:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    place = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    found = []
    for _ in range(count):
        places = draw(st.sets(place, max_size=5))
        masses = draw(st.lists(st.integers(1, 9), min_size=len(places), max_size=len(places)))
        found.append([(row, col, mass / sum(masses)) for (row, col), mass in zip(places, masses, strict=True)])
    return found, height, width


def kept_points(
    points: list[Point], height: int, width: int, radius: Fraction, share: Fraction, by_mass: bool = False
) -> list[Point]:
    """The points that are no strays, in exact arithmetic."""
    reach_squared = radius**2 * (height**2 + width**2)
    total = sum(Fraction(mass) if by_mass else 1 for _, _, mass in points)
    kept = []
    for row, col, mass in points:
        near = Fraction(0)
        for other_row, other_col, other_mass in points:
            if (row - other_row) ** 2 + (col - other_col) ** 2 <= reach_squared:
                near += Fraction(other_mass) if by_mass else 1
        if near >= share * total:
            kept.append((row, col, mass))
    return kept if sum(mass for _, _, mass in kept) > 0 else points


def moment_box(cells: list[int], height: int, width: int) -> list[float]:
    """The box whose even filling has the same mean and variance along each axis, cut at the edges."""
    reach = []
    for extent, place in ((width, lambda at: at % width), (height, lambda at: at // width)):
        mean = sum(value * (place(at) + 0.5) for at, value in enumerate(cells)) / sum(cells)
        # A pixel's evidence is spread over the pixel: the mean of the square within it, not at its middle.
        square = sum(value * ((place(at) + 1) ** 3 - place(at) ** 3) / 3 for at, value in enumerate(cells)) / sum(cells)
        half = (3 * max(0.0, square - mean**2)) ** 0.5
        reach.append((max(0.0, mean - half), min(float(extent), mean + half)))
    (left, right), (top, bottom) = reach
    return [left, top, right, bottom]


def region_boxes(above: list[bool], height: int, width: int) -> list[list[float]]:
    """The boxes around the regions of cells that touch, the largest first; of equal ones the first."""
    left = {at for at, inside in enumerate(above) if inside}
    regions: list[list[int]] = []
    while left:
        region, edge = [], [min(left)]
        left -= set(edge)
        while edge:
            at = edge.pop()
            region.append(at)
            near = {
                (at // width + down) * width + at % width + right
                for down in (-1, 0, 1)
                for right in (-1, 0, 1)
                if 0 <= at // width + down < height and 0 <= at % width + right < width
            } & left
            left -= near
            edge += near
        regions.append(region)
    boxes = []
    for region in sorted(regions, key=len, reverse=True):
        rows, cols = [at // width for at in region], [at % width for at in region]
        boxes.append([min(cols), min(rows), max(cols) + 1, max(rows) + 1])
    return boxes


def iou(a: Sequence[int], b: Sequence[int]) -> float:
    """Intersection over union of boxes of whole pixels, by counting pixels."""

    def pixels(box: Sequence[int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    union = pixels(a) | pixels(b)
    return len(pixels(a) & pixels(b)) / len(union) if union else 0.0


def box_score(image: list[list[int]], box: Sequence[int], penalty: Fraction) -> Fraction:
    """Mass share minus `penalty` times area share."""
    height, width = len(image), len(image[0])
    x0, y0, x1, y1 = box
    inside = sum(image[y][x] for y in range(y0, y1) for x in range(x0, x1))
    return Fraction(inside, sum(map(sum, image))) - penalty * Fraction((x1 - x0) * (y1 - y0), height * width)


def best_box_score(image: list[list[int]], penalty: Fraction) -> Fraction:
    height, width = len(image), len(image[0])
    return max(
        box_score(image, (x0, y0, x1, y1), penalty)
        for y0 in range(height)
        for y1 in range(y0 + 1, height + 1)
        for x0 in range(width)
        for x1 in range(x0 + 1, width + 1)
    )


def density(points: list[Point], height: int, width: int, sigma: float) -> list[list[float]]:
    """Sum of Gaussians, each 1 x its mass at its own pixel."""
    return [
        [
            sum(mass * math.exp(-((row - y) ** 2 + (col - x) ** 2) / (2 * sigma * sigma)) for row, col, mass in points)
            for x in range(width)
        ]
        for y in range(height)
    ]


def overlap(a: list[list[float]], b: list[list[float]]) -> float:
    total_a, total_b = sum(map(sum, a)), sum(map(sum, b))
    return sum(
        min(p / total_a, q / total_b) for row, other in zip(a, b, strict=True) for p, q in zip(row, other, strict=True)
    )
