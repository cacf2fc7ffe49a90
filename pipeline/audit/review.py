"""Asking people: which images are worth a look, as a list and as pictures, and reading what they said.

`review.csv` has a row per image with a column `verdict` to fill in; `review.html` shows the same images and writes the
same file. What was said before stands in it too, so that the latest file holds all.

A spreadsheet takes a cell that begins with = + - @ for a formula, and names come from anywhere: in both, an apostrophe
is put before such a name, and before one that begins with apostrophes and goes on so; reading a CSV file takes it away.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit.flags import scan
from pipeline.errors import VerdictsError
from pipeline.files import write_text
from pipeline.labels.verdicts import WORDS, WRONG
from pipeline.runfolder import RunFolder
from pipeline.wording import amount, printable

COLUMNS = ("image_id", "label_name", "pred_name", "verdict", "uri")

_DELIMITERS = ",;\t"  # spreadsheets write all three
_SHOWN = 3
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
"""What a cell may begin with that a spreadsheet would run; review.js has the same."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a person said of an image's label."""

    wrong: bool
    label_name: str | None
    """The label that was looked at; None where the file does not tell."""

    @property
    def word(self) -> str:
        """The verdict as it stands in a file."""
        return WORDS[self.wrong]


def read_verdicts(path: Path, *, may_be_empty: bool = False) -> dict[str, tuple[Said, ...]]:
    """Return what people said of labels, by image_id: of one label each, of several where it was changed in between.

    The file has columns `image_id` and `verdict`, `right` or `wrong` in any case, and maybe `label_name`; rows without
    a verdict are left out, other columns are ignored. CSV may part its columns by comma, semicolon or tab; Parquet is
    told by content.

    Raises:
        VerdictsError: the file cannot be read, lacks a column or has it twice; a verdict is another word; one label of
            an image is called both right and wrong; there is no verdict in it at all (unless it `may_be_empty`).

    """
    verdicts: dict[str, tuple[Said, ...]] = {}
    for where, image_id, word, label_name in _rows(path):
        said = (word or "").strip().lower()
        if not said:
            continue
        if said not in WORDS:
            raise VerdictsError(f'{where}: "{printable(word)}" is no verdict; write right or wrong, or leave it empty')
        if not image_id:
            raise VerdictsError(f"{where}: a verdict without an image_id")
        one = Said(said == WORDS[WRONG], label_name or None)
        before = verdicts.get(image_id, ())
        if any(other.wrong != one.wrong and _may_be_of_one_label(other, one) for other in before):
            raise VerdictsError(f"{where}: {printable(image_id)} is called both right and wrong")
        if one not in before:
            verdicts[image_id] = (*before, one)
    if not verdicts and not may_be_empty:
        shown = path.with_suffix(".html")
        where = f", or say it in {shown}" if shown.is_file() else ""
        raise VerdictsError(f"there is no verdict in {path} yet; write right or wrong into its column verdict{where}")
    return verdicts


def _may_be_of_one_label(one: Said, other: Said) -> bool:
    return one.label_name == other.label_name or None in (one.label_name, other.label_name)


def known_verdicts(
    verdicts: Mapping[str, Sequence[Said]], manifest: pa.Table, path: Path
) -> tuple[dict[str, bool], list[str]]:
    """Return which labels are wrong (True) or right, of the manifest's images, and a warning for each kind left out.

    Left out are verdicts on images that are not in `manifest` (columns `image_id`, `label_name`), and on labels that
    have been changed since, unless somebody looked at the present one as well.

    Raises VerdictsError if none of the images is known: then the file is of another dataset.
    """
    place = pc.index_in(pa.array(verdicts, pa.string()), value_set=manifest["image_id"]).to_pylist()
    found: dict[str, bool] = {}
    strangers, changed = [], []
    for (image_id, said), at in zip(verdicts.items(), place, strict=True):
        if at is None:
            strangers.append(image_id)
            continue
        present = manifest["label_name"][at].as_py()
        fitting = [one for one in said if one.label_name in (None, present)]
        if fitting:
            found[image_id] = fitting[0].wrong  # if there are more they agree
        else:
            changed.append(image_id)
    if strangers and len(strangers) == len(verdicts):
        raise VerdictsError(f"{path} is of another dataset: none of its images is here ({_named(strangers)})")
    left_out = ((strangers, "of images that are not here"), (changed, "of labels that have been changed since"))
    return found, [
        f"{amount(len(which), 'verdict')} in {path} left out, {why}: {_named(which)}"
        for which, why in left_out
        if which
    ]


