"""Writes docs/reference/schema.md from the declared columns: `python docs/make_reference.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import schema  # noqa: E402  # the project's root must be on the path first

PAGE = ROOT / "docs" / "reference" / "schema.md"
_INTRODUCTIONS = {
    "manifest": "`manifest.parquet`: one row per image found.",
    "evidence": "`evidence/part-00000.parquet` and following: one row per image.",
    "audit": "`audit.parquet`: one row per image, every score and flag.",
    "issues": "`issues.parquet`: one row per flag, ranked.",
}


def schema_page() -> str:
    """Return the page: a table of columns for each file."""
    lines = ["# Columns", "", f"Generated from `pipeline/schema.py`; schema version {schema.VERSION}.", ""]
    for name, table in schema.TABLES.items():
        lines += [f"## {name}", "", _INTRODUCTIONS[name], "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| {field.name} | {field.type} | {field.metadata[b'meaning'].decode()} |" for field in table]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(schema_page(), encoding="utf-8")
