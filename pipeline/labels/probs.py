"""Probabilities that the user brings: read from Parquet or CSV, checked, put into the order of the manifest.

N images of the manifest, K classes.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.errors import ProbabilitiesError

SUM_TOLERANCE = 5e-3
"""How far a row's sum may lie from 1. float16 needs 0.5e-3; three decimals in a CSV need a few times that."""

_SHOWN = 3
_BATCH_ROWS, _BATCH_VALUES = 8192, 1 << 20
"""The most that is read at once; on the way it is held some five times over."""
_PREFIXES = ("p_", "prob_")


Excuse = Callable[[list[str]], Collection[str]]
"""Told the images that have no row, returns those of them that need none, as images that nobody can read."""


def _none_excused(_: list[str]) -> Collection[str]:
    return ()


def read_probabilities(
    path: Path, image_ids: Sequence[str], class_names: Sequence[str], *, excuse: Excuse = _none_excused
) -> npt.NDArray[np.float32]:
    """Return all of `stream_probabilities`, float32 (N, K) in the order of `image_ids`: for what fits into memory."""
    result = np.full((len(image_ids), len(class_names)), np.nan, dtype=np.float32)
    for place, values in stream_probabilities(path, image_ids, class_names, excuse=excuse):
        result[place] = values
    return result


