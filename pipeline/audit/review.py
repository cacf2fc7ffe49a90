"""Asking people: which images are worth a look, as a list and as pictures, and reading what they said.

`review.csv` has a row per image with a column `verdict` to fill in; `review.html` shows the same images and writes the
same file. What was said before stands in it too, so that the latest file holds all.
"""

from __future__ import annotations

import csv
import io
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


def read_verdicts(path: Path, *, may_be_empty: bool = False) -> dict[str, Said]:
    """Return what people said of labels, by image_id.

    The file has columns `image_id` and `verdict`, `right` or `wrong` in any case, and maybe `label_name`; rows without
    a verdict are left out, other columns are ignored. CSV may part its columns by comma, semicolon or tab; Parquet is
    told by content.

    Raises:
        VerdictsError: the file cannot be read or lacks a column; a verdict is another word; one image is called both
            right and wrong; there is no verdict in it at all (unless it `may_be_empty`).

    """
    verdicts: dict[str, Said] = {}
    for where, image_id, word, label_name in _rows(path):
        said = (word or "").strip().lower()
        if not said:
            continue
        if said not in WORDS:
            raise VerdictsError(f'{where}: "{printable(word)}" is no verdict; write right or wrong, or leave it empty')
        if not image_id:
            raise VerdictsError(f"{where}: a verdict without an image_id")
        one = Said(said == WORDS[WRONG], label_name or None)
        if verdicts.setdefault(image_id, one).wrong != one.wrong:
            raise VerdictsError(f"{where}: {printable(image_id)} is called both right and wrong")
    if not verdicts and not may_be_empty:
        shown = path.with_suffix(".html")
        where = f", or say it in {shown}" if shown.is_file() else ""
        raise VerdictsError(f"there is no verdict in {path} yet; write right or wrong into its column verdict{where}")
    return verdicts


def known_verdicts(verdicts: Mapping[str, Said], manifest: pa.Table, path: Path) -> tuple[dict[str, bool], list[str]]:
    """Return which labels are wrong (True) or right, of the manifest's images, and a warning for each kind left out.

    Left out are verdicts on images that are not in `manifest` (columns `image_id`, `label_name`), and on labels that
    have been changed since.

    Raises VerdictsError if none of the images is known: then the file is of another dataset.
    """
    place = pc.index_in(pa.array(verdicts, pa.string()), value_set=manifest["image_id"]).to_pylist()
    found: dict[str, bool] = {}
    strangers, changed = [], []
    for (image_id, said), at in zip(verdicts.items(), place, strict=True):
        if at is None:
            strangers.append(image_id)
        elif said.label_name not in (None, manifest["label_name"][at].as_py()):
            changed.append(image_id)
        else:
            found[image_id] = said.wrong
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
    writer.writeheader()
    writer.writerows({**rows[name], "verdict": said.get(name, "")} for name in (*asked, *said))
    write_text(text.getvalue(), run.review)


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
                yield f"line {reader.line_num} of {path}", line["image_id"], line["verdict"], line.get("label_name")
    except OSError as error:
        raise VerdictsError(
            f"cannot read {path}: {error.strerror or error}; name another file as FILE of fixaudit review, or with "
            "--reviewed"
        ) from error
    except (pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise VerdictsError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _readable(names: Sequence[str], path: Path) -> list[str]:
    """Return the columns to read, two or three; VerdictsError where one of the two is missing."""
    for name in ("image_id", "verdict"):
        if name not in names:
            listed = ", ".join(printable(one) for one in list(names)[:8]) or "nothing"
            raise VerdictsError(f"{path}: no column {name}; it has {listed}")
    return [name for name in ("image_id", "verdict", "label_name") if name in names]
