"""Folders of class folders, with or without split folders above them."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.dataset.listing import Listing, in_id_order
from pipeline.errors import DatasetError

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
"""Folder names that mean a split, in any case, when all folders with images are named so."""

_USUAL_ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".tga",
        ".qoi",
    ]
)
_EXAMPLE = "an ImageFolder holds one folder per class (cats/1.jpg, dogs/2.jpg)"


@functools.cache
def image_endings() -> frozenset[str]:
    """Return the usual endings of image files that the installed Pillow can open, lower case with the dot."""
    Image.init()
    return frozenset(
        ending
        for ending, kind in Image.registered_extensions().items()
        if ending in _USUAL_ENDINGS and kind in Image.OPEN
    )


def scan_image_folder(root: Path) -> Listing:
    """List the images under `root`; the class is the first folder below it, or below the split folder.

    Symbolic links are followed, loops left out with a warning. Hidden files and folders are no part of the dataset.
    A link to nothing, a pipe, or a file whose name is not UTF-8 is a row with a problem. Raises DatasetError.
    """
    base = os.path.abspath(root)  # not resolved: the path stays as the user wrote it
    scan = _Scan()
    try:
        base.encode()
        scan.walk(base)
    except UnicodeEncodeError as error:
        raise DatasetError(f"the path {base!r} is not valid UTF-8; rename the folder") from error
    except OSError as error:
        raise DatasetError(f"cannot read the folder {root}: {error.strerror or error}") from error
    if not scan.names:
        held = f"it holds {_counted(scan.others.total(), 'other file')}" if scan.others else "it is empty"
        raise DatasetError(f"no image found under {root}: {held}; {_EXAMPLE}")
    return _classified(scan, base, root)


def _classified(scan: _Scan, base: str, root: Path) -> Listing:
    tops = sorted({folder[0] for folder, rows in scan.folders if folder and rows})
    if not tops:
        raise DatasetError(
            f"the images of {root} lie directly in it, without class folders; {_EXAMPLE}; "
            "or give a CSV manifest with the columns image and label"
        )
    depth = 1 if all(top.casefold() in SPLITS for top in tops) else 0  # where the class stands in the path
    if not any(len(folder) > depth and rows for folder, rows in scan.folders):
        raise DatasetError(
            f"the split folders of {root} ({', '.join(tops)}) hold images but no class folders; {_EXAMPLE}; "
            "or give a CSV manifest with the columns image and label"
        )
    # One entry per folder rather than per image, so that a million images cost a few array operations.
    rows = np.array([rows for _, rows in scan.folders])
    classed = np.repeat([len(folder) > depth for folder, _ in scan.folders], rows)
    labels = [folder[depth] if len(folder) > depth else "" for folder, _ in scan.folders]
    splits = [folder[0] if depth and folder else "" for folder, _ in scan.folders]
    of_row = pa.array(np.repeat(np.arange(len(rows)), rows)[classed])
    kept = np.flatnonzero(classed)
    image_id = pa.array(scan.names, pa.string()).take(pa.array(kept))
    prefix = base if base.endswith(os.sep) else base + os.sep
    warnings = list(scan.warnings)
    if len(kept) < len(scan.names):
        first = scan.names[int(np.flatnonzero(~classed)[0])]
        strays = _counted(len(scan.names) - len(kept), "image")
        warnings.append(f"left out {strays} in no class folder (first: {first})")
    held = {label for label, count in zip(labels, rows, strict=True) if count}
    if empty := sorted(scan.classes(depth) - held):
        warnings.append(f"left out {_counted(len(empty), 'class folder')} without images: {', '.join(empty[:5])}")
    if scan.others:
        kinds = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in scan.others.most_common(6))
        warnings.append(f"left alone {_counted(scan.others.total(), 'other file')}: {kinds}")
    return in_id_order(
        Listing(
            image_id=image_id,
            uri=pa.array([prefix + name for name in image_id.to_pylist()], pa.string()),
            label=pa.array(labels, pa.string()).take(of_row).dictionary_encode(),
            split=pa.array(splits, pa.string()).take(of_row),
            problem=pa.array([scan.problems.get(row) for row in kept.tolist()], pa.string()),
            size=np.array(scan.sizes, np.int64)[kept],
            mtime_ns=np.array(scan.mtimes, np.int64)[kept],
            warnings=tuple(warnings),
            numbers_in_order=False,
        )
    )


@dataclass(slots=True)
class _Scan:
    """What a walk over the tree found; `names`, `sizes` and `mtimes` are parallel, `folders` groups them in runs."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    folders: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    escaped: set[str] = field(default_factory=set)

    def classes(self, depth: int) -> set[str]:
        """Names of the folders at the level where classes stand."""
        return {folder[depth] for folder, _ in self.folders if len(folder) == depth + 1}

    def walk(self, base: str) -> None:
        """Visit every folder once per way that leads to it, never twice on one way."""
        pending: list[tuple[str, tuple[str, ...], dict[tuple[int, int], str]]] = [(base, (), {})]
        while pending:
            path, folder, above = pending.pop()
            shown = "/".join(folder) or base
            try:
                found = os.stat(path)
                identity = (found.st_dev, found.st_ino)
                if identity in above:
                    self.warnings.append(f"left out the link {shown}: it loops back to {above[identity]}")
                    continue
                with os.scandir(path) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                if not folder:
                    raise
                self.warnings.append(f"left out {shown}: {error.strerror or error}")
                continue
            below = {**above, identity: shown}
            before = len(self.names)
            folders = []
            for entry in listed:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append((entry.path, (*folder, _text(entry.name)), below))
                else:
                    self.add(entry, folder)
            pending.extend(reversed(folders))  # the last one in is the first one out
            self.folders.append((folder, len(self.names) - before))

    def add(self, entry: os.DirEntry[str], folder: tuple[str, ...]) -> None:
        """Note one file."""
        ending = os.path.splitext(entry.name)[1].lower()
        if ending not in image_endings():
            self.others[_text(ending)] += 1
            return
        problem = None
        size = mtime = 0
        try:
            found = entry.stat()
            size, mtime = found.st_size, found.st_mtime_ns
            if not stat.S_ISREG(found.st_mode):
                problem = "not a regular file"
        except OSError as error:
            link = "a link that leads nowhere: " if entry.is_symlink() else ""
            problem = f"{link}{error.strerror or error}"
        name = "/".join((*folder, _text(entry.name)))
        if not _is_utf8(entry.path):
            problem = "the path is not valid UTF-8; rename the file or its folder"
            while name in self.escaped:  # a byte and its written-out escape may meet; the latter sorts first
                name += "~"
        if "\\" in name:
            self.escaped.add(name)
        if problem is not None:
            self.problems[len(self.names)] = problem
        self.names.append(name)
        self.sizes.append(size)
        self.mtimes.append(mtime)


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(name: str) -> str:
    """Return `name` with bytes that are not UTF-8 written as backslash escapes."""
    return name if _is_utf8(name) else os.fsencode(name).decode("utf-8", "backslashreplace")
