import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wording import amount, count, percent, printable, score, shell_word, shortened


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0.0 %"),
        (0.0004, "<0.1 %"),
        (0.0005, "0.1 %"),
        (0.1234, "12.3 %"),
        (0.9994, "99.9 %"),
        (0.9996, ">99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_percent_never_claims_more_than_it_knows(share, words):
    assert percent(share).replace("\u202f", " ") == words


def test_counts_and_amounts():
    assert count(1234567) == "1,234,567"
    assert count(None) == "–"
    assert amount(1, "image") == "1 image"
    assert amount(0, "image") == "0 images"
    assert amount(2, "box", "boxes") == "2 boxes"


def test_scores_are_never_zero_unless_they_are():
    assert [score(0.0), score(0.0004), score(0.0006), score(0.25), score(1.0)] == [
        "0.000", "<0.001", "0.001", "0.250", "1.000",
    ]  # fmt: skip


def test_invisible_characters_are_seen():
    assert printable("a\u202egnp.jpg") == "a‹U+202E›gnp.jpg"
    assert printable("two\nlines\x00") == "two‹U+000A›lines‹U+0000›"
    assert printable("猫 תפוח é <b>") == "猫 תפוח é <b>"
    assert printable("") == "(no name)"
    assert printable(None) == "(none)"


def test_long_names_keep_both_ends():
    assert shortened("abc", 3) == "abc"
    assert shortened("0123456789", 5) == "01…89"
    assert shortened("0123456789", 6) == "012…89"


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=60), st.integers(2, 80))
def test_shortened_never_exceeds_its_limit(name, limit):
    cut = shortened(name, limit)
    assert len(cut) <= limit
    if len(name) <= limit:
        assert cut == name
    else:
        head, _, tail = cut.rpartition("…")
        assert len(cut) == limit
        assert name.startswith(head)
        assert name.endswith(tail)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash to read the words back")
@pytest.mark.parametrize(
    "text", ["plain/a.png", 'it\'s $HOME `x` \\ "q".png', "line\nbreak\r'\\", "\u202egnp.猫😀", "-n", ""]
)
def test_a_shell_reads_back_the_same_word(text):
    said = subprocess.run(
        ["bash", "-c", f"printf '%s|' {shell_word(text)}"],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert said.stdout.decode() == text + "|"
    assert "\n" not in shell_word(text)
    assert "\u202e" not in shell_word(text)