def _named(image_ids: list[str]) -> str:
    return ", ".join(map(printable, image_ids[:_SHOWN])) + (", ..." if len(image_ids) > _SHOWN else "")


def earlier_verdicts(run: RunFolder) -> dict[str, Said]:
    """Return the verdicts that the run's audit took into account, by image_id, in its order."""
    return {
        row["image_id"]: Said(row["verdict"] == WORDS[WRONG], row["label_name"])
        for batch in scan([run.audit], ["image_id", "label_name", "verdict"])
        for row in batch.filter(batch.column("verdict").is_valid()).to_pylist()
    }


def images_to_review(run: RunFolder) -> list[str]:
    """Return the ids of the images that are worth a look, the most suspicious first."""
    asked = [
        (row["label_score"], row["image_id"])
        for batch in scan([run.audit], ["image_id", "label_score", "is_worth_a_look"])
        for row in batch.filter(batch.column("is_worth_a_look")).to_pylist()
    ]
    return [image_id for _, image_id in sorted(asked)]


def write_review_list(run: RunFolder) -> None:
    """Write review.csv: the images worth a look, then those that have a verdict already."""
    asked = images_to_review(run)
    said = {name: one.word for name, one in sorted(earlier_verdicts(run).items())}
    wanted = pa.array([*asked, *said], pa.string())
    rows = {
        row["image_id"]: row
        for batch in scan(run.evidence_parts(), [name for name in COLUMNS if name != "verdict"])
        for row in batch.filter(pc.is_in(batch.column("image_id"), value_set=wanted)).to_pylist()
    }
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    quoting = csv.DictWriter(text, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for name in (*asked, *said):
        cells = {column: _no_formula(cell) for column, cell in rows[name].items()}
        # Python puts no quotes around a lone carriage return, and would read two rows.
        fitting = quoting if any("\r" in (cell or "") for cell in cells.values()) else writer
        fitting.writerow(cells | {"verdict": said.get(name, "")})
    write_text(text.getvalue(), run.review)


def _no_formula(text: str | None) -> str | None:
    return f"'{text}" if text is not None and _FORMULA.match(text) else text


def _as_it_was(cell: str | None) -> str | None:
    return cell[1:] if cell is not None and cell.startswith("'") and _FORMULA.match(cell) else cell


def _rows(path: Path) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    """Yield where a row stands, its image, its verdict, and the label that was looked at."""
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            names = _readable(pq.read_schema(path).names, path)
            table = pq.read_table(path, columns=names).cast(pa.schema([(name, pa.string()) for name in names]))
            for number, row in enumerate(table.to_pylist(), 1):
                yield f"row {number} of {path}", row["image_id"], row["verdict"], row.get("label_name")
            return
        with path.open(encoding="utf-8-sig", newline="") as text:
            head = text.readline()
            text.seek(0)
            reader = csv.DictReader(text, delimiter=max(_DELIMITERS, key=head.count))
            _readable(reader.fieldnames or (), path)
            for line in reader:
                image_id, label_name = _as_it_was(line["image_id"]), _as_it_was(line.get("label_name"))
                yield f"line {reader.line_num} of {path}", image_id, line["verdict"], label_name
    except OSError as error:
        raise VerdictsError(
            f"cannot read {path}: {error.strerror or error}; name another file as FILE of fixaudit review, or with "
            "--reviewed"
        ) from error
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise VerdictsError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _readable(names: Sequence[str], path: Path) -> list[str]:
    """Return the columns to read, two or three; VerdictsError where one of the two is missing, or one comes twice."""
    for name in ("image_id", "verdict"):
        if name not in names:
            listed = ", ".join(printable(one) for one in list(names)[:8]) or "nothing"
            raise VerdictsError(f"{path}: no column {name}; it has {listed}")
    read = [name for name in ("image_id", "verdict", "label_name") if name in names]
    for name in read:
        if (times := list(names).count(name)) > 1:
            raise VerdictsError(f"{path} has {times} columns {name}; keep one")
    return read
