"""The numbers of a run, counted by hand; their place in summary.json; the cases without numbers."""

from __future__ import annotations

import json
from dataclasses import asdict

import pandas as pd
import pytest

from pipeline import schema
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.audit.summary import write_summary
from pipeline.errors import RunFolderError
from tests.pipeline.evidence_rows import NAMES, broken, clear, image, write_run


def summarised(folder, rows, names=NAMES, **how):
    run = write_run(folder, rows, **how)
    write_audit(run, names)
    write_issues(run)
    return run, write_summary(run, names)


ROWS = [
    *clear(40, 0),
    *clear(40, 1, sure=0.75),
    image("a.png", 0, [0.01, 0.98, 0.01]),
    image("b.png", 0, [0.02, 0.97, 0.01]),
    image("c.png", 0, [0.01, 0.01, 0.98]),
    image("d.png", 1, [0.5, 0.4, 0.1]),
    broken("e.png", 1),
    broken("f.png", -1),
]


@pytest.mark.parametrize("part_size", [3, 100])
def test_every_number_counted_by_hand(tmp_path, part_size):
    run, summary = summarised(tmp_path, ROWS, part_size=part_size)
    assert summary.schema == schema.VERSION
    assert (summary.images, summary.ok, summary.error, summary.judged) == (86, 84, 2, 84)
    assert summary.issues == {
        "mislabeled": 3,
        "ambiguous": 1,
        "adversarial_drift": 0,
        "duplicate_conflict": 0,
        "unreadable": 2,
    }
    assert summary.accuracy == pytest.approx(80 / 84)
    audit = pd.read_parquet(run.audit)
    wrong = 1 - audit.label_score.astype(float)
    of_cats = wrong[audit.label == 0]
    assert 3 < wrong.sum() < 4
    assert summary.estimated_errors == pytest.approx(wrong.sum())
    assert summary.estimated_errors_range[0] < wrong.sum() < summary.estimated_errors_range[1]
    assert summary.estimated_noise == pytest.approx(wrong.sum() / 84)
    assert summary.estimated_precision == pytest.approx(wrong[audit.is_mislabeled].mean())
    assert summary.estimated_precision_range[0] < summary.estimated_precision < summary.estimated_precision_range[1]
    cat, dog, owl = (asdict(one) for one in summary.classes)
    assert cat == {
        "label": 0,
        "name": "cat",
        "images": 43,
        "flagged": 3,
        "mislabeled": 3,
        "ambiguous": 0,
        "adversarial_drift": 0,
        "estimated_noise": pytest.approx(of_cats.sum() / 43),
        "estimated_precision": pytest.approx(of_cats[audit.is_mislabeled].mean()),
        "accuracy": pytest.approx(40 / 43),
        "most_confused_with": "dog",
        "confused_images": 2,
    }
    assert dog == {
        "label": 1,
        "name": "dog",
        "images": 42,
        "flagged": 1,
        "mislabeled": 0,
        "ambiguous": 1,
        "adversarial_drift": 0,
        "estimated_noise": pytest.approx(wrong[audit.label == 1].sum() / 41),
        "estimated_precision": None,
        "accuracy": pytest.approx(40 / 41),
        "most_confused_with": "cat",
        "confused_images": 1,
    }
    assert owl == {
        "label": 2,
        "name": "owl",
        "images": 0,
        "flagged": 0,
        "mislabeled": 0,
        "ambiguous": 0,
        "adversarial_drift": 0,
        "estimated_noise": None,
        "estimated_precision": None,
        "accuracy": None,
        "most_confused_with": None,
        "confused_images": 0,
    }


def test_the_file_says_what_is_returned(tmp_path):
    run, summary = summarised(tmp_path, ROWS)
    assert json.loads(run.summary.read_text()) == json.loads(json.dumps(asdict(summary)))


def test_a_tie_of_confusions_goes_to_the_lower_class(tmp_path):
    rows = [*clear(20, 0), image("a.png", 1, [0.9, 0.05, 0.05]), image("b.png", 1, [0.05, 0.05, 0.9])]
    _, summary = summarised(tmp_path, rows)
    assert summary.classes[1].most_confused_with == "cat"


def test_an_image_with_two_flags_counts_once_as_flagged(tmp_path):
    calm = [row | {"squeeze_pred": 0, "squeeze_shift": 0.1} for row in clear(40, 0)]
    both = image("x.png", 0, [0.01, 0.98, 0.01], smoothed=(2, 0.9, 0.8))
    _, summary = summarised(tmp_path, [*calm, *clear(40, 1), both])
    cat = summary.classes[0]
    assert (cat.mislabeled, cat.adversarial_drift, cat.flagged) == (1, 1, 1)
    assert summary.issues["adversarial_drift"] == 1


@pytest.mark.parametrize("rows", [[], [broken("a.png", 0), broken("b.png", 1)]])
def test_nothing_readable_has_no_shares(tmp_path, rows):
    run, summary = summarised(tmp_path, rows)
    assert (summary.images, summary.ok, summary.error, summary.judged) == (len(rows), 0, len(rows), 0)
    assert summary.accuracy is None
    assert summary.estimated_errors is None
    assert summary.estimated_noise is None
    assert summary.estimated_precision is None
    assert [one.accuracy for one in summary.classes] == [None] * 3
    assert json.loads(run.summary.read_text())["estimated_noise"] is None


def test_no_doubt_is_no_noise_and_no_precision(tmp_path):
    _, summary = summarised(tmp_path, clear(20, 0) + clear(20, 1))
    assert summary.estimated_noise < 0.001
    assert summary.estimated_precision is None
    assert summary.accuracy == 1


def test_one_class_only(tmp_path):
    _, summary = summarised(tmp_path, [image("a.png", 0, [1.0], names=["cat"])], ["cat"])
    assert (summary.judged, summary.accuracy, summary.estimated_noise) == (0, 1, None)


def test_two_images(tmp_path):
    _, summary = summarised(tmp_path, [image("a.png", 0, [0.9, 0.05, 0.05]), image("b.png", 0, [0.05, 0.9, 0.05])])
    assert summary.issues["mislabeled"] == 1
    assert 0.5 < summary.estimated_errors < 1
    assert 0.25 < summary.classes[0].estimated_noise < 0.5


def test_needs_the_issues(tmp_path):
    run = write_run(tmp_path, clear(20, 0))
    write_audit(run, NAMES)
    with pytest.raises(RunFolderError, match=r"cannot read .*issues\.parquet"):
        write_summary(run, NAMES)
    assert not run.summary.exists()
