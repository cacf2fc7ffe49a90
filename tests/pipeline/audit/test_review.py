"""Files of verdicts: what is read, what is refused, what is asked about; and what a verdict changes in an audit."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.audit.review import (
    COLUMNS,
    Said,
    earlier_verdicts,
    images_to_review,
    known_verdicts,
    read_verdicts,
    write_review_list,
)
from pipeline.audit.summary import write_summary
from pipeline.errors import VerdictsError
from pipeline.pages.review_page import write_review_page
from tests.pipeline.evidence_rows import NAMES, broken, clear, image, write_run
from tests.pipeline.synthetic_run import SCRIPT, default_images, make_run

RIGHT, WRONG = Said(False, None), Said(True, None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_spreadsheets_write_is_read(tmp_path, delimiter, mark):
    rows = [
        ("image_id", "note", "verdict"),
        ("a.png", "", "wrong"),
        ("b.png", "", " Right "),
        ("c.png", "x", ""),
        ('"d, ""e"".png"', "", "WRONG"),
        ("a.png", "again", "wrong"),
    ]
    path = tmp_path / "v.csv"
    path.write_text(mark + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8", newline="")
    assert read_verdicts(path) == {"a.png": (WRONG,), "b.png": (RIGHT,), 'd, "e".png': (WRONG,)}


def test_parquet_is_told_by_content(tmp_path):
    table = pa.table({"verdict": ["right", None, "wrong"], "image_id": ["a", "b", "c"], "more": [1, 2, 3]})
    pq.write_table(table, tmp_path / "v.csv")
    assert read_verdicts(tmp_path / "v.csv") == {"a": (RIGHT,), "c": (WRONG,)}
    labelled = table.append_column("label_name", pa.array(["cat", "dog", None]))
    pq.write_table(labelled, tmp_path / "v.csv")
    assert read_verdicts(tmp_path / "v.csv") == {"a": (Said(False, "cat"),), "c": (WRONG,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,verdict\na,\n", "there is no verdict in .* yet; write right or wrong into its column verdict$"),
        ("image_id,verdict\na,yes\n", 'line 2 of .*: "yes" is no verdict; write right or wrong, or leave it empty'),
        ("image_id,verdict\na,right\nb,\na,wrong\n", "line 4 of .*: a is called both right and wrong"),
        ("image_id,verdict\n,right\n", "line 2 of .*: a verdict without an image_id"),
        ("path,verdict\na,right\n", "no column image_id; it has path, verdict"),
        ("image_id\na\n", "no column verdict; it has image_id"),
        ("", "no column image_id; it has nothing"),
        ("image_id,verdict\n\u202eevil,\u202e\n", "\u2039U\\+202E\u203a"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, text, message):
    path = tmp_path / "v.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VerdictsError, match=message) as caught:
        read_verdicts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"image_id,verdict\n\xff\xfe,right\n", b"PAR1 and no more", None])
def test_a_file_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "v.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VerdictsError, match="cannot read") as caught:
        read_verdicts(path)
    assert "\n" not in str(caught.value)


def test_verdicts_on_other_images_and_on_labels_of_before_are_named_and_left_out(tmp_path):
    here = pa.table({"image_id": pa.chunked_array([["a", "b"], ["c"]]), "label_name": ["cat", "dog", "owl"]})
    path = tmp_path / "v.csv"
    assert known_verdicts({"a": [WRONG], "c": [Said(False, "owl")]}, here, path) == ({"a": True, "c": False}, [])
    said = {"a": [WRONG], "x": [RIGHT], "b": [Said(True, "cat")], "y": [WRONG]}
    found, warnings = known_verdicts(said, here, path)
    assert found == {"a": True}
    assert warnings == [
        f"2 verdicts in {path} left out, of images that are not here: x, y",
        f"1 verdict in {path} left out, of labels that have been changed since: b",
    ]
    with pytest.raises(VerdictsError, match=r"of another dataset: none of its images is here \(w, x, y, \.\.\.\)"):
        known_verdicts({name: [WRONG] for name in "wxyz"}, here, path)


def test_a_verdict_on_the_label_of_before_hides_none_on_the_present_one(tmp_path):
    here = pa.table({"image_id": ["a"], "label_name": ["cat"]})
    path = tmp_path / "v.csv"
    for order in (1, -1):
        rows = ["a,dog,wrong", "a,cat,right"][::order]
        path.write_text("\n".join(["image_id,label_name,verdict", *rows]), encoding="utf-8")
        assert known_verdicts(read_verdicts(path), here, path) == ({"a": False}, [])
    for rows in (["a,cat,wrong", "a,cat,right"], ["a,,wrong", "a,cat,right"], ["a,dog,wrong", "a,,right"]):
        path.write_text("\n".join(["image_id,label_name,verdict", *rows]), encoding="utf-8")
        with pytest.raises(VerdictsError, match=r"line 3 of .*: a is called both right and wrong"):
            read_verdicts(path)


@pytest.mark.parametrize(
    "names", [("verdict", "image_id", "verdict"), ("image_id", "verdict", "label_name", "label_name")]
)
def test_a_column_that_is_there_twice_is_no_guess(tmp_path, names):
    path = tmp_path / "v.csv"
    path.write_text(",".join(names) + "\n" + ",".join(["right"] * len(names)), encoding="utf-8")
    with pytest.raises(VerdictsError, match=rf"v\.csv has 2 columns {names[-1]}; keep one"):
        read_verdicts(path)
    pq.write_table(pa.table([pa.array(["right"])] * len(names), names=list(names)), path)
    with pytest.raises(VerdictsError, match=rf"v\.csv has 2 columns {names[-1]}; keep one"):
        read_verdicts(path)


def doubtful(draw, count):
    """Images of which another class is more probable, more or less."""
    shares = draw.uniform(0.5, 0.98, count)
    return [
        image(f"doubt{at:03d}.png", at % 3, np.roll([0.01, share, 0.99 - share], at % 3))
        for at, share in enumerate(shares)
    ]


@pytest.fixture
def run(tmp_path):
    rows = [*clear(80, 0), *clear(80, 1), *clear(80, 2), *doubtful(np.random.default_rng(0), 90)]
    rows += [image("unlabelled.png", -1, [0.1, 0.1, 0.8]), broken("broken.png", 1)]
    return write_run(tmp_path, rows, part_size=50)


def concluded(run, wrong):
    write_audit(run, NAMES, wrong)
    write_issues(run)
    summary = write_summary(run, NAMES)
    return pd.read_parquet(run.audit).set_index("image_id"), summary


def test_what_a_person_says_is_final(run):
    before, nothing = concluded(run, {})
    assert nothing.reviewed == nothing.reviewed_wrong == 0
    agreeing = str(before.index[0])
    verdicts = {"doubt000.png": True, "doubt001.png": False, agreeing: True, "unlabelled.png": True, "broken.png": True}
    after, summary = concluded(run, verdicts)
    assert before.verdict.isna().all()
    assert after.verdict.dropna().to_dict() == {"doubt000.png": "wrong", "doubt001.png": "right", agreeing: "wrong"}
    assert after.loc["doubt000.png", ["is_mislabeled", "is_ambiguous"]].tolist() == [True, False]
    assert after.loc["doubt001.png", ["is_mislabeled", "is_ambiguous"]].tolist() == [False, False]
    assert after.loc[agreeing, "is_mislabeled"]
    assert after.label_score[["doubt000.png", "doubt001.png", agreeing]].tolist() == [0, 1, 0]
    assert after.suggested_name["doubt000.png"] == NAMES[1]
    assert pd.isna(after.suggested_name[agreeing])  # nobody knows what it is
    assert (summary.reviewed, summary.reviewed_wrong) == (3, 2)
    assert summary.worth_a_look == after.is_worth_a_look.sum() == 50
    assert not after.is_worth_a_look[list(verdicts)].any()
    assert earlier_verdicts(run) == {
        "doubt000.png": Said(True, NAMES[0]),
        "doubt001.png": Said(False, NAMES[1]),
        agreeing: Said(True, NAMES[0]),
    }
    reasons = pd.read_parquet(run.issues).set_index("image_id").reason
    assert reasons["doubt000.png"].startswith("A person looked and says that the label is wrong. Labelled 'cat'")
    assert "but it looks like" not in reasons[agreeing]


def test_a_person_is_believed_where_the_evidence_would_excuse_or_smoothing_turns_back(tmp_path):
    rows = [
        *clear(60, 0),
        *clear(60, 1, sure=0.75),
        *clear(60, 2),
        image("two.png", 0, [0.45, 0.54, 0.01], overlap=0.1),
        image("drift.png", 0, [0.1, 0.8, 0.1], smoothed=(0, 0.9, 0.9)),
        *(image(f"calm{at}.png", 0, [0.98, 0.01, 0.01], smoothed=(0, 0.1, 0.9)) for at in range(9)),
    ]
    run = write_run(tmp_path, rows)
    before, _ = concluded(run, {})
    assert not before.loc[["two.png", "drift.png"], "is_mislabeled"].any()
    after, _ = concluded(run, {"two.png": True, "drift.png": True})
    assert after.loc[["two.png", "drift.png"], "is_mislabeled"].all()
    assert not after.loc[["two.png", "drift.png"], "is_ambiguous"].any()
    right, _ = concluded(run, {"two.png": False, "drift.png": False})
    assert not right.loc[["two.png", "drift.png"], ["is_mislabeled", "is_ambiguous"]].any(axis=None)


def test_verdicts_move_the_cut_for_images_that_nobody_saw(run):
    before, _ = concluded(run, {})
    asked = images_to_review(run)
    assert len(asked) == 50
    assert before.label_score[asked].is_monotonic_increasing
    all_wrong, noisy = concluded(run, dict.fromkeys(asked, True))
    all_right, clean = concluded(run, dict.fromkeys(asked, False))
    unseen = [name for name in before.index if name.startswith("doubt") and name not in asked]
    assert len(unseen) == 40
    assert all_wrong.loc[unseen, "is_mislabeled"].all()
    assert not all_right.loc[unseen, "is_mislabeled"].any()
    assert all_right.label_score[unseen].min() > 0.8
    assert noisy.estimated_errors == pytest.approx(90, abs=8)
    assert clean.estimated_errors < 10
    assert clean.estimated_precision is None


def test_the_list_asks_and_keeps_what_was_said(run):
    concluded(run, {})
    write_review_list(run)
    with run.review.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["image_id"] for row in rows] == images_to_review(run)
    assert {row["verdict"] for row in rows} == {""}
    assert (rows[0]["label_name"], rows[0]["pred_name"], rows[0]["uri"]) != ("", "", "")
    with pytest.raises(VerdictsError, match="no verdict"):
        read_verdicts(run.review)
    first, second = rows[0]["image_id"], rows[1]["image_id"]
    concluded(run, {second: False, first: True})
    write_review_list(run)
    assert read_verdicts(run.review) == {
        first: (Said(True, rows[0]["label_name"]),),
        second: (Said(False, rows[1]["label_name"]),),
    }
    with run.review.open(encoding="utf-8", newline="") as file:
        again = list(csv.DictReader(file))
    assert [row["image_id"] for row in again[-2:]] == sorted([first, second])
    assert len(again) == 52


def test_no_name_in_the_list_is_a_formula_and_all_are_read_as_they_were(tmp_path):
    names = ["'=1+1", "-1", "cat"]
    starts = ["=", "+", "-", "@", "\t", "\r", "\n", "'=", "''-", "'", "a"]
    rows = [one for label in range(3) for one in clear(80, label, names=names)]
    rows += [
        image(f"{start}cmd.png", at % 3, np.roll([0.1, 0.7, 0.2], at % 3), names=names)
        for at, start in enumerate(starts)
    ]
    run = write_run(tmp_path, rows)
    said = {row["image_id"]: True for row in rows[240:]}
    write_audit(run, names, said)
    write_review_list(run)
    with run.review.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if re.match(r"[=+\-@\t\r\n]", cell)]
    found = read_verdicts(run.review)
    assert found.keys() == said.keys()
    assert {one.label_name for (one,) in found.values()} == set(names)
    assert found == {name: (one,) for name, one in earlier_verdicts(run).items()}


def test_the_page_holds_every_image_and_no_name_breaks_out(tmp_path):
    images = default_images()
    images[0].verdict = "right"
    run = make_run(tmp_path, images)
    page = write_review_page(run).read_text(encoding="utf-8")
    asked = images_to_review(run)
    assert page.count("<article") == len(asked) > 10
    assert page.count("</script>") == 3
    assert SCRIPT not in page
    facts = json.loads(re.search(r'<script type="application/json" id="images">(.*)</script>', page).group(1))
    assert [image_id for image_id, _ in facts["asked"]] == asked
    assert facts["said"] == [[images[0].image_id, "cat", "right"]]
    assert "Is the label" in page
    assert "Mislabeled" not in page  # what the audit thinks is not to lead the answer


def test_a_page_with_nothing_to_ask(tmp_path):
    run = make_run(tmp_path, [one for one in default_images() if one.pred == one.label and not one.same_as])
    page = write_review_page(run).read_text(encoding="utf-8")
    assert "Nothing to ask" in page
    assert "<article" not in page
