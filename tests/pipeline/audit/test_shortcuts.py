"""Classes told by a corner or border: against a loop over points, and what must not be listed."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit import shortcuts as module
from pipeline.audit.shortcuts import REGIONS, find_shortcuts
from tests.pipeline.evidence_rows import NAMES, broken, image, write_run

SURE = {0: [0.94, 0.03, 0.03], 1: [0.03, 0.94, 0.03], 2: [0.03, 0.03, 0.94]}


def seen(image_id, label, points, *, size=(80, 40), pred=None):
    """An image with evidence at points (x, y, mass) for what it is taken for."""
    x, y, mass = zip(*points, strict=True)
    return image(
        image_id, label, SURE[label if pred is None else pred], width=size[0], height=size[1],
        pred_fix_x=list(x), pred_fix_y=list(y), pred_fix_mass=list(mass),
    )  # fmt: skip


def scattered(count, label, rng, *, strength=0.0, spot=(3, 3)):
    """Images with evidence anywhere, and a share `strength` of it at one spot."""
    rows = []
    for at in range(count):
        anywhere = [(int(rng.integers(80)), int(rng.integers(40)), (1 - strength) / 8) for _ in range(8)]
        points = [*anywhere, (*spot, strength)]
        rows.append(seen(f"{NAMES[label]}/{at}.png", label, points))
    return rows


def found_in(folder, rows):
    return find_shortcuts(write_run(folder, rows, part_size=17).evidence_parts(), NAMES)


SPOTS = {
    "top left corner": (3, 3), "top right corner": (77, 8), "bottom left corner": (10, 38),
    "bottom right corner": (79, 39), "top border": (40, 2), "bottom border": (35, 38), "left border": (4, 20),
    "right border": (76, 21),
}  # fmt: skip


@pytest.mark.parametrize("where", REGIONS)
def test_a_mark_at_any_place_is_found_and_named(tmp_path, where):
    rng = np.random.default_rng(0)
    rows = [*scattered(30, 0, rng), *scattered(30, 1, rng, strength=0.7, spot=SPOTS[where]), *scattered(30, 2, rng)]
    (one,) = found_in(tmp_path, rows)
    assert (one.label, one.name, one.where, one.images) == (1, "dog", where, 30)
    assert 0.69 < one.share < 0.8
    assert one.elsewhere < 0.2


def test_the_shares_as_a_loop_over_points(tmp_path):
    rng = np.random.default_rng(1)
    rows = [*scattered(12, 0, rng, strength=0.6), *scattered(13, 1, rng, strength=0.2, spot=(40, 1))]
    (one,) = found_in(tmp_path, rows)

    def corner(row):
        points = zip(row["pred_fix_x"], row["pred_fix_y"], row["pred_fix_mass"], strict=True)
        return sum(mass for x, y, mass in points if (x + 0.5) / 80 < 0.25 and (y + 0.5) / 40 < 0.25)

    assert one.share == pytest.approx(np.median([corner(row) for row in rows[:12]]), abs=1e-5)
    assert one.elsewhere == pytest.approx(np.median([corner(row) for row in rows[12:]]), abs=1e-5)


def test_what_is_no_shortcut(tmp_path):
    rng = np.random.default_rng(2)
    objects_low = [row for label in (0, 1) for row in scattered(20, label, rng, strength=0.8, spot=(40, 38))]
    assert found_in(tmp_path / "all classes alike", objects_low) == ()
    few = [*scattered(40, 0, rng), *scattered(9, 1, rng, strength=0.9)]
    assert found_in(tmp_path / "too few images", few) == ()
    assert found_in(tmp_path / "one class", scattered(40, 0, rng, strength=0.9)) == ()
    wrong = [seen(f"{at}.png", 1, [(3, 3, 1.0)], pred=0) for at in range(20)]
    assert found_in(tmp_path / "not what is predicted", [*scattered(20, 0, rng), *wrong]) == ()
    half = [*scattered(40, 0, rng), *scattered(9, 1, rng, strength=0.9), *scattered(12, 1, rng)]
    assert found_in(tmp_path / "a minority", half) == ()


def test_without_evidence_nothing_is_said(tmp_path):
    rows = [image(f"{at}.png", 0, SURE[0], traced=False) for at in range(30)] + [broken("x.png", 0)]
    assert found_in(tmp_path, rows) == ()
    assert found_in(tmp_path / "none", []) == ()


def test_batches_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    rows = [*scattered(30, 0, rng), *scattered(30, 1, rng, strength=0.7)]
    whole = found_in(tmp_path, rows)
    monkeypatch.setattr(module, "_BATCH_ROWS", 4)
    assert found_in(tmp_path, rows) == whole
