"""Which images there are, and what each is said to show: a folder of class folders, or a CSV or Parquet manifest.

N images, K classes. The images are sorted by `image_id`; an image that cannot be read or whose label is unknown is a
row with a `problem`, never a gap.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.imagefolder import scan_image_folder
from pipeline.dataset.listing import Listing
from pipeline.dataset.manifestfile import read_manifest_file
from pipeline.errors import DatasetError
from pipeline.schema import MANIFEST

_SUGGESTIONS = 100  # unknown labels that get a nearest name; each costs a look at all K


@dataclass(frozen=True, slots=True, eq=False)  # tables have no single ==
class Shard:
    """A fixed list of images that is read, judged and written as one."""

    index: int
    """Position among the run's shards; number of the evidence part."""
    rows: pa.Table
    """Columns of `schema.MANIFEST`, then `problem` (string; null = none) and `fold` (int16; -1 = none)."""


@dataclass(frozen=True, slots=True, eq=False)  # tables have no single ==
class Manifest:
    """All images of a dataset with their given labels, in the order of `image_id`."""

    table: pa.Table
    """Columns of `schema.MANIFEST`; `uri` is an absolute path; label -1 where the given label is no class."""
    problem: pa.Array
    """string (N,): why the row cannot be audited, in words; null = nothing known against it."""
    class_names: tuple[str, ...]
    """K names; position = label."""
    warnings: tuple[str, ...]
    """What was left out or looks odd, one line each, for the user."""
    fingerprint: str
    """Hex digest of class names, ids, labels, file sizes and modification times."""

    def __len__(self) -> int:
        """Return N."""
        return int(self.table.num_rows)

    def shards(self, folds: npt.NDArray[np.integer] | None = None) -> list[Shard]:
        """Cut the images into their shards; `folds` (N,) in manifest order, left out: no folds (-1)."""
        if folds is None:
            folds = np.full(len(self), -1)
        assert folds.shape == (len(self),)
        rows = self.table.append_column("problem", self.problem)
        rows = rows.append_column("fold", pa.array(folds.astype(np.int16)))
        numbers = self.table["shard"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        stops = np.append(starts[1:], len(numbers))
        return [
            Shard(int(numbers[start]), rows.slice(start, stop - start))
            for start, stop in zip(starts, stops, strict=True)
        ]


def read_manifest(dataset: Path, *, class_names: Sequence[str] | None = None, shard_size: int = 256) -> Manifest:
    """List the images of `dataset`: an ImageFolder, or a .csv, .tsv or .parquet manifest.

    A folder holds one folder per class, or one folder per split (train, val, test, ...) that does; images in folders
    below a class folder belong to that class. Without `class_names` the classes are the folder names in code point
    order, as torchvision's ImageFolder has them, or the labels of the manifest (in number order if all are numbers).

    With `class_names`, labels are looked up by name; only if no label of the dataset is a name, integer labels are
    positions in `class_names`. Any other label becomes -1 with a `problem`.

    Shards are runs of neighbours in `image_id` order whose sizes differ by one at most, so none is left over small.

    Raises DatasetError: nothing there, no image, no class folder, a manifest without the needed columns or with an
    image twice, no label that is one of `class_names`.
    """
    if shard_size < 1:
        raise DatasetError(f"shard_size is {shard_size}; it must be 1 or more images")
    if dataset.is_dir():
        listing = scan_image_folder(dataset)
    elif dataset.is_file():
        listing = read_manifest_file(dataset)
    elif dataset.is_symlink() or dataset.exists():
        raise DatasetError(f"{dataset} is neither a folder nor a file that can be read")
    else:
        raise DatasetError(f"there is no {dataset}; give a folder of class folders, or a .csv or .parquet manifest")
    return _assemble(listing, dataset, class_names, shard_size)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return class names in the order of the model's outputs.

    The file is text with one name per line, or JSON: a list of names, or an object whose "names" is that list. Names
    may repeat (ImageNet has two cranes). Raises DatasetError.
    """
    names: Any
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(
            f"cannot read the class names in {path}: {error.strerror or error}; name another file with --classes"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"the class names in {path} are not UTF-8 text; save the file as UTF-8") from error
    if path.suffix.lower() != ".json" and not text.lstrip().startswith(("[", "{")):
        names = [line.strip() for line in text.rstrip().splitlines()]
    else:
        try:
            names = json.loads(text)
        except ValueError as error:
            raise DatasetError(f"the class names in {path} are not valid JSON: {error}") from error
        if isinstance(names, dict):
            names = names.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f'{path} must hold a JSON list of names, or an object with "names": [...]')
    if not names:
        raise DatasetError(f"{path} holds no class name; write one per line")
    if "" in names:
        raise DatasetError(f"class name {names.index('') + 1} in {path} is empty; write one per line")
    return tuple(names)


def _assemble(listing: Listing, dataset: Path, class_names: Sequence[str] | None, shard_size: int) -> Manifest:
    count = len(listing.image_id)
    if class_names is None:
        class_names = _classes_of(listing)
    given_names: list[str] = listing.label.dictionary.to_pylist()
    if not given_names or not class_names:
        raise DatasetError(f"{dataset} gives no image a label; fill its label column")
    labels = _Labels.look_up(given_names, tuple(class_names))
    given = listing.label.indices  # null where the manifest's cell is empty
    label = pc.fill_null(pa.array(labels.label, pa.int32()).take(given), -1)
    if pc.all(pc.equal(label, -1)).as_py():
        raise DatasetError(
            f"no label of {dataset} ({_some(given_names)}) is one of the "
            f"{len(class_names)} classes ({_some(class_names)}); give matching names with --classes FILE"
        )
    unlabelled = pc.if_else(pc.is_null(given), "the manifest gives this image no label", None)
    problem = pc.coalesce(listing.problem, pa.array(labels.problem, pa.string()).take(given), unlabelled)
    # shard = floor(row * shards / N): sizes differ by one at most
    shard = np.arange(count, dtype=np.int64) * math.ceil(count / shard_size) // count
    table = pa.table(
        {
            "image_id": listing.image_id,
            "uri": listing.uri,
            "label": label,
            "label_name": pc.fill_null(pa.array(labels.name, pa.string()).take(given), ""),
            "split": listing.split,
            "shard": pa.array(shard.astype(np.int32)),
        }
    ).cast(MANIFEST)
    return Manifest(
        table=table,
        problem=problem,
        class_names=tuple(class_names),
        warnings=listing.warnings,
        fingerprint=_fingerprint(listing, label, tuple(class_names)),
    )


def _classes_of(listing: Listing) -> tuple[str, ...]:
    names: list[str] = listing.label.dictionary.to_pylist()
    if not listing.numbers_in_order or any(_index(name) is None for name in names):
        return tuple(sorted(names))
    return tuple(sorted((name for name in names if int(name) >= 0), key=int))  # -1 is how people write "no label"


def _index(name: str) -> int | None:
    """Return the integer that `name` writes, the way `str` writes it; None if it is none."""
    digits = name.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or (len(digits) > 1 and digits[0] == "0") or len(digits) > 9:
        return None
    return int(name)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What each distinct given label means; parallel lists."""

    label: list[int]
    name: list[str]
    problem: list[str | None]

    @classmethod
    def look_up(cls, given: list[str], class_names: tuple[str, ...]) -> _Labels:
        positions: dict[str, list[int]] = {}
        for position, name in enumerate(class_names):
            positions.setdefault(name, []).append(position)
        by_name = any(name in positions for name in given)
        found = cls([], [], [])
        for name in given:
            index = _index(name)
            matches = positions.get(name, [])
            if not by_name and index is not None and 0 <= index < len(class_names):
                matches = [index]
            label = matches[0] if len(matches) == 1 else -1
            problem = None
            if len(matches) > 1:
                problem = f"class '{name}' stands for outputs {_some(matches)}; give the label as a number"
            elif not matches:
                problem = f"label '{name}' is not one of the {len(class_names)} classes"
                known = sum(text is not None for text in found.problem) < _SUGGESTIONS
                if known and (nearest := difflib.get_close_matches(name, class_names, 1)):
                    problem += f"; the nearest is '{nearest[0]}'"
            found.label.append(label)
            found.name.append(name if label < 0 else class_names[label])
            found.problem.append(problem)
        return found


def _some(values: Sequence[object], most: int = 3) -> str:
    shown = ", ".join(str(value) for value in values[:most])
    return f"{shown}, ..." if len(values) > most else shown


def _fingerprint(listing: Listing, label: pa.Array, class_names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    # a file name holds no NUL, so joined ids cannot be mistaken for other ids; the counts keep the parts apart
    for names in (class_names, listing.image_id.to_pylist()):
        digest.update(f"{len(names)}\0".encode() + "\0".join(names).encode() + b"\0")
    for numbers in (label.to_numpy(zero_copy_only=False), listing.size, listing.mtime_ns):
        digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()
