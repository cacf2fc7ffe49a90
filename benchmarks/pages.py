"""Tables that a benchmark keeps in a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ALGORITHM = Path(__file__).resolve().parents[1] / "docs" / "algorithm.md"


def write_between(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Put lines between the two places of a page at which `mark` stands."""
    before, _, after = page.read_text(encoding="utf-8").split(mark)
    page.write_text(mark.join([before, "\n" + "\n".join(lines) + "\n", after]), encoding="utf-8")
