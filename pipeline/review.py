"""Asking people: which images are worth a look, as a list and as pictures, and reading what they said.

`review.csv` has a row per image with a column `verdict` to fill in; `review.html` shows the same images and writes the
same file. What was said before stands in it too, so that the latest file holds all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit import scan
from pipeline.errors import VerdictsError
from pipeline.files import write_text
from pipeline.runfolder import RunFolder
from pipeline.wording import amount, printable

COLUMNS = ("image_id", "label_name", "pred_name", "verdict", "uri")

_WORDS = {"wrong": True, "right": False}
_DELIMITERS = ",;\t"  # spreadsheets write all three
_SHOWN = 3


def read_verdicts(path: Path) -> dict[str, bool]:
    """Return what people said of labels, by image_id: True, the label is wrong; False, it is right.

    The file has columns `image_id` and `verdict`, `right` or `wrong` in any case; rows without a verdict are left out,
    other columns are ignored. CSV may part its columns by comma, semicolon or tab; Parquet is told by content.

    Raises:
        VerdictsError: the file cannot be read or lacks a column; a verdict is another word; one image is called both
            right and wrong; there is no verdict in it at all.

    """
    verdicts: dict[str, bool] = {}
    for where, image_id, word in _rows(path):
        said = (word or "").strip().lower()
        if not said:
            continue
        if said not in _WORDS:
            raise VerdictsError(f'{where}: "{printable(word)}" is no verdict; write right or wrong, or leave it empty')
        if not image_id:
            raise VerdictsError(f"{where}: a verdict without an image_id")
        if verdicts.setdefault(image_id, _WORDS[said]) != _WORDS[said]:
            raise VerdictsError(f"{where}: {printable(image_id)} is called both right and wrong")
    if not verdicts:
        shown = path.with_suffix(".html")
        where = f", or say it in {shown}" if shown.is_file() else ""
        raise VerdictsError(f"there is no verdict in {path} yet; write right or wrong into its column verdict{where}")
    return verdicts


def known_verdicts(verdicts: Mapping[str, bool], image_ids: Any, path: Path) -> tuple[dict[str, bool], str | None]:
    """Return the verdicts on images among `image_ids` (an arrow column), and a warning about the others, if any.

    Raises VerdictsError if none of the images is known: then the file is of another dataset.
    """
    names = pa.array(verdicts, pa.string())
    known = pc.is_in(names, value_set=image_ids)
    strangers = names.filter(pc.invert(known)).to_pylist()
    if not strangers:
        return dict(verdicts), None
    named = ", ".join(printable(name) for name in strangers[:_SHOWN]) + (", ..." if len(strangers) > _SHOWN else "")
    if len(strangers) == len(verdicts):
        raise VerdictsError(f"{path} is of another dataset: none of its images is here ({named})")
    found = {name: verdicts[name] for name in names.filter(known).to_pylist()}
    return found, f"{amount(len(strangers), 'verdict')} in {path} left out, of images that are not here: {named}"


def earlier_verdicts(run: RunFolder) -> dict[str, bool]:
    """Return the verdicts that the run's audit took into account; none where it is of an older version."""
    if "verdict" not in pq.read_schema(run.audit).names:
        return {}
    table = pq.read_table(run.audit, columns=["image_id", "verdict"], filters=pc.field("verdict").is_valid())
    return {name: _WORDS[word] for name, word in zip(*(column.to_pylist() for column in table.columns), strict=True)}


def images_to_review(run: RunFolder) -> list[str]:
    """Return the ids of the images that are worth a look, the most suspicious first."""
    table = pq.read_table(run.audit, columns=["image_id", "label_score"], filters=pc.field("is_worth_a_look"))
    return [str(name) for name in table.sort_by([("label_score", "ascending"), ("image_id", "ascending")])["image_id"]]


def write_review_list(run: RunFolder) -> None:
    """Write review.csv: the images worth a look, then those that have a verdict already."""
    asked = images_to_review(run)
    said = {name: "wrong" if wrong else "right" for name, wrong in sorted(earlier_verdicts(run).items())}
    wanted = pa.array([*asked, *said], pa.string())
    rows = {
        row["image_id"]: row
        for batch in scan(run.evidence_parts(), [name for name in COLUMNS if name != "verdict"])
        for row in batch.filter(pc.is_in(batch.column("image_id"), value_set=wanted)).to_pylist()
    }
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**rows[name], "verdict": said.get(name, "")} for name in (*asked, *said))
    write_text(text.getvalue(), run.review)


def _rows(path: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield where a row stands, its image and its verdict."""
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            names = pq.read_schema(path).names
            _require_columns(names, path)
            table = pq.read_table(path, columns=["image_id", "verdict"]).cast(_TEXTS)
            for number, row in enumerate(table.to_pylist(), 1):
                yield f"row {number} of {path}", row["image_id"], row["verdict"]
            return
        with path.open(encoding="utf-8-sig", newline="") as text:
            head = text.readline()
            text.seek(0)
            delimiter = max(_DELIMITERS, key=head.count)
            reader = csv.DictReader(text, delimiter=delimiter)
            _require_columns(reader.fieldnames or (), path)
            for line in reader:
                yield f"line {reader.line_num} of {path}", line["image_id"], line["verdict"]
    except OSError as error:
        raise VerdictsError(f"cannot read {path}: {error.strerror or error}") from error
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise VerdictsError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


_TEXTS = pa.schema([("image_id", pa.string()), ("verdict", pa.string())])


def _require_columns(names: Any, path: Path) -> None:
    for name in ("image_id", "verdict"):
        if name not in names:
            listed = ", ".join(printable(one) for one in list(names)[:8]) or "nothing"
            raise VerdictsError(f"{path}: no column {name}; it has {listed}")
