"""Captured networks kept between runs: one small text file per network, in the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RunFolderError
from pipeline.files import write_text

_FILES = 64
"""Kept; beyond that the oldest go."""


def default_folder() -> Path:
    """Return where captured networks are kept: `fixaudit/graphs` in $XDG_CACHE_HOME, or in ~/.cache.

    Users without a home, as in some containers, get a folder that cannot be made: nothing is kept.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        cache = Path(os.devnull)
    return cache / "fixaudit" / "graphs"


class GraphCache(MutableMapping[str, str]):
    """Texts by digest, each in a file of its own, whole or not there.

    A folder that cannot be read or written holds nothing: that costs a few seconds a run, and no result.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, key: str) -> str:
        try:
            return self._path(key).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeyError(key) from error

    def __setitem__(self, key: str, text: str) -> None:
        with suppress(OSError, RunFolderError):
            write_text(text, self._path(key))
            for old in self._by_age()[:-_FILES]:
                old.unlink(missing_ok=True)

    def __delitem__(self, key: str) -> None:
        try:
            self._path(key).unlink()
        except OSError as error:
            raise KeyError(key) from error

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in self._by_age())

    def __len__(self) -> int:
        return len(self._by_age())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _by_age(self) -> list[Path]:
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError):  # another run may remove it at the same time
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]
