"""Manifests that people write: CSV, TSV or Parquet with a column of image paths and a column of labels.

A manifest may come from anywhere, so its paths are never trusted: only files below the manifest's own folder are read,
also where links are on the way.
"""

from __future__ import annotations

import csv
import functools
import os
import posixpath
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.dataset.listing import Listing, in_id_order
from pipeline.errors import DatasetError

IMAGE_COLUMNS = (
    "image",
    "path",
    "image_path",
    "file",
    "file_path",
    "filepath",
    "filename",
    "file_name",
    "image_id",
    "uri",
)
"""Columns that may hold the path, best first; upper and lower case are the same."""
LABEL_COLUMNS = ("label_name", "class_name", "label", "class", "category", "target")
"""Columns that may hold the label, best first: a name says more than a number."""

_BETWEEN_LABELS = (";", "|", ",", " ")
_FEW_JOINED = 2
_ONE_LABEL = "several labels per image are not supported: give one per image, or audit one label at a time as yes or no"
SPLIT_COLUMNS = ("split", "subset")
"""Columns that may hold the split; none is needed."""

# A path that is more than names joined by single slashes: everything else is taken as it is, a million at a time.
_NEEDS_A_LOOK = r"^$|^/|/$|//|(^|/)\.{1,2}(/|$)|\\|\x00|^[A-Za-z][A-Za-z0-9+.-]*://"
_LEADS_OUT = "a link leads out of the manifest's folder; put the manifest above what it names"
_STAT_BLOCK = 4096
_STAT_THREADS = 8  # for network file systems, where each look takes a millisecond and holds no lock


