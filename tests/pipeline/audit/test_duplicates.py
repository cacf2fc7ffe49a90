"""The same picture under other bytes, other labels, other splits: against all pairs, and on saved-anew pictures."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pipeline import schema
from pipeline.audit.duplicates import SAME_PICTURE, conflicting_copies, near_pairs, same_pictures
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.dataset.images import thumbnail
from tests.pipeline.evidence_rows import NAMES, broken, clear, image, write_run


def all_pairs(thumbnails):
    """Every pair by its correlation, one after the other."""
    found = []
    for first in range(len(thumbnails)):
        for second in range(first + 1, len(thumbnails)):
            one, other = thumbnails[first].astype(float), thumbnails[second].astype(float)
            if min(one.std(), other.std()) > 2 and np.corrcoef(one, other)[0, 1] >= SAME_PICTURE:
                found.append([first, second])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (40, 64))
    noise = rng.normal(0, rng.choice([0, 2, 5, 8], (60, 1)), (60, 64))
    copies = base[rng.integers(0, 40, 60)] + noise
    flat = rng.integers(100, 103, (6, 64))
    thumbnails = np.concatenate([base, copies, flat]).clip(0, 255).astype(np.uint8)
    expected = all_pairs(thumbnails)
    assert 20 < len(expected) < 400
    assert sorted(near_pairs(thumbnails).tolist()) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_pair(count):
    assert near_pairs(np.zeros((count, 64), np.uint8)).shape == (0, 2)


def picture(seed):
    """Smooth blobs, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((180, 140), Image.Resampling.BICUBIC)


def compressed(one, quality):
    file = io.BytesIO()
    one.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda one: compressed(one, 30),
        lambda one: one.resize((90, 70)),
        lambda one: one.resize((400, 300)),
        lambda one: one.filter(ImageFilter.GaussianBlur(1.5)),
        lambda one: ImageEnhance.Contrast(one).enhance(0.8),
        lambda one: one.convert("L").convert("RGB"),
    ],
)
def test_a_picture_saved_anew_is_found_and_another_is_not(change):
    pictures = [picture(seed) for seed in range(12)]
    told = [thumbnail(one) for one in (*pictures, *(change(one) for one in pictures))]
    pairs = near_pairs(np.stack([np.frombuffer(one, np.uint8) for one in told]))
    assert pairs.tolist() == [[at, at + 12] for at in range(12)]


def thumb(seed):
    return thumbnail(picture(seed))


def listed(folder, rows, splits=None):
    run = write_run(folder, rows, part_size=7)
    if splits is not None:
        table = pa.Table.from_pylist(
            [dict.fromkeys(schema.MANIFEST.names) | {"image_id": key, "split": value} for key, value in splits.items()],
            schema.MANIFEST,
        )
        pq.write_table(table, run.manifest)
    write_audit(run, NAMES)
    write_issues(run)
    found = pd.read_parquet(run.issues)
    return found[found.issue == "duplicate_conflict"].set_index("image_id")


SURE = {0: [0.94, 0.03, 0.03], 1: [0.03, 0.94, 0.03]}


def test_nearly_the_same_picture_with_two_labels(tmp_path):
    rows = [
        *clear(20, 0), *clear(20, 1),
        image("a.png", 0, SURE[0], thumbnail=thumb(1)),
        image("b.png", 1, SURE[1], thumbnail=thumb(1)),
        image("c.png", 0, SURE[0], thumbnail=thumb(2)),
        broken("d.png", 1, thumbnail=thumb(1)),
    ]  # fmt: skip
    found = listed(tmp_path, rows)
    assert found.index.tolist() == ["a.png", "b.png"]
    assert found.reason["a.png"] == (
        "Nearly the same picture is also labelled 'dog' (b.png); can more than one label be right?"
    )
    assert found.score.tolist() == [0.5, 0.5]


