"""From a file on disk to evidence in its own pixels, through decoding, resizing, judging and tracing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fixcore.evidence.saliency import THRESHOLD
from pipeline import rle
from pipeline.dataset.images import decode_shard
from pipeline.dataset.manifest import read_manifest
from pipeline.geometry import MAP_SIDE, InputSpec, seen_region
from pipeline.judging.evidence import EvidenceStep
from pipeline.judging.judge import Judge, JudgePlan, Verdict
from pipeline.judging.network import small_network
from pipeline.judging.train import TrainPlan
from pipeline.labels.apart import is_looked_at
from tests.pipeline.pictures import FILES, block, encoded
from tests.users_networks import SIDE, BlueOrRed, Bright

MODEL = "tests.users_networks:bright"
CELL = 4  # network pixels that one place of the class map looks at


def plan(**changes):
    return JudgePlan(
        **{
            "predict": "direct",
            "class_names": ("bright", "dark"),
            "input": Bright.input_spec,
            "model": MODEL,
            "drift": False,
        }
        | changes
    )


def evidence_of(root: Path, judge_plan: JudgePlan) -> pd.DataFrame:
    (shard,) = read_manifest(root).shards()
    table = EvidenceStep(judge_plan)(decode_shard(shard, judge_plan.input))
    return table.to_pandas(integer_object_nulls=True).set_index("image_id")


def laid_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def assert_evidence_is_on(row, box, spec: InputSpec) -> None:
    """Points, box and mask lie on the block, to within the cell of the class map that saw it."""
    region = seen_region(row.width, row.height, spec)
    x0, y0, x1, y1 = box
    reach_x, reach_y = CELL * region.step_x, CELL * region.step_y
    assert (row.pred_fix_x >= x0 - reach_x).all()
    assert (row.pred_fix_x < x1 + reach_x).all()
    assert (row.pred_fix_y >= y0 - reach_y).all()
    assert (row.pred_fix_y < y1 + reach_y).all()
    assert row.pred_fix_mass.sum() == pytest.approx(1, abs=1e-5)
    assert row.pred_fix_x.min() >= 0
    assert row.pred_fix_x.max() < row.width
    assert row.pred_fix_y.max() < row.height
    left, top, right, bottom = row.pred_box
    assert max(abs(left - x0), abs(right - x1)) <= 1.5 * reach_x
    assert max(abs(top - y0), abs(bottom - y1)) <= 1.5 * reach_y
    mask = rle.decode(row.pred_mask, row.height, row.width)
    assert mask.shape == (row.height, row.width)
    ys, xs = np.nonzero(mask)
    assert x0 <= xs.mean() <= x1
    assert y0 <= ys.mean() <= y1
    assert_is_the_masks(row.pred_map, mask)


def assert_is_the_masks(levels: bytes, mask: np.ndarray) -> None:
    """The mask is where the map is high, as far as its cells can say: those that lie inside or outside as a whole."""
    cells = np.frombuffer(levels, np.uint8).reshape(MAP_SIDE, MAP_SIDE)
    fine = mask.repeat(MAP_SIDE, axis=0).repeat(MAP_SIDE, axis=1)
    share = fine.reshape(MAP_SIDE, mask.shape[0], MAP_SIDE, mask.shape[1]).mean((1, 3))
    assert cells.max() == 255
    assert (cells[share == 1] >= 0.95 * 255 * THRESHOLD).all()
    assert (cells[share == 0] <= 1.15 * 255 * THRESHOLD).all()


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (64, 64, (20, 8, 44, 32)),
        (131, 97, (40, 20, 80, 60)),
        (97, 131, (30, 60, 70, 100)),
        (401, 200, (150, 50, 250, 150)),
        (33, 47, (10, 20, 24, 34)),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_evidence_lies_on_the_block_in_original_pixels(tmp_path, width, height, box, fit):
    root = laid_out(tmp_path, {"bright/a.png": encoded(Image.fromarray(block(width, height, box))), "dark/b.png": b""})
    spec = InputSpec(size=SIDE, resize=80, fit=fit, mean=(0.0,) * 3, std=(1.0,) * 3)
    row = evidence_of(root, plan(input=spec)).loc["bright/a.png"]
    assert (row.width, row.height, row.pred_name) == (width, height, "bright")
    assert_evidence_is_on(row, box, spec)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_evidence_lies_on_the_block_in_every_kind_of_file(tmp_path, kind):
    box = (30, 20, 70, 60)
    root = laid_out(tmp_path, {"bright/a.png": FILES[kind](block(131, 97, box)), "dark/b.png": b""})
    row = evidence_of(root, plan()).loc["bright/a.png"]
    assert row.pred_name == "bright"
    assert_evidence_is_on(row, box, Bright.input_spec)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_evidence_lies_on_the_block_as_a_person_sees_the_picture(tmp_path, orientation):
    box = (30, 20, 70, 60)
    upright = block(131, 97, box)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=exif, quality=95)
    row = evidence_of(laid_out(tmp_path, {"bright/a.jpg": content, "dark/b.png": b""}), plan()).loc["bright/a.jpg"]
    assert (row.width, row.height) == (131, 97)
    assert_evidence_is_on(row, box, Bright.input_spec)


def test_both_labels_are_traced_only_where_they_differ(tmp_path):
    bright = encoded(Image.fromarray(block(64, 64, (8, 8, 40, 40))))
    dark = encoded(Image.fromarray(block(64, 64, (0, 0, 0, 0))))
    root = laid_out(tmp_path, {"bright/a.png": bright, "dark/b.png": bright, "dark/c.png": dark, "bright/d.png": b"x"})
    rows = evidence_of(root, plan())
    assert list(rows.index) == ["bright/a.png", "bright/d.png", "dark/b.png", "dark/c.png"]
    assert rows.label_fix_x.notna().tolist() == [False, False, True, False]
    assert rows.loc["dark/b.png"].evidence_overlap >= 0
    assert rows.evidence_distance.notna().tolist() == rows.evidence_overlap.notna().tolist()
    assert rows.runner_up_distance.notna().tolist() == [True, False, False, True]
    # The same picture under either label: the two classes that are compared are the same.
    assert rows.loc["bright/a.png"].runner_up_distance == rows.loc["dark/b.png"].evidence_distance
    assert rows.loc["dark/b.png"].evidence_distance != rows.loc["dark/b.png"].evidence_overlap
    bad = rows.loc["bright/d.png"]
    assert bad.status == "error"
    assert bad.error
    assert bad[["pred", "probs", "pred_fix_x", "pred_box", "pred_mask", "pred_map"]].isna().all()


def coloured(*blocks: tuple[tuple[int, int, int], tuple[int, int, int, int]]) -> bytes:
    picture = Image.new("RGB", (SIDE, SIDE))
    for colour, box in blocks:
        picture.paste(colour, box)
    return encoded(picture)


RED, BLUE, PURPLE = (250, 0, 0), (0, 0, 250), (250, 0, 255)
TWO_COLOURS = {
    "red/two.png": coloured((RED, (4, 4, 20, 20)), (BLUE, (40, 8, 56, 28))),
    "red/one.png": coloured((PURPLE, (20, 20, 36, 36))),
    "red/red.png": coloured((RED, (20, 20, 36, 36)), (BLUE, (0, 0, 8, 8))),
    "blue/wrong.png": coloured((RED, (16, 16, 48, 48)), (BLUE, (0, 0, 8, 8))),
    "blue/blue.png": coloured((BLUE, (20, 20, 36, 36)), (RED, (0, 0, 8, 8))),
}


def blue_or_red(**changes):
    named = {"model": "tests.users_networks:blue_or_red", "class_names": ("blue", "red"), "input": BlueOrRed.input_spec}
    return plan(**named, **changes)


def test_the_odds_swing_where_each_half_shows_its_own_object(tmp_path):
    rows = evidence_of(laid_out(tmp_path, TWO_COLOURS), blue_or_red())
    assert rows.loc["red/two.png"].evidence_swing > 10
    assert abs(rows.loc["red/one.png"].evidence_swing) < 1


def test_halves_are_looked_at_where_the_label_is_in_play_or_to_say_what_is_usual(tmp_path):
    root = laid_out(tmp_path, TWO_COLOURS)
    for share in (0.0, 0.5, 1.0):
        rows = evidence_of(root, blue_or_red(usual_share=share))
        assert rows.index[rows.evidence_distance.notna()].tolist() == ["blue/wrong.png", "red/one.png", "red/two.png"]
        assert rows.index[rows.evidence_swing.notna()].tolist() == ["red/one.png", "red/two.png"]
        chosen = np.array([is_looked_at(name, share) for name in rows.index])
        told = rows.runner_up_distance.notna()
        assert rows.runner_up_swing.notna().tolist() == (told & chosen).tolist()


@pytest.fixture
def bright_block(tmp_path):
    """A dataset of a white block, rows and columns 24 to 55 of 80, twice."""
    picture = Image.new("RGB", (80, 80))
    picture.paste((255, 255, 255), (24, 24, 56, 56))
    return laid_out(tmp_path, {"bright/a.png": encoded(picture), "dark/b.png": encoded(picture)})


def test_masks_hold_what_the_network_responds_to(bright_block, monkeypatch):
    """Blurred fixations reach beyond the bright block, where a network that says what it responds to sees nothing."""
    monkeypatch.setattr("fixcore.evidence.saliency.guided_filter", lambda maps, pictures: maps)
    beyond = np.ones((80, 80), dtype=bool)
    beyond[24:56, 24:56] = False
    blurred, seen = (
        evidence_of(bright_block, plan(model=f"tests.users_networks:{name}")) for name in ("bright", "bright_twice")
    )
    for image in ("bright/a.png", "dark/b.png"):
        wide, own = (rle.decode(rows.loc[image].pred_mask, 80, 80) for rows in (blurred, seen))
        assert_is_the_masks(seen.loc[image].pred_map, own)
        assert (wide & beyond).any()
        assert not (own & beyond).any()
        assert own[24:56, 24:56].mean() > 0.8


def test_masks_end_where_the_object_does(bright_block):
    """Also where nothing but the picture says so."""
    rows = evidence_of(bright_block, plan(model="tests.users_networks:bright"))
    for image in ("bright/a.png", "dark/b.png"):
        mask = rle.decode(rows.loc[image].pred_mask, 80, 80)
        assert_is_the_masks(rows.loc[image].pred_map, mask)
        assert mask.sum() == mask[24:56, 24:56].sum() > 0.9 * 32 * 32


def test_evidence_does_not_depend_on_the_batch(tmp_path):
    draw = np.random.default_rng(0)
    pictures = {
        f"{'bright' if number % 2 else 'dark'}/{number}.png": encoded(
            Image.fromarray(draw.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8))
        )
        for number in range(9)
    }
    root = laid_out(tmp_path, pictures)
    one, many = (evidence_of(root, plan(batch_size=size, drift=True)) for size in (1, 8))
    for column in one.columns:
        for left, right in zip(one[column], many[column], strict=True):
            if column == "squeeze_shift":  # of probabilities, which a processor adds up in another order for one image
                np.testing.assert_allclose(left, right, rtol=1e-5, err_msg=column)
            elif column in ("evidence_swing", "runner_up_swing"):  # of their logarithms, which may cancel
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5, err_msg=column)
            else:
                np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=column)


def test_each_image_is_judged_by_the_network_that_never_saw_its_fold(tmp_path):
    """Network f answers class f whatever it sees, so the answer names the network."""
    spec = InputSpec(size=32, fit="squash")
    files = []
    for fold in range(3):
        network = small_network(3, 32)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        weight, bias = list(state)[-2:]
        assert state[bias].shape == (3,)
        state[weight].zero_()
        state[bias].copy_(-10.0)
        state[bias][fold] = 10.0
        save_file(state, tmp_path / f"{fold}.safetensors")
        files.append(str(tmp_path / f"{fold}.safetensors"))
    judge = Judge(
        plan(
            predict="train",
            class_names=("a", "b", "c"),
            input=spec,
            model=None,
            train=TrainPlan(class_count=3, input=spec),
            fold_weights=tuple(files),
        )
    )
    folds = np.array([2, 0, 1, 1, 0, 2, 2], dtype=np.int16)
    images = judge.images(np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8))
    answers = np.full(7, -1)
    for verdict in judge.judge(images, folds):
        answers[verdict.image] = verdict.probs.argmax(1).numpy()
    assert (answers == folds).all()
    assert (judge.probabilities(images, folds).argmax(1).numpy() == folds).all()


def test_halves_are_those_of_the_image_and_are_judged_by_its_own_fold(tmp_path):
    spec = InputSpec(size=32, fit="squash")
    files = [str(tmp_path / f"{fold}.safetensors") for fold in range(3)]
    for fold, file in enumerate(files):
        torch.manual_seed(fold)
        save_file(small_network(2, 32).state_dict(), file)
    draw = np.random.default_rng(0)
    pictures = {
        f"{'ab'[at % 2]}/{at}.png": encoded(Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
        for at in range(9)
    }
    (shard,) = read_manifest(laid_out(tmp_path / "data", pictures)).shards(np.arange(9, dtype=np.int16)[::-1] % 3)
    of_train = {"predict": "train", "class_names": ("a", "b"), "input": spec, "model": None}
    train = TrainPlan(class_count=2, input=spec)
    swings = []
    for size in (1, 8):
        step = EvidenceStep(plan(**of_train, train=train, fold_weights=tuple(files), batch_size=size))
        table = step(decode_shard(shard, spec)).to_pandas()
        swings.append(table[["evidence_swing", "runner_up_swing"]].to_numpy(float))
    alone, together = swings
    assert len(np.unique(alone[~np.isnan(alone)])) >= 6
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-5)


def test_the_given_labels_mask_follows_its_own_image_whatever_stands_before_it(tmp_path, monkeypatch):
    picture = encoded(Image.fromarray(block(64, 64, (4, 4, 50, 50))))
    root = laid_out(tmp_path, {"bright/a.png": picture, "dark/b.png": picture})

    def mask(*responds):
        """The second image's, where the network responds to some rows of each image only."""

        def activity(verdict):
            maps = torch.zeros(len(responds), Bright.input_spec.size, Bright.input_spec.size)
            for image, rows in enumerate(responds):
                maps[image, rows] = 1
            return maps

        monkeypatch.setattr(Verdict, "activity", activity)
        return evidence_of(root, plan()).loc["dark/b.png"].label_mask

    upper, lower = slice(None, 16), slice(16, None)
    assert mask(upper, lower) == mask(lower, lower)
    assert mask(upper, lower) != mask(upper, upper)
