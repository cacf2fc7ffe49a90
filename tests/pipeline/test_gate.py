"""Limits that a run must keep: what they count, how they are said, what a CI reads."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.errors import ConfigError, RunFolderError
from pipeline.gate import parse_gates, require_classes, write_junit

SUMMARY = {
    "images": 200,
    "issues": {"mislabeled": 4, "ambiguous": 10, "adversarial_drift": 0, "duplicate_conflict": 2, "unreadable": 1},
    "classes": [
        {"name": "cat", "images": 100, "mislabeled": 4, "ambiguous": 1, "adversarial_drift": 0, "flagged": 5},
        {"name": "sea lion", "images": 99, "mislabeled": 0, "ambiguous": 9, "adversarial_drift": 0, "flagged": 9},
        {"name": "none here", "images": 0, "mislabeled": 0, "ambiguous": 0, "adversarial_drift": 0, "flagged": 0},
    ],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mislabeled > 2%", 0),  # exactly 2 % is not more
        ("mislabeled >= 2%", 1),
        ("mislabeled > 1.9 %", 1),
        ("mislabeled>3", 1),
        ("mislabeled > 4", 0),
        ("unreadable > 0", 1),
        ("adversarial_drift > 0", 0),
        ("adversarial_drift >= 0", 1),
        ("duplicate_conflict > 0.5%", 1),
        ("mislabeled in cat > 3%", 1),
        ("mislabeled in cat > 4%", 0),
        ("ambiguous in sea lion > 9%", 1),
        ("flagged in any class > 4", 2),
        ("flagged in any class >= 0", 2),  # a class without images keeps every limit
        ("mislabeled > 2%; ambiguous > 1%; unreadable > 0 ;", 2),
        ("", 0),
    ],
)
def test_how_many_exceed(text, expected):
    assert sum(len(gate.exceeded(SUMMARY)) for gate in parse_gates(text)) == expected


def test_the_sentence_says_how_many_of_how_many():
    (gate,) = parse_gates("ambiguous   in sea lion > 9%")
    assert gate.text == "ambiguous in sea lion > 9%"
    assert gate.exceeded(SUMMARY) == ["ambiguous in class sea lion: 9 of 99 images (9.09%)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mislabeled", 'say it like "mislabeled > 2%"'),
        ("mislabeled < 2%", 'say it like "mislabeled > 2%"'),
        ("mislabeled > ", 'say it like "mislabeled > 2%"'),
        ("mislabeled > 1.2.3", 'say it like "mislabeled > 2%"'),
        ("mislabeled > .", 'say it like "mislabeled > 2%"'),
        ("mislabelled > 2%", "mislabelled is not known here; choose from mislabeled, ambiguous"),
        ("unreadable in cat > 2", "unreadable is not known here; choose from mislabeled, ambiguous, adversarial_drift"),
        ("flagged > 2", "flagged is not known here"),
        ("mislabeled > 1; wrong > 2", "wrong is not known here"),
    ],
)
def test_what_is_not_understood_is_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_gates(text)
    assert "\n" not in str(caught.value)


def test_a_class_that_is_not_there_is_named_with_the_nearest():
    require_classes(parse_gates("mislabeled in cat > 1; flagged in any class > 1"), ["cat", "dog"])
    with pytest.raises(ConfigError, match="there is no class dgo; did you mean dog"):
        require_classes(parse_gates("mislabeled in dgo > 1"), ["cat", "dog"])


def test_junit_has_a_case_for_each_condition(tmp_path):
    path = tmp_path / "new" / "audit.xml"
    write_junit(path, parse_gates("mislabeled > 1%; flagged in any class > 4; ambiguous > 50%"), SUMMARY)
    suite = ElementTree.parse(path).getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "3", "2")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["mislabeled > 1%", "flagged in any class > 4", "ambiguous > 50%"]
    assert cases[0].find("failure").get("message") == "mislabeled in the dataset: 4 of 200 images (2.00%)"
    assert len(cases[1].find("failure").text.splitlines()) == 2
    assert cases[2].find("failure") is None
    assert "unreadable: 1" in suite.find("system-out").text


def test_junit_without_conditions_says_that_the_audit_was_done(tmp_path):
    write_junit(tmp_path / "audit.xml", (), SUMMARY)
    suite = ElementTree.parse(tmp_path / "audit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.find("testcase").get("name")) == ("1", "0", "audit")


def test_junit_survives_any_class_name_and_refuses_a_folder(tmp_path):
    gates = parse_gates("mislabeled in a\x00<&\x1b > 0")
    summary = SUMMARY | {"classes": [SUMMARY["classes"][0] | {"name": "a\x00<&\x1b"}]}
    write_junit(tmp_path / "audit.xml", gates, summary)
    assert ElementTree.parse(tmp_path / "audit.xml").getroot().get("failures") == "1"
    with pytest.raises(RunFolderError, match="cannot write"):
        write_junit(tmp_path, gates, summary)
