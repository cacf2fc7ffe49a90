"""Results of a protocol: as text for people, as rows for programs, as a plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.files import replacing

Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Table:
    """One table of numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """What has to be known to read it: units, how many images, what was left out."""
    plotted: str | None = None
    """The column that the plot shows; None: the last."""

    def text(self, width: int = 120, *, room: int | None = None) -> str:
        """Return the table aligned, numbers to the right, with its notes below, wrapped at `width` characters.

        Where lines would be longer than `room`, the columns come in several blocks, each with those that name the row.
        """
        shown = [[_shown(cell) for cell in row] for row in self.rows]
        widths = [max(len(line[at]) for line in [list(self.columns), *shown]) for at in range(len(self.columns))]
        numeric = [all(not isinstance(row[at], str) for row in self.rows) for at in range(len(self.columns))]

        def line(cells: Sequence[str], block: Sequence[int]) -> str:
            aligned = (cells[at].rjust(widths[at]) if numeric[at] else cells[at].ljust(widths[at]) for at in block)
            return "  ".join(aligned).rstrip()

        blocks = []
        for block in _blocks(widths, numeric.index(True) if True in numeric else 0, room):
            rule = "  ".join("-" * widths[at] for at in block)
            blocks += [line(self.columns, block), rule, *(line(row, block) for row in shown), ""]
        notes = [textwrap.fill(note, width) for note in self.notes]
        return "\n".join([self.title, "", *blocks, *notes]).rstrip()

    def facts(self) -> dict[str, Any]:
        """Return the table as JSON can hold it; what is no number is null."""
        rows = [
            {name: None if isinstance(cell, float) and not math.isfinite(cell) else cell for name, cell in pairs}
            for pairs in (zip(self.columns, row, strict=True) for row in self.rows)
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def plot(self, path: Path) -> None:
        """Write a PNG with a bar per row, in the table's order."""
        from matplotlib.figure import Figure  # takes a second to import

        at = self.columns.index(self.plotted) if self.plotted else len(self.columns) - 1
        words = [column for column in range(at) if isinstance(self.rows[0][column], str)]
        names = [" ".join(str(row[column]) for column in words if row[column] not in (None, "-")) for row in self.rows]
        values = [float(row[at]) if isinstance(row[at], int | float) else math.nan for row in self.rows]  # type: ignore[arg-type]
        figure = Figure(figsize=(7, 0.9 + 0.27 * len(names)), dpi=120, layout="constrained")
        axis = figure.add_subplot()
        ours = ["#b5422c" if name.startswith("fixations") else "#7d8ca3" for name in names]
        axis.barh(range(len(names)), values, color=ours)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        for position, value in enumerate(values):
            if math.isfinite(value):
                axis.text(value, position, f" {value:.3f}", va="center", fontsize=7)
        axis.set_xlabel(self.columns[at])
        axis.set_title(self.title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        with replacing(path) as partial:
            figure.savefig(partial, format="png")


def merged_facts(protocol: str, tables: Sequence[Table], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return several tables and what was measured as one JSON object."""
    return {"protocol": protocol, **about, "tables": [table.facts() for table in tables]}


def _shown(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _blocks(widths: Sequence[int], names: int, room: int | None) -> list[list[int]]:
    """Return which columns stand beside each other: the first `names` and as many others as there is room for."""
    blocks = [list(range(names))]
    for at in range(names, len(widths)):
        block = [*blocks[-1], at]
        fits = room is None or sum(widths[one] + 2 for one in block) - 2 <= room
        if fits or len(blocks[-1]) == names:  # one at least, or there is no end
            blocks[-1] = block
        else:
            blocks.append([*range(names), at])
    return blocks
