"""The rules for the three flags: each for itself, and all against a loop over rows."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import schema
from pipeline.audit import flags as module
from pipeline.audit.flags import read_audited_classes, read_label_cut, write_audit
from pipeline.errors import ProbabilitiesError, RunFolderError
from pipeline.labels.label_errors import find_label_errors
from tests.pipeline.evidence_rows import NAMES, broken, clear, image, write_run

FLAGS = ["is_mislabeled", "is_ambiguous", "is_adversarial_drift"]


def audited(folder, rows, names=NAMES, **how):
    run = write_run(folder, rows, **how)
    write_audit(run, names)
    return pd.read_parquet(run.audit).set_index("image_id")


def flags(row):
    return [name.removeprefix("is_") for name in FLAGS if row[name]]


def many(*rows):
    """A calm data set, dogs harder than cats (p(dog) 0.75 is typical), and the rows in question."""
    return [*clear(60, 0), *clear(60, 1, sure=0.75), *clear(60, 2), *rows]


def wrong(count):
    """Images of the next class."""
    return [image(f"wrong{at}.png", at % 3, np.roll([0.01, 0.98, 0.01], at % 3)) for at in range(count)]


def test_one_row_per_image_in_order_under_the_declared_schema(tmp_path):
    rows = many(broken("zero.png", 0), image("wrong.png", 0, [0.01, 0.98, 0.01]))
    run = write_run(tmp_path, rows)
    write_audit(run, NAMES)
    table = pq.read_table(run.audit)
    assert table.schema.equals(schema.AUDIT)
    assert table["image_id"].to_pylist() == [row["image_id"] for row in rows]
    assert table["label_name"].to_pylist() == [row["label_name"] for row in rows]
    assert pq.ParquetFile(run.audit).metadata.row_group(0).column(0).compression == "ZSTD"
    assert list(pd.read_parquet(run.audit).query("is_mislabeled").image_id) == ["wrong.png"]


def test_next_to_no_evidence_for_the_label_is_a_wrong_label(tmp_path):
    found = audited(tmp_path, many(image("x.png", 0, [0.01, 0.98, 0.01])))
    assert flags(found.loc["x.png"]) == ["mislabeled"]
    assert found.loc["x.png", "suggested_label"] == 1
    assert found.loc["x.png", "suggested_name"] == "dog"
    assert found.loc["x.png", "label_score"] < 0.05
    assert found.loc["x.png", "ambiguity_score"] == pytest.approx(0.2575**2 + 0.735**2 + 0.0075**2, abs=1e-3)
    assert not found.drop("x.png")[FLAGS].any(axis=None)
    assert found.drop("x.png").suggested_label.isna().all()


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [(0.2, ["ambiguous"]), (0.5, ["ambiguous"]), (0.501, ["mislabeled"]), (0.9, ["mislabeled"])],
)
def test_a_label_in_play_with_a_place_of_its_own_contradicts_an_error(tmp_path, overlap, expected):
    """Probabilities alone call it wrong (in a data set that has such errors); two objects excuse the label."""
    found = audited(tmp_path, many(*wrong(10), image("x.png", 0, [0.16, 0.8, 0.04], overlap=overlap)))
    assert flags(found.loc["x.png"]) == expected
    assert found.loc["x.png", "suggested_name"] == "dog"


@pytest.mark.parametrize("overlap", [0.1, 0.9])
def test_a_label_that_is_not_in_play_is_wrong_wherever_its_traces_lie(tmp_path, overlap):
    found = audited(tmp_path, many(image("x.png", 0, [0.02, 0.97, 0.01], overlap=overlap)))
    assert flags(found.loc["x.png"]) == ["mislabeled"]


@pytest.mark.parametrize("overlap", [0.1, 0.9])
def test_a_near_tie_is_ambiguous_whether_two_objects_or_two_readings(tmp_path, overlap):
    found = audited(tmp_path, many(image("x.png", 0, [0.4, 0.5, 0.1], overlap=overlap)))
    assert flags(found.loc["x.png"]) == ["ambiguous"]
    assert found.loc["x.png", "ambiguity_score"] == pytest.approx(0.55**2 + 0.375**2 + 0.075**2, abs=1e-3)


def test_a_near_tie_without_evidence_for_the_label_is_not_ambiguous(tmp_path):
    found = audited(tmp_path, many(image("x.png", 0, [0.4, 0.5, 0.1], overlap=None)))
    assert flags(found.loc["x.png"]) == []


def test_an_error_without_evidence_for_the_label_stays_an_error(tmp_path):
    found = audited(tmp_path, many(*wrong(10), image("x.png", 0, [0.16, 0.8, 0.04], overlap=None)))
    assert flags(found.loc["x.png"]) == ["mislabeled"]


def test_without_a_model_the_probabilities_speak_alone(tmp_path):
    rows = many(
        *wrong(10),
        image("tie.png", 0, [0.4, 0.5, 0.1], traced=False),
        image("wrong.png", 0, [0.16, 0.8, 0.04], traced=False),
    )
    found = audited(tmp_path, rows)
    assert flags(found.loc["tie.png"]) == ["ambiguous"]
    assert flags(found.loc["wrong.png"]) == ["mislabeled"]
    assert found.drift_score.isna().all()


def test_agreement_is_never_ambiguous(tmp_path):
    found = audited(tmp_path, many(image("x.png", 0, [0.4, 0.35, 0.25])))
    assert flags(found.loc["x.png"]) == []
    assert found.loc["x.png", "ambiguity_score"] == pytest.approx(0.55**2 + 0.2625**2 + 0.1875**2, abs=1e-3)


def calm(shift=0.1, count=200):
    """Images whose prediction is the label and that smoothing moves a little."""
    rows = clear(count, 0, prefix="calm")
    return [row | {"squeeze_pred": 0, "squeeze_shift": shift} for row in rows] + many()


def test_a_confident_prediction_that_smoothing_turns_back_is_drift_and_no_wrong_label(tmp_path):
    found = audited(tmp_path, [*calm(), image("x.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.9, 0.8))])
    assert flags(found.loc["x.png"]) == ["adversarial_drift"]
    assert found.loc["x.png", "drift_score"] == pytest.approx(0.1)
    assert pd.isna(found.loc["x.png", "suggested_label"])
    assert found.loc["cat/calm000.png", "drift_score"] == pytest.approx(0.9)


def test_drift_that_turns_back_leaves_no_ambiguity_either(tmp_path):
    tie = image("tie.png", 0, [0.4, 0.5, 0.1])
    turned = image("turned.png", 0, [0.4, 0.5, 0.1], smoothed=(0, 0.9, 0.8))
    found = audited(tmp_path, [*calm(), tie, turned])
    assert flags(found.loc["tie.png"]) == ["ambiguous"]
    assert flags(found.loc["turned.png"]) == ["adversarial_drift"]


def test_drift_to_a_third_class_leaves_the_doubt_about_the_label(tmp_path):
    found = audited(tmp_path, [*calm(), image("x.png", 0, [0.01, 0.98, 0.01], smoothed=(2, 0.9, 0.8))])
    assert flags(found.loc["x.png"]) == ["mislabeled", "adversarial_drift"]
    assert found.loc["x.png", "suggested_name"] == "dog"


@pytest.mark.parametrize(
    ("probs", "smoothed", "why"),
    [
        ([0.01, 0.98, 0.01], (0, 0.49, 0.8), "more of the probability stays than moves"),
        ([0.01, 0.98, 0.01], (0, 0.9, 0.3), "the evidence moves too"),
        ([0.01, 0.98, 0.01], (0, 0.9, None), "there is no evidence to compare"),
        ([0.01, 0.98, 0.01], (1, 0.9, None), "the prediction stays"),
        ([0.98, 0.01, 0.01], (1, 0.9, 0.8), "the prediction is the given label"),
        ([0.3, 0.45, 0.25], (2, 0.9, 0.8), "undecided images turn to third classes by themselves"),
    ],
)
def test_no_drift_where(tmp_path, probs, smoothed, why):
    found = audited(tmp_path, [*calm(), image("x.png", 0, probs, smoothed=smoothed)])
    assert not found.loc["x.png", "is_adversarial_drift"], why


def test_drift_must_stand_out_from_what_smoothing_does_to_this_data_set(tmp_path):
    """Small images lose much by smoothing: where 5 % of the undisturbed ones move by 0.95, 0.9 says nothing."""
    restless = [row | {"squeeze_shift": 0.95} for row in calm()[:10]]
    rows = [*restless, *calm()[10:]]
    suspect = image("x.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.9, 0.8))
    worse = image("y.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.96, 0.8))
    found = audited(tmp_path, [*rows, suspect, worse])
    assert not found.loc["x.png", "is_adversarial_drift"]
    assert found.loc["y.png", "is_adversarial_drift"]


def test_attacked_images_do_not_raise_the_limit_for_each_other(tmp_path):
    attacked = [image(f"x{at}.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.8, 0.8)) for at in range(150)]
    found = audited(tmp_path, [*calm(count=100), *attacked])
    assert found.is_adversarial_drift.sum() == 150


def test_no_drift_without_any_undisturbed_image_to_compare_with(tmp_path):
    found = audited(tmp_path, many(image("x.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.9, 0.8))))
    assert flags(found.loc["x.png"]) == ["mislabeled"]


@pytest.mark.parametrize(
    ("usual_distance", "usual_swing", "expected"),
    [(0.3, 0.0, ["ambiguous"]), (1.5, 9.0, ["mislabeled"]), (1.5, 0.0, ["ambiguous"])],
    ids=["near", "far", "same when halved"],
)
def test_two_objects_must_stand_out_from_what_is_usual_in_this_data_set(
    tmp_path, usual_distance, usual_swing, expected
):
    rows = many(*wrong(10), image("x.png", 0, [0.16, 0.8, 0.04], overlap=0.5))
    rows[-1] |= {"evidence_distance": 1.2, "evidence_swing": 8.0}
    for at, row in enumerate(rows):
        if row["label"] == row["pred"]:
            spread = 1 + at / 10_000
            row |= {"runner_up_distance": usual_distance * spread, "runner_up_swing": usual_swing * spread}
    found = audited(tmp_path, rows)
    assert flags(found.loc["x.png"]) == expected
    assert found.loc["x.png", "is_apart"] == (expected == ["ambiguous"])


def test_what_lies_apart_is_told_of_all_that_have_two_evidences(tmp_path):
    rows = [image("near.png", 0, [0.1, 0.8, 0.1], overlap=0.6), image("far.png", 0, [0.1, 0.8, 0.1], overlap=0.4)]
    found = audited(tmp_path, many(*rows, image("none.png", 0, [0.1, 0.8, 0.1], overlap=None)))
    assert found.is_apart.dropna().to_dict() == {"near.png": False, "far.png": True}


def test_the_cut_and_the_classes_are_kept_with_the_file(tmp_path):
    rows = many(image("x.png", 0, [0.01, 0.98, 0.01]), image("tie.png", 0, [0.4, 0.5, 0.1]))
    found = audited(tmp_path, rows)
    run = write_run(tmp_path, rows)
    cut = read_label_cut(run)
    assert cut.estimated_errors == pytest.approx((1 - found.label_score).sum(), rel=1e-4)
    assert cut.errors_range[0] < cut.estimated_errors < cut.errors_range[1]
    assert cut.estimated_precision == pytest.approx(1 - found.loc["x.png", "label_score"], abs=1e-6)
    assert cut.limit == found.loc["x.png", "label_score"]
    assert read_audited_classes(run) == NAMES


def test_a_missing_audit_is_said_in_one_line(tmp_path):
    run = write_run(tmp_path, [])
    with pytest.raises(RunFolderError, match=r"cannot read .*audit\.parquet"):
        read_label_cut(run)


def test_two_images(tmp_path):
    found = audited(tmp_path, [image("a.png", 0, [0.9, 0.05, 0.05]), image("b.png", 0, [0.05, 0.9, 0.05])])
    assert flags(found.loc["a.png"]) == []
    assert flags(found.loc["b.png"]) == ["mislabeled"]


def test_one_given_class_among_those_of_the_model(tmp_path):
    """A folder of cats, judged by a network that knows more."""
    found = audited(tmp_path, [*clear(30, 0), image("x.png", 0, [0.01, 0.01, 0.98])])
    assert [at for at in found.index if found.loc[at, "is_mislabeled"]] == ["x.png"]
    assert found.loc["x.png", "suggested_name"] == "owl"


def test_one_class_only_has_nothing_to_compare(tmp_path):
    rows = [image("a.png", 0, [1.0], names=["cat"]), broken("b.png", 0, names=["cat"])]
    found = audited(tmp_path, rows, names=["cat"])
    assert found[["label_score", "ambiguity_score"]].isna().all(axis=None)
    assert not found[FLAGS].any(axis=None)


def test_all_images_unreadable(tmp_path):
    found = audited(tmp_path, [broken(f"{at}.png", at % 3) for at in range(40)])
    assert (found.status == "error").all()
    assert found[["label_score", "ambiguity_score", "drift_score"]].isna().all(axis=None)
    assert not found[FLAGS].any(axis=None)
    cut = read_label_cut(write_run(tmp_path, []))
    assert cut.limit == -1
    assert cut.estimated_errors == 0
    assert math.isnan(cut.estimated_precision)


def test_no_evidence_at_all(tmp_path):
    found = audited(tmp_path, [])
    assert len(found) == 0


def test_an_image_without_known_label_is_not_judged(tmp_path):
    rows = many(image("x.png", -1, [0.01, 0.98, 0.01], smoothed=(0, 0.9, 0.8)))
    found = audited(tmp_path, rows)
    assert pd.isna(found.loc["x.png", "label_score"])
    assert flags(found.loc["x.png"]) == []


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([0.5, 0.5], r"bad\.png has 2 probabilities, the dataset has 3 classes"),
        ([0.5, np.nan, 0.5], r"the probabilities of bad\.png: with a value that is not a finite number"),
        ([0.5, 0.5, 0.5], r"the probabilities of bad\.png: not summing to 1"),
        ([1.5, -0.5, 0.0], r"the probabilities of bad\.png: with a negative value"),
    ],
)
def test_bad_probabilities_name_the_image_and_leave_no_audit(tmp_path, probs, message):
    run = write_run(tmp_path, [*clear(20, 0), broken("gone.png", 0), image("bad.png", 1, probs)])
    with pytest.raises(ProbabilitiesError, match=message) as caught:
        write_audit(run, NAMES)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in run.path.iterdir()) == ["evidence"]


def test_a_broken_part_is_named(tmp_path):
    run = write_run(tmp_path, clear(20, 0))
    run.evidence_part(1).write_bytes(b"not parquet")
    with pytest.raises(RunFolderError, match=r"part-00001\.parquet"):
        write_audit(run, NAMES)


SHARES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0])


@st.composite
def runs(draw):
    rows = []
    for at in range(draw(st.integers(1, 30))):
        name, label = f"{at:03}.png", draw(st.integers(-1, 2))
        if draw(st.integers(0, 5)) == 0:
            rows.append(broken(name, label))
            continue
        weights = np.array(draw(st.lists(st.sampled_from([0, 1, 2, 4, 8, 40]), min_size=3, max_size=3)), float)
        weights[draw(st.integers(0, 2))] += 1
        smoothed = draw(st.none() | st.tuples(st.integers(0, 2), SHARES, st.none() | SHARES))
        overlap, traced = draw(st.none() | SHARES), draw(st.booleans())
        rows.append(image(name, label, weights / weights.sum(), overlap=overlap, traced=traced, smoothed=smoothed))
    return rows


@settings(max_examples=50, deadline=None)
@given(runs(), st.integers(1, 9), st.integers(1, 5))
def test_streaming_over_parts_equals_a_loop_over_rows(rows, part_size, batch_rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH_ROWS", batch_rows)
        found = audited(Path(folder), rows, part_size=part_size)
    expected = loop(rows)
    assert len(found) == len(rows)
    for row, want in zip(rows, expected, strict=True):
        got = found.loc[row["image_id"]]
        assert flags(got) == want["flags"], row
        assert got.suggested_name == want["suggested"] or (pd.isna(got.suggested_name) and not want["suggested"])
        for score in ("label_score", "ambiguity_score", "drift_score"):
            assert got[score] == pytest.approx(want[score], nan_ok=True, abs=1e-6)


def loop(rows):
    """The rules as written in the documentation, one image at a time."""
    ok = [row for row in rows if row["status"] == "ok"]
    errors = {}
    if ok:
        labels = find_label_errors(np.stack([row["probs"] for row in ok]), np.array([row["label"] for row in ok]))
        errors = {
            row["image_id"]: told
            for row, *told in zip(ok, labels.label_score, labels.is_error, labels.is_in_doubt, strict=True)
        }
    calm_shifts = sorted(
        row["squeeze_shift"] for row in ok if row["pred"] == row["label"] and row["squeeze_shift"] is not None
    )
    limit = math.inf
    if calm_shifts:
        limit = max(0.5, calm_shifts[math.ceil(0.99 * (len(calm_shifts) - 1))])
    apart = np.float32(1.3)  # too few images to say what is usual
    for row in rows:
        nan = math.nan
        verdict = {"flags": [], "suggested": None, "label_score": nan, "ambiguity_score": nan, "drift_score": nan}
        if row["status"] == "ok":
            probs = sorted(row["probs"].astype(float), reverse=True)
            readings = row["probs"].astype(float) * (3 / 4 if row["label"] >= 0 else 1)
            if row["label"] >= 0:
                readings[row["label"]] += 1 / 4
            score, wrong, doubted = errors[row["image_id"]]
            verdict |= {"label_score": score, "ambiguity_score": (readings**2).sum()}
            shift, smooth = row["squeeze_shift"], row["squeeze_pred"]
            if shift is not None:
                verdict["drift_score"] = 1 - shift
            own = row["probs"].astype(float)[row["label"]]
            own_is_less = row["label"] >= 0 and own < probs[0]
            in_play = round(math.exp(-sum(p * math.log(p) for p in probs if p > 0)))
            distance = row["evidence_distance"]
            has_evidence = distance is not None or row["pred_box"] is None
            readable = own_is_less and 1 + sum(p > own for p in probs) <= in_play and has_evidence
            ambiguous = readable and (doubted or (wrong and distance is not None and distance >= apart))
            back = smooth == row["label"]
            drift = (
                row["label"] >= 0
                and row["label"] != row["pred"]
                and smooth is not None
                and smooth != row["pred"]
                and row["squeeze_overlap"] is not None
                and row["squeeze_overlap"] >= 0.5
                and np.float32(shift) >= np.float32(limit)
                and (back or probs[0] > 0.5)
            )
            excused = drift and back
            verdict["flags"] = [
                *(["mislabeled"] if wrong and not ambiguous and not excused else []),
                *(["ambiguous"] if ambiguous and not excused else []),
                *(["adversarial_drift"] if drift else []),
            ]
            if {"mislabeled", "ambiguous"} & set(verdict["flags"]):
                verdict["suggested"] = row["pred_name"]
        yield verdict