def test_copies_in_two_splits_are_a_leak_and_copies_in_one_are_none(tmp_path):
    twin = {"sha256": "e" * 64}
    rows = [
        *clear(20, 0),
        image("train/a.png", 0, SURE[0], **twin), image("test/a.png", 0, SURE[0], **twin),
        image("train/b.png", 0, SURE[0], thumbnail=thumb(1)), image("test/b.png", 0, SURE[0], thumbnail=thumb(1)),
        image("train/c.png", 0, SURE[0], thumbnail=thumb(2)), image("train/d.png", 0, SURE[0], thumbnail=thumb(2)),
    ]  # fmt: skip
    splits = {row["image_id"]: row["image_id"].split("/")[0] for row in rows}
    found = listed(tmp_path, rows, splits)
    assert sorted(found.index) == ["test/a.png", "test/b.png", "train/a.png", "train/b.png"]
    assert found.reason["train/a.png"] == (
        "A leak between splits: the same file as in 'train' is also in 'test' (test/a.png)."
    )
    assert "nearly the same picture as in 'test' is also in 'train'" in found.reason["test/b.png"]
    assert (found.score == 1).all()
    assert found.suggested_name.isna().all()
    assert listed(tmp_path / "no splits", rows).empty


def test_a_copy_that_nothing_contradicts_is_not_listed(tmp_path):
    """Two copies in train agree; only the one in test is their leak, and theirs is it."""
    same = {"sha256": "e" * 64}
    rows = [*clear(20, 0), *(image(f"{at}.png", 0, SURE[0], **same) for at in range(3)), *clear(3, 1)]
    found = listed(tmp_path, rows, {row["image_id"]: "train" for row in rows} | {"2.png": "test"})
    assert sorted(found.index) == ["0.png", "1.png", "2.png"]
    assert "also in 'train' (0.png), 'train' (1.png)." in found.reason["2.png"]


def test_a_chain_is_one_group(tmp_path):
    """a and b are the same bytes, b and c the same picture."""
    rows = [
        *clear(20, 0), *clear(20, 1),
        image("a.png", 0, SURE[0], sha256="e" * 64, thumbnail=thumb(1)),
        image("b.png", 0, SURE[0], sha256="e" * 64, thumbnail=thumb(1)),
        image("c.png", 1, SURE[1], thumbnail=thumb(1)),
    ]  # fmt: skip
    run = write_run(tmp_path, rows)
    ((*group,),) = conflicting_copies(run.evidence_parts())
    assert [twin.image_id for twin in group] == ["a.png", "b.png", "c.png"]


def levels_of(*pictures):
    return np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures])


def test_images_of_one_picture_get_one_name():
    """b is a's bytes, c is a compressed, d another picture, e is unreadable and f is another such."""
    one, other, none = picture(1), picture(2), Image.new("RGB", (9, 9))
    thumbnails = levels_of(one, one, compressed(one, 60), other, none, none)
    assert same_pictures(["n", "n", "a", "z", "unreadable:é", "b"], thumbnails) == [
        "a", "a", "a", "z", "unreadable:é", "b"
    ]  # fmt: skip
    assert same_pictures([], np.zeros((0, 64), np.uint8)) == []


@pytest.mark.parametrize(("count", "are_copies"), [(50, True), (51, False)])
def test_what_a_camera_that_stands_still_took_is_no_copy(count, are_copies):
    rng = np.random.default_rng(0)
    scene = np.frombuffer(thumb(1), np.uint8).astype(int)
    frames = (scene + rng.integers(-1, 2, (count, 64))).clip(0, 255).astype(np.uint8)
    thumbnails = np.concatenate([frames, frames[:1], levels_of(picture(2), compressed(picture(2), 60))])
    names = [*(f"{at:02}" for at in range(count)), "00", "x", "y"]
    scenes = ["00"] * count if are_copies else names[:count]
    assert same_pictures(names, thumbnails) == [*scenes, "00", "x", "x"]
