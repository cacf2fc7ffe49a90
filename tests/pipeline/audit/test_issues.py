"""The list a person works through: its order, its reasons word by word, its copies."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.audit import issues as module
from pipeline.audit import reasons
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import ORDER, count_issues, write_issues
from pipeline.audit.reasons import Copy, Seen, Smoothed
from pipeline.errors import RunFolderError
from pipeline.runfolder import RunFolder
from tests.pipeline.evidence_rows import NAMES, broken, clear, image, write_run

THIN = "\N{NARROW NO-BREAK SPACE}"


def listed(folder, rows, names=NAMES, **how):
    run = write_run(folder, rows, **how)
    write_audit(run, names)
    write_issues(run)
    return pd.read_parquet(run.issues)


def data_set(*rows):
    """As in test_audit: dogs are harder than cats, smoothing moves little."""
    calm = [row | {"squeeze_pred": 0, "squeeze_shift": 0.1} for row in clear(60, 0)]
    return [*calm, *clear(60, 1, sure=0.75), *clear(60, 2), *rows]


def same_bytes(row, content):
    return row | {"sha256": hashlib.sha256(content).hexdigest()}


EVERYTHING = (
    image("wrong2.png", 0, [0.03, 0.96, 0.01], overlap=0.8),
    image("wrong1.png", 0, [0.01, 0.98, 0.01], overlap=0.1),
    image("two.png", 0, [0.16, 0.8, 0.04], overlap=0.12),
    image("tie.png", 0, [0.4, 0.5, 0.1], overlap=0.81),
    image("drift.png", 0, [0.01, 0.98, 0.01], smoothed=(0, 0.88, 0.75)),
    same_bytes(image("copy1.png", 0, [0.9, 0.05, 0.05]), b"twin"),
    same_bytes(image("copy2.png", 1, [0.9, 0.05, 0.05]), b"twin"),
    broken("torn.png", 1, "the file is cut short"),
)


def test_what_is_certain_comes_before_what_is_likely_before_what_is_possible(tmp_path):
    found = listed(tmp_path, data_set(*EVERYTHING))
    assert found[["issue", "image_id"]].values.tolist() == [
        ["duplicate_conflict", "copy1.png"],
        ["duplicate_conflict", "copy2.png"],
        ["mislabeled", "wrong1.png"],
        ["mislabeled", "wrong2.png"],
        ["mislabeled", "copy2.png"],
        ["adversarial_drift", "drift.png"],
        ["ambiguous", "tie.png"],
        ["ambiguous", "two.png"],
        ["unreadable", "torn.png"],
    ]
    assert found["rank"].tolist() == list(range(1, 10))
    assert found.label_name.tolist() == ["cat", "dog", "cat", "cat", "dog", "cat", "cat", "cat", "dog"]
    assert found.suggested_name.fillna("").tolist() == ["", "", "dog", "dog", "cat", "", "dog", "dog", ""]
    assert found.score.tolist()[:2] == [0.5, 0.5]
    audited = pd.read_parquet(tmp_path / "audit.parquet").set_index("image_id").label_score
    assert found.score.tolist()[2:4] == audited.loc[found.image_id[2:4]].tolist() == sorted(found.score[2:4])
    assert found.score.tolist()[5:8] == pytest.approx([0.12, 0.4487, 0.4978], abs=1e-3)
    assert pd.isna(found.score[8])


def test_every_reason_as_it_is_read(tmp_path):
    found = listed(tmp_path, data_set(*EVERYTHING)).set_index(["issue", "image_id"]).reason
    told = {key: reason.replace(THIN, " ") for key, reason in found.items()}
    assert told == {
        ("duplicate_conflict", "copy1.png"): "The same file, byte for byte, is also labelled 'dog' (copy2.png); at "
        "most one of these labels can be right.",
        ("duplicate_conflict", "copy2.png"): "The same file, byte for byte, is also labelled 'cat' (copy1.png); at "
        "most one of these labels can be right.",
        ("mislabeled", "wrong1.png"): "Labelled 'cat' (1.0 % likely), but it looks like 'dog' (98.0 % likely). The "
        "little that speaks for 'cat' lies in another place than what speaks for 'dog' (2.3 times its spread).",
        ("mislabeled", "wrong2.png"): "Labelled 'cat' (3.0 % likely), but it looks like 'dog' (96.0 % likely). The "
        "little that speaks for 'cat' lies in the same place as what speaks for 'dog' (0.5 times its spread).",
        ("mislabeled", "copy2.png"): "Labelled 'dog' (5.0 % likely), but it looks like 'cat' (90.0 % likely). The "
        "little that speaks for 'dog' does not lie clearly apart from what speaks for 'cat' (0.8 times its spread).",
        ("adversarial_drift", "drift.png"): "The image may have been tampered with: it is labelled 'cat' and taken for "
        "'dog' (98.0 % likely), but after a smoothing that a person hardly sees it is taken for 'cat', as labelled; "
        "88.0 % of the probability moved, while what speaks for either lies in the same place (overlap 0.75).",
        ("ambiguous", "tie.png"): "Two readings: the same object may be 'cat', as labelled (40.0 % likely), or 'dog' "
        "(50.0 % likely); what speaks for the one and for the other lies in the same place (0.5 times its "
        "spread).",
        ("ambiguous", "two.png"): "Two objects: the image seems to show both 'cat', as labelled (16.0 % likely), and "
        "'dog' (80.0 % likely); what speaks for the one lies in another place than what speaks for the other "
        "(2.3 times its spread).",
        ("unreadable", "torn.png"): "The image could not be audited: the file is cut short.",
    }


def test_reasons_do_not_speak_of_evidence_where_none_was_traced(tmp_path):
    rows = data_set(
        image("wrong.png", 0, [0.03, 0.96, 0.01], traced=False), image("tie.png", 0, [0.4, 0.5, 0.1], traced=False)
    )
    told = [reason.replace(THIN, " ") for reason in listed(tmp_path, rows).reason]
    assert told == [
        "Labelled 'cat' (3.0 % likely), but it looks like 'dog' (96.0 % likely).",
        "Undecided: the image may show 'cat', as labelled (40.0 % likely), or 'dog' (50.0 % likely).",
    ]


def test_a_label_for_which_nothing_speaks(tmp_path):
    (told,) = listed(tmp_path, data_set(image("x.png", 0, [0.001, 0.998, 0.001], overlap=None))).reason
    assert told.endswith("Nothing in the image speaks for 'cat'.")


def test_drift_to_a_third_class_names_it_even_where_no_image_has_it(tmp_path):
    names = ("cat", "dog", "owl", "elk")
    rows = [
        *(row | {"squeeze_pred": 0, "squeeze_shift": 0.0} for row in clear(40, 0, names=names)),
        *clear(40, 1, names=names),
        image("x.png", 0, [0.01, 0.97, 0.01, 0.01], names=names, smoothed=(3, 0.9, 0.8)),
    ]
    found = listed(tmp_path, rows, names).set_index("issue")
    assert found.index.tolist() == ["mislabeled", "adversarial_drift"]  # one image, two things to say
    assert "it is taken for 'elk'; 90.0" in found.reason["adversarial_drift"]


SEEN = Seen(
    label_name="a\nb",
    pred_name="\u202etac",
    label_probability=0.0,
    pred_probability=1.0,
    traced=True,
    distance=2.3,
    is_apart=True,
)


@pytest.mark.parametrize(("distance", "told"), [(0.5, "lies in the same place"), (0.6, "does not lie clearly apart")])
def test_no_place_is_called_the_same_that_is_far(distance, told):
    seen = dataclasses.replace(SEEN, distance=distance, is_apart=False)
    assert told in reasons.mislabeled(seen)
    assert told in reasons.ambiguous(seen)


@pytest.mark.parametrize(
    ("swing", "told"),
    [
        (None, None),
        (-3.0, None),
        (1.3, None),
        (1.4, "about 2 times the odds"),
        (2 * math.log(28), "about 30 times the odds"),
        (2 * math.log(476), "about 500 times the odds"),
        (2 * math.log(1000) + 1e-6, "over 1,000 times the odds"),
        (1e6, "over 1,000 times the odds"),
    ],
)
def test_what_the_halves_say_is_told_where_they_say_something(swing, told):
    sentence = reasons.ambiguous(dataclasses.replace(SEEN, swing=swing))
    if told is None:
        assert "Seen alone" not in sentence
    else:
        assert f"Seen alone, its own half of the image gives either of them, on average, {told}" in sentence
    assert "Seen alone" not in reasons.ambiguous(dataclasses.replace(SEEN, swing=swing, is_apart=False))


def test_the_swing_comes_from_the_evidence(tmp_path):
    rows = data_set(image("two.png", 0, [0.16, 0.8, 0.04], overlap=0.1, evidence_swing=2 * math.log(30)))
    (told,) = listed(tmp_path, rows).reason
    assert "about 30 times the odds" in told


@pytest.mark.parametrize(
    "sentence",
    [
        reasons.mislabeled(SEEN),
        reasons.ambiguous(SEEN),
        reasons.adversarial_drift(SEEN, Smoothed(pred_name="\x00", shift=1.0, overlap=0.9)),
        reasons.duplicate_conflict(
            Copy("a", "b", "tr\nain", same_bytes=True), [Copy("x\r\ny.png", "\u2028", "te\rst", same_bytes=False)]
        ),
        reasons.unreadable("Traceback:\n  no"),
        reasons.unreadable(""),
        reasons.unreadable("cannot decode."),
    ],
)
def test_sentences_are_whole_and_on_one_line_whatever_the_names(sentence):
    assert re.match(r"[A-Z]", sentence)
    assert sentence.endswith(".")
    assert not sentence.endswith("..")
    assert not set("\n\r\u2028\u202e\x00") & set(sentence)


def test_copies_beyond_three_are_counted():
    image = Copy("x.png", "cat", "", same_bytes=True)
    others = [Copy(f"{at}.png", "dog", "", same_bytes=True) for at in range(5)]
    assert reasons.duplicate_conflict(image, others) == (
        "The same file, byte for byte, is also labelled 'dog' (0.png), 'dog' (1.png), 'dog' (2.png), and in 2 more "
        "copies otherwise; at most one of these labels can be right."
    )
    assert "and in 1 more copy otherwise;" in reasons.duplicate_conflict(image, others[:4])


def test_copies_stay_together_the_lonelier_label_first(tmp_path):
    def copies(content, *labels):
        sure = {0: [0.94, 0.03, 0.03], 1: [0.03, 0.94, 0.03]}
        return [
            same_bytes(image(f"{content}{at}.png", label, sure[label]), content.encode())
            for at, label in enumerate(labels)
        ]

    rows = [
        *clear(20, 0),
        *clear(20, 1),
        *copies("a", 0, 1),
        *copies("b", 1, 0, 0, 0),
        *copies("c", 0, 0),
        broken("z", 0),
    ]
    found = listed(tmp_path, rows)
    found = found[found.issue == "duplicate_conflict"]
    assert found.image_id.tolist() == ["b0.png", "b1.png", "b2.png", "b3.png", "a0.png", "a1.png"]
    assert found.score.tolist() == [0.25, 0.75, 0.75, 0.75, 0.5, 0.5]
    assert found.suggested_name.fillna("").tolist() == ["cat", "", "", "", "", ""]
    assert found.label_name.tolist() == ["dog", "cat", "cat", "cat", "cat", "dog"]


def test_unreadable_files_are_no_copies_of_each_other(tmp_path):
    rows = [*clear(20, 0), *(same_bytes(broken(f"{at}.png", at), b"") for at in (0, 1))]
    assert listed(tmp_path, rows).issue.tolist() == ["unreadable", "unreadable"]


def test_digests_that_begin_alike_are_told_apart(tmp_path):
    rows = [image(f"{at}.png", at, [0.94, 0.03, 0.03]) | {"sha256": "0" * 40 + str(at) * 24} for at in (0, 1)]
    found = listed(tmp_path, [*clear(20, 0), *rows])
    assert "duplicate_conflict" not in found.issue.tolist()


def test_copies_in_different_parts_are_found(tmp_path):
    found = listed(tmp_path, data_set(*EVERYTHING), part_size=1)
    assert found.image_id.tolist()[:2] == ["copy1.png", "copy2.png"]


def test_batches_change_nothing(tmp_path, monkeypatch):
    whole = listed(tmp_path / "a", data_set(*EVERYTHING))
    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    pd.testing.assert_frame_equal(listed(tmp_path / "b", data_set(*EVERYTHING), part_size=7), whole)


def test_nothing_flagged_is_an_empty_table_with_all_columns(tmp_path):
    run = write_run(tmp_path, clear(20, 0) + clear(20, 1))
    write_audit(run, NAMES)
    write_issues(run)
    table = pq.read_table(run.issues)
    assert table.num_rows == 0
    assert table.schema.equals(schema.ISSUES_TABLE)


def test_all_unreadable_and_none_at_all(tmp_path):
    found = listed(tmp_path / "a", [broken(f"{at}.png", 0) for at in (2, 1)])
    assert found[["rank", "image_id"]].values.tolist() == [[1, "1.png"], [2, "2.png"]]
    assert len(listed(tmp_path / "b", [])) == 0


def test_counts_agree_with_pandas(tmp_path):
    found = listed(tmp_path, data_set(*EVERYTHING))
    counts = count_issues(RunFolder(tmp_path))
    assert counts == {name: int((found.issue == name).sum()) for name in schema.ISSUES}
    assert counts["duplicate_conflict"] == 2
    listed(tmp_path / "none", [])
    assert count_issues(RunFolder(tmp_path / "none")) == dict.fromkeys(schema.ISSUES, 0)


def test_an_audit_of_other_evidence_is_refused(tmp_path):
    run = write_run(tmp_path, clear(20, 0))
    write_audit(run, NAMES)
    write_run(tmp_path, [*clear(19, 0), image("new.png", 0, [1, 0, 0])])
    with pytest.raises(RunFolderError, match="belongs to other evidence"):
        write_issues(run)
    run.evidence_part(1).unlink()
    with pytest.raises(RunFolderError, match="belongs to other evidence"):
        write_issues(run)
    run.audit.unlink()
    with pytest.raises(RunFolderError, match="cannot read"):
        write_issues(run)
    assert not run.issues.exists()


def test_every_issue_has_its_place():
    assert sorted(ORDER) == sorted(schema.ISSUES)
