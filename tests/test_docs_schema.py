"""The committed reference pages are what the code says now, and leave nothing out."""

from __future__ import annotations

import runpy
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline import schema
from pipeline.audit.summary import ClassSummary, Summary

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = runpy.run_path(str(DOCS / "make_reference.py"))["PAGES"]


@pytest.mark.parametrize("name", PAGES)
def test_committed_page_is_the_generated_one(name):
    committed = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert committed == PAGES[name](), "run `python docs/make_reference.py`"


@pytest.mark.parametrize("table", schema.TABLES)
def test_every_column_has_a_line_with_type_and_meaning(table):
    lines = PAGES["schema.md"]().splitlines()
    for column in schema.TABLES[table]:
        cells = [line.split(" | ") for line in lines if line.startswith(f"| `{column.name}` | ")]
        assert any(column.metadata[b"meaning"].decode() in cell[2] for cell in cells), column.name
        assert all(len(cell[1]) > 3 for cell in cells)


def test_types_are_written_as_people_write_them():
    page = PAGES["schema.md"]()
    assert "| `probs` | list<float16> |" in page
    assert "| `pred_box` | list<float32>[4] |" in page
    assert "| `is_mislabeled` | bool |" in page


def test_every_field_of_the_summary_is_explained():
    page = PAGES["summary.md"]()
    for one in (*fields(Summary), *fields(ClassSummary)):
        assert f"| `{one.name}` | " in page
        assert one.metadata["meaning"] in page


def test_every_issue_is_named():
    page = PAGES["schema.md"]()
    assert all(f"`{issue}`" in page for issue in schema.ISSUES)


def test_every_exit_code_is_named():
    page = PAGES["command.md"]()
    (line,) = (line for line in page.splitlines() if line.startswith("Exit codes: "))
    assert [int(part.split()[0]) for part in line.removeprefix("Exit codes: ").split(", ")] == [0, 1, 2, 130]
