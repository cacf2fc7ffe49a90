"""Taking a run folder: a new one, one whose run was stopped, or a complete one that is to be replaced."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import RunFolderError
from pipeline.files import write_text
from pipeline.runfolder import RunFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def check_out(out: Path, dataset: Path) -> None:
    """Raise RunFolderError, before any work, where run folders cannot be made.

    They may not lie inside the dataset either: the next audit would find them there.
    """
    if dataset.is_dir() and out.resolve().is_relative_to(dataset.resolve()):
        raise RunFolderError(f"{out} lies inside the dataset {dataset}; choose another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise RunFolderError(f"cannot write into {out}: {error.strerror or error}; choose another --out") from error


def check_junit(path: Path) -> None:
    """Raise RunFolderError, before any work, where the JUnit file cannot be written; nothing is made."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=next(above for above in path.absolute().parents if above.exists())):
            pass
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}; choose another --junit") from error


def refuse_complete(folder: RunFolder) -> None:
    """Raise RunFolderError where a complete run stands."""
    if folder.is_complete:
        raise RunFolderError(
            f"{folder.path} holds a complete run already: see {folder.report}, or run again with --overwrite"
        )


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Keep the folder to this process; the system lets go of it when the process ends, however it ends.

    Raises RunFolderError where another process holds it, and where it cannot be made. On file systems that know no
    locks nothing is held.
    """
    try:
        if folder.path.is_file():
            raise _not_ours(folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.path, os.O_RDONLY)
    except OSError as error:
        raise RunFolderError(f"cannot write {folder.path}: {error.strerror or error}") from error
    try:
        if fcntl is not None:
            with suppress(OSError):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise RunFolderError(
                        f"{folder.path} is being written by another process; wait for it, or choose another --name"
                    ) from error
        yield
    finally:
        os.close(handle)


def claim_folder(folder: RunFolder, fingerprint: str, *, overwrite: bool) -> bool:
    """Make the folder ready for the run with this fingerprint; True if a stopped run of the same can go on in it.

    What a complete run (with `overwrite`) or a stopped run of other settings or data left is removed; nothing else
    ever is.

    Raises RunFolderError: a complete run without `overwrite`, a folder that holds something else, one that cannot be
    written.
    """
    marker = folder.work / "fingerprint"
    if not overwrite:
        refuse_complete(folder)
    try:
        if not folder.is_complete and not marker.is_file() and _holds_something(folder):
            raise _not_ours(folder)
        goes_on = not folder.is_complete and marker.is_file() and marker.read_text(encoding="utf-8") == fingerprint
        if not goes_on:
            _clear(folder, marker)
        for where in (folder.path.glob, folder.evidence.glob, folder.work.rglob):
            for left in where(".*.partial"):  # of a killed process
                left.unlink()
        write_text(fingerprint, marker)
    except OSError as error:
        raise RunFolderError(f"cannot write {folder.path}: {error.strerror or error}") from error
    return goes_on


def _not_ours(folder: RunFolder) -> RunFolderError:
    return RunFolderError(f"{folder.path} is there and is no run of fixaudit; choose another --name or --out")


def _holds_something(folder: RunFolder) -> bool:
    """Whether there is more than what a run that was killed at once leaves: an empty work folder."""
    if not folder.path.is_dir():
        return folder.path.exists()
    return any(path.is_file() or path != folder.work for path in folder.path.rglob("*") if path.suffix != ".partial")


def _clear(folder: RunFolder, marker: Path) -> None:
    # A marker before all else, by which the folder is known as ours whenever this is stopped, and then run.json: from
    # then on it is no complete run. review.csv stays until the new run writes its own: a person's work is in it.
    if folder.is_complete:
        write_text("", marker)
    pages = (folder.report, folder.review_page)
    for path in (folder.run_json, *pages, folder.summary, folder.issues, folder.audit, folder.manifest):
        path.unlink(missing_ok=True)
    if folder.evidence.is_dir():
        shutil.rmtree(folder.evidence)
    for path in folder.work.iterdir() if folder.work.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != marker:
            path.unlink()