def stream_probabilities(
    path: Path, image_ids: Sequence[str], class_names: Sequence[str], *, excuse: Excuse = _none_excused
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield out-of-sample probabilities from `path` a few thousand rows at a time: places, and (n, K) in [0, 1].

    Places are int64 (n,), positions in `image_ids`; each comes once, in the file's order, excused images last.

    The file has a column `image_id` and either a column `probs` with K numbers per row (in CSV as JSON text,
    "[0.1, 0.9]"), or one column per class: named as the classes, or `p_0` ... `p_{K-1}`, or `prob_0` ... `prob_{K-1}`.
    Other columns are ignored. The numbers are returned as they stand, not rescaled (only a 1.0001 of rounding becomes
    1).

    Args:
        path: a Parquet or CSV file, told apart by content.
        image_ids: the ids of the manifest.
        class_names: the K classes, in the order of the labels.
        excuse: asked at the end, if there are images without a row; those excused get one of NaN.

    Raises:
        ProbabilitiesError: on the way, the file cannot be read, columns are missing or of the wrong width; a row holds
            NaN or a number outside [0, 1], or does not sum to 1 within `SUM_TOLERANCE`; an image is there twice; at the
            end, one is not there, or is unknown.

    """
    wanted = pd.Index(list(image_ids))
    seen = np.zeros(len(image_ids), dtype=bool)
    unknown: list[str] = []
    unknown_count = 0
    try:
        for batch in _batches(path, class_names):
            column = batch.column("image_id").cast(pa.string())
            if column.null_count:
                raise ProbabilitiesError(f"{path}: a row has no image_id")
            ids: list[Any] = column.to_pylist()
            values = _values(path, ids, batch, class_names)
            place = wanted.get_indexer(pd.Index(ids)).astype(np.int64)
            known = place >= 0
            _check_once(path, image_ids, place[known], seen)
            seen[place[known]] = True
            yield place[known], np.minimum(values[known], 1.0).astype(np.float32)
            strangers = np.flatnonzero(~known).tolist()
            unknown += [ids[row] for row in strangers[: _SHOWN - len(unknown)]]
            unknown_count += len(strangers)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, csv.Error) as error:
        raise ProbabilitiesError(f"cannot read {path}: {_one_line(error)}") from error
    absent = np.flatnonzero(~seen)
    missing = [image_ids[at] for at in absent.tolist()]
    excused = set(excuse(missing)) if missing else set()
    _check_ids(path, len(image_ids), [one for one in missing if one not in excused], unknown, unknown_count)
    yield absent, np.full((len(absent), len(class_names)), np.nan, dtype=np.float32)


def _batches(path: Path, class_names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the id and probability columns, in class order, a few thousand rows at a time."""
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        # What is buffered before is kept until the end: the whole file.
        with pq.ParquetFile(path, pre_buffer=False) as parquet:
            columns = _columns(path, parquet.schema_arrow.names, class_names)
            rows = min(_BATCH_ROWS, max(1, _BATCH_VALUES // len(class_names)))
            for batch in parquet.iter_batches(rows, columns=columns):
                yield batch.select(columns)
        return
    header, blank = _header(path)
    columns = _columns(path, header, class_names)
    # Types are named, not guessed: ids may look like numbers, and a guess from the first rows can fail at a later one.
    number = pa.string() if _is_listed(columns, class_names) else pa.float64()
    kinds = dict.fromkeys(columns, number) | {"image_id": pa.string()}
    yield from pacsv.open_csv(
        path,
        read_options=pacsv.ReadOptions(skip_rows=blank),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(column_types=kinds, include_columns=columns),
    )


def _header(path: Path) -> tuple[list[str], int]:
    """Return the names of a CSV file's columns, and how many blank lines stand above them."""
    with path.open(encoding="utf-8-sig", newline="") as text:
        above = 0
        reader = csv.reader(text)
        for names in reader:
            if any(name.strip() for name in names):
                return names, above
            above = reader.line_num
    return [], 0


def _columns(path: Path, names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Return the columns to read, id first, then the probabilities in class order; each must be there once."""
    columns = _wanted(path, names, class_names)
    counts = Counter(names)
    for name in columns:
        if counts[name] > 1:
            raise ProbabilitiesError(f"{path} has {counts[name]} columns {name}; keep one")
    return columns


def _wanted(path: Path, names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    if "image_id" not in names:
        raise ProbabilitiesError(f"{path}: no column image_id; it has {_list(names)}")
    by_class = [name for name in class_names if name in names]
    if len(by_class) == len(class_names):
        return ["image_id", *class_names]
    if "probs" in names:
        return ["image_id", "probs"]
    for prefix in _PREFIXES:
        numbered = [name for name in names if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
        if not numbered:
            continue
        expected = [f"{prefix}{k}" for k in range(len(class_names))]
        if set(numbered) != set(expected):
            raise ProbabilitiesError(
                f"{path}: {len(numbered)} columns {prefix}0 ... do not fit the dataset's {len(class_names)} classes"
                f" (expected {expected[0]} to {expected[-1]})"
            )
        return ["image_id", *expected]
    if by_class:
        absent = [name for name in class_names if name not in names]
        raise ProbabilitiesError(f"{path}: no column for {len(absent)} of {len(class_names)} classes: {_list(absent)}")
    raise ProbabilitiesError(
        f"{path}: no probabilities; expected a list column probs, or one column per class named as the classes or p_0,"
        f" p_1, ...; it has {_list(names)}"
    )


def _is_listed(columns: Sequence[str], class_names: Sequence[str]) -> bool:
    """Tell one list column from one column per class; a class may be called probs."""
    return list(columns) == ["image_id", "probs"] and list(class_names) != ["probs"]


def _values(
    path: Path, ids: Sequence[str], batch: pa.RecordBatch, class_names: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Return the checked probabilities of one batch, float64 (n, K)."""
    count = len(class_names)
    if _is_listed(batch.schema.names, class_names):
        values = _list_values(path, ids, batch.column("probs"), count)
    else:
        columns = [batch.column(k).cast(pa.float64()).to_numpy(zero_copy_only=False) for k in range(1, count + 1)]
        values = np.stack(columns, axis=1)  # a null becomes NaN
    _check_values(path, ids, values)
    return values


def _list_values(path: Path, ids: Sequence[str], column: Any, count: int) -> npt.NDArray[np.float64]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pa.array([_parse(path, i, text) for i, text in zip(ids, column.to_pylist(), strict=True)])
    if not _is_list(column.type):
        raise ProbabilitiesError(f"{path}: column probs holds {column.type}, not lists of numbers")
    column = column.cast(pa.large_list(pa.float64()))
    width = pc.list_value_length(column).fill_null(0).to_numpy()
    if (width != count).any():
        row = int(np.flatnonzero(width != count)[0])
        raise ProbabilitiesError(f"{path}: {ids[row]} has {width[row]} probabilities, the dataset has {count} classes")
    flat: npt.NDArray[np.float64] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, count)


def _parse(path: Path, image_id: str, text: str | None) -> list[float]:
    try:
        numbers = json.loads(text or "")
        # An object and a text can be gone through as well, but what comes are keys and letters.
        if type(numbers) is not list or not all(type(number) in (int, float) for number in numbers):
            raise TypeError("not a list of numbers")
        return [float(number) for number in numbers]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProbabilitiesError(
            f"{path}: probs of {image_id} is {(text or '')[:40]!r}, not a JSON list such as [0.1, 0.9]"
        ) from error


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_values(path: Path, ids: Sequence[str], values: npt.NDArray[np.float64]) -> None:
    """Raise at the first row that is no distribution, saying what it looks like instead."""
    total = values.sum(axis=1)
    finite = np.logical_and.reduce(np.isfinite(values), axis=1)
    inside = (values.min(axis=1) >= 0) & (values.max(axis=1) <= 1 + SUM_TOLERANCE)
    good = finite & inside & (np.abs(total - 1) <= SUM_TOLERANCE)
    if good.all():
        return
    bad = np.flatnonzero(~good)
    row = int(bad[0])
    where = f"{path}: {ids[row]}"
    more = f"; wrong too: {_list([ids[at] for at in bad[1:]])}" if len(bad) > 1 else ""
    if not finite[row]:
        raise ProbabilitiesError(f"{where} has a missing or not finite probability{more}")
    low, high = values[row].min(), values[row].max()
    if abs(total[row] - 100) <= 100 * SUM_TOLERANCE and low >= 0:
        raise ProbabilitiesError(f"{where} sums to {total[row]:.4g}: these are percentages; divide them by 100{more}")
    if abs(total[row] - 1) > SUM_TOLERANCE and (low < 0 or high > 1):
        raise ProbabilitiesError(
            f"{where} has values from {low:.4g} to {high:.4g} that sum to {total[row]:.4g}: these look like logits;"
            f" apply softmax first{more}"
        )
    if not inside[row]:
        raise ProbabilitiesError(f"{where} has a value {low if low < 0 else high:.4g} outside [0, 1]{more}")
    raise ProbabilitiesError(
        f"{where} sums to {total[row]:.6g}, not 1; is a class missing, or are the numbers rounded too far?{more}"
    )


def _check_once(
    path: Path, image_ids: Sequence[str], position: npt.NDArray[np.integer], seen: npt.NDArray[np.bool_]
) -> None:
    distinct, times = np.unique(position, return_counts=True)
    again = distinct[(times > 1) | seen[distinct]].tolist()
    if again:
        raise ProbabilitiesError(f"{path}: {_list([image_ids[at] for at in again])} is there more than once")


def _check_ids(
    path: Path,
    image_count: int,
    missing: Sequence[str],
    unknown: Sequence[str],
    unknown_count: int,
) -> None:
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {image_count} images have no row: {_list(missing)}")
    if unknown_count:
        parts.append(f"{unknown_count} rows name no image of the dataset: {_list(unknown, unknown_count)}")
    if parts:
        raise ProbabilitiesError(f"{path}: {'; '.join(parts)} (image_id is the path relative to the dataset)")


def _list(names: Sequence[str], count: int | None = None) -> str:
    more = (len(names) if count is None else count) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "") if names else "no columns"


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