def read_manifest_file(path: Path) -> Listing:
    """List the images that `path` names.

    Paths are relative to the manifest's folder, or absolute and inside it; anything else, a link that leads out of it,
    and a file that is not there, is a row with a problem. Blanks around labels are dropped; an empty cell is no label.

    Raises DatasetError: not such a file, no image or label column, an image named twice, no image that can be read.
    """
    base = os.path.abspath(path.parent)
    try:
        os.path.join(base, path.name).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"the path {str(path)!r} is not valid UTF-8; rename the folder or the file") from error
    ending = path.suffix.lower()
    if ending == ".parquet":
        columns = _from_parquet(path)
    elif ending in (".csv", ".tsv"):
        columns = _from_csv(path)
    else:
        raise DatasetError(
            f"{path} is neither a folder of class folders nor a .csv, .tsv or .parquet manifest; give one of these"
        )
    if not len(columns.image):
        raise DatasetError(f"{path} names no image; it needs one row per image")
    image_id, problem = _inside(columns.image, base)
    _no_duplicates(image_id, path)
    prefix = base if base.endswith(os.sep) else base + os.sep
    uri = pc.if_else(
        pc.is_valid(problem), pc.coalesce(columns.image, ""), pc.binary_join_element_wise(prefix, image_id, "")
    )
    found = _look_at(uri, problem, base)
    if not pc.any(pc.is_null(found.problem)).as_py():
        first = f"{image_id[0].as_py()}: {found.problem[0].as_py()}"
        raise DatasetError(f"none of the {len(uri)} images in {path} can be read ({first}); paths start at {base}")
    return in_id_order(
        Listing(
            image_id=image_id,
            uri=uri,
            label=_trimmed(columns.label).dictionary_encode(),
            split=pc.fill_null(_trimmed(columns.split), ""),
            problem=found.problem,
            size=found.size,
            mtime_ns=found.mtime_ns,
            warnings=(),
            numbers_in_order=True,
        )
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """string arrays of N rows, as written; null where the cell is empty."""

    image: pa.Array
    label: pa.Array
    split: pa.Array


def _from_csv(path: Path) -> _Columns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            blank, first = next(((above, line) for above, line in enumerate(lines) if line.strip()), (0, ""))
        delimiter = max(",\t;", key=first.count)
        header = next(csv.reader([first], delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except csv.Error as error:
        raise DatasetError(f"{path} is not valid CSV: {error}") from error
    chosen = _choose(header, path)
    wanted = [name for name in chosen if name is not None]
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(skip_rows=blank),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=[""],  # a class may well be called "NA" or "null"
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not valid CSV: {_one_line(error)}") from error
    return _columns(table, chosen, path)


def _from_parquet(path: Path) -> _Columns:
    try:
        file = pq.ParquetFile(path)
        chosen = _choose(file.schema_arrow.names, path)
        table = file.read([name for name in chosen if name is not None])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not a readable Parquet file: {_one_line(error)}") from error
    return _columns(table, chosen, path)


def _choose(names: list[str], path: Path) -> tuple[str, str, str | None]:
    """Return the names, as written, of the image, label and split columns."""
    written = {name.strip().casefold(): name for name in reversed(names)}

    def pick(candidates: tuple[str, ...]) -> str | None:
        return next((written[name] for name in candidates if name in written), None)

    image, label, split = pick(IMAGE_COLUMNS), pick(LABEL_COLUMNS), pick(SPLIT_COLUMNS)
    there = ", ".join(names) or "none"
    if image is None:
        raise DatasetError(f"{path} has no column of image paths; name one 'image' (its columns: {there})")
    if label is None:
        raise DatasetError(f"{path} has no column of labels; name one 'label' (its columns: {there})")
    for name in (image, label, split):
        same = [other for other in names if name is not None and other.strip().casefold() == name.strip().casefold()]
        if len(same) > 1:
            raise DatasetError(f"{path} has {len(same)} columns '{same[0].strip()}'; keep one")
    return image, label, split


def _columns(table: pa.Table, chosen: tuple[str, str, str | None], path: Path) -> _Columns:
    image, label, split = chosen
    empty = pa.nulls(table.num_rows, pa.string())
    labels = _as_text(table[label], label, path)
    _refuse_several(labels, label, path)
    return _Columns(
        image=_as_text(table[image], image, path),
        label=labels,
        split=empty if split is None else _as_text(table[split], split, path),
    )


def _as_text(column: pa.ChunkedArray, name: str, path: Path) -> pa.Array:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise DatasetError(f"column '{name}' of {path} holds lists; {_ONE_LABEL}")
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = kind.value_type
    try:
        column.validate(full=True)  # a Parquet file may hold text that is not UTF-8
        if pa.types.is_floating(kind):  # what pandas makes of integers with a gap
            column = column.cast(pa.int64())
        elif not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            column = column.cast(pa.string()) if kind == pa.string_view() else None
        if column is None:
            raise DatasetError(f"column '{name}' of {path} holds {kind}; it must hold text or whole numbers")
        return pa.chunked_array(column.cast(pa.string()).chunks, pa.string()).combine_chunks()
    except pa.ArrowInvalid as error:
        raise DatasetError(f"column '{name}' of {path} is not text or whole numbers: {_one_line(error)}") from error


def _refuse_several(labels: pa.Array, name: str, path: Path) -> None:
    """Raise DatasetError where cells hold several labels, as "cat;dog": the parts are labels of other images.

    Class names may hold such signs themselves ("tench, Tinca tinca"), so a few cells that look so are let in.
    """
    texts = pc.unique(pc.utf8_trim_whitespace(labels.drop_null())).to_pylist()
    alone = set(texts)
    for sign in _BETWEEN_LABELS:
        joined = [text for text in texts if sign in text]
        several = [text for text in joined if all(part.strip() in alone for part in text.split(sign))]
        if len(several) > len(joined) / 2 and len(several) > _FEW_JOINED:
            shown = ", ".join(repr(text[:60]) for text in sorted(several)[:3])
            raise DatasetError(f"column '{name}' of {path} holds several labels in one cell ({shown}); {_ONE_LABEL}")


def _trimmed(texts: pa.Array) -> pa.Array:
    texts = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _inside(written: pa.Array, base: str) -> tuple[pa.Array, pa.Array]:
    """Return ids relative to `base`, and a problem for each path that does not lie there."""
    for folder in {base, os.path.realpath(base)}:
        prefix = folder if folder.endswith("/") else folder + "/"
        rest = pc.utf8_slice_codeunits(written, len(prefix))
        written = pc.if_else(pc.starts_with(written, prefix), rest, written)
    look = pc.fill_null(pc.match_substring_regex(written, _NEEDS_A_LOOK), True)
    rows = np.flatnonzero(look.to_numpy(zero_copy_only=False))
    if not len(rows):
        return written, pa.nulls(len(written), pa.string())
    ids: list[str] = []
    problems: list[str | None] = []
    for row, text in zip(rows.tolist(), written.take(pa.array(rows)).to_pylist(), strict=True):
        image_id, problem = _inside_one(text, row, base)
        ids.append(image_id)
        problems.append(problem)
    at = np.full(len(written), -1)
    at[rows] = np.arange(len(rows))
    place = pa.array(at, mask=at < 0)
    return pc.coalesce(pa.array(ids, pa.string()).take(place), written), pa.array(problems, pa.string()).take(place)


def _inside_one(text: str | None, row: int, base: str) -> tuple[str, str | None]:
    if not text:
        return f"(row {row + 1})", "the manifest names no image here"
    if "\0" in text:
        return text.replace("\0", "\\0"), "the path holds a NUL character"
    if "://" in text:
        return text, "a web address; only files beside the manifest are read"
    if "\\" in text and not os.path.lexists(os.path.join(base, text)):
        text = text.replace("\\", "/")  # written on Windows
    image_id = posixpath.normpath(text)
    if image_id.startswith("/"):
        return image_id, "an absolute path outside the manifest's folder"
    if image_id == ".." or image_id.startswith("../"):
        return image_id, "the path leads out of the manifest's folder"
    return image_id, None


def _no_duplicates(image_id: pa.Array, path: Path) -> None:
    counts = pc.value_counts(image_id)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        shown = ", ".join(sorted(twice.to_pylist())[:3]) + (", ..." if len(twice) > 3 else "")
        raise DatasetError(
            f"{path} names images more than once ({len(twice)}: {shown}); an image has one row and one label: "
            "remove the others"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Files:
    problem: pa.Array
    size: npt.NDArray[np.int64]
    mtime_ns: npt.NDArray[np.int64]


class _Inside:
    """Tells whether a file lies below a folder when links are followed; each folder on the way is asked once."""

    def __init__(self, base: str) -> None:
        real = os.path.realpath(base)
        self._prefix = real if real.endswith(os.sep) else real + os.sep
        self._folders: dict[str, bool] = {}

    def holds_folder_of(self, path: str) -> bool:
        folder = os.path.dirname(path)
        found = self._folders.get(folder)
        if found is None:
            found = self._folders[folder] = (os.path.realpath(folder) + os.sep).startswith(self._prefix)
        return found

    def holds(self, path: str) -> bool:
        return os.path.realpath(path).startswith(self._prefix)


def _look_at(uri: pa.Array, problem: pa.Array, base: str) -> _Files:
    """Look at every file that is not a problem already: does it lie below `base`, is it there, how large, how old."""
    rows = np.flatnonzero(pc.is_null(problem).to_numpy(zero_copy_only=False))
    paths: list[str] = uri.take(pa.array(rows)).to_pylist()
    blocks = [paths[start : start + _STAT_BLOCK] for start in range(0, len(paths), _STAT_BLOCK)]
    look = functools.partial(_look_at_block, inside=_Inside(base))
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = [entry for block in pool.map(look, blocks) for entry in block]
    size = np.zeros(len(uri), np.int64)
    mtime_ns = np.zeros(len(uri), np.int64)
    problems: list[str | None] = problem.to_pylist()
    size[rows] = [entry[0] for entry in found]
    mtime_ns[rows] = [entry[1] for entry in found]
    for row, entry in zip(rows.tolist(), found, strict=True):
        if entry[2] is not None:
            problems[row] = entry[2]
    return _Files(pa.array(problems, pa.string()), size, mtime_ns)


def _look_at_block(paths: list[str], inside: _Inside) -> list[tuple[int, int, str | None]]:
    found: list[tuple[int, int, str | None]] = []
    for path in paths:
        try:
            at = os.lstat(path) if inside.holds_folder_of(path) else None
            if at is not None and stat.S_ISLNK(at.st_mode):
                at = os.stat(path) if inside.holds(path) else None
        except OSError as error:
            found.append(
                (0, 0, "no such file" if isinstance(error, FileNotFoundError) else error.strerror or "unreadable")
            )
            continue
        if at is None:
            found.append((0, 0, _LEADS_OUT))
            continue
        found.append((at.st_size, at.st_mtime_ns, None if stat.S_ISREG(at.st_mode) else "not a regular file"))
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
