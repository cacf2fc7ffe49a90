"""Writing files so that a reader finds a whole one or none: write beside, flush, rename. And their digest."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from pipeline.errors import OtherVersionError, RunFolderError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place at once, on failure it is removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write `table` under exactly `schema`, zstd-compressed; a column missing or of another type raises ValueError."""
    if table.schema.names != schema.names:
        raise ValueError(f"{path.name}: columns {table.schema.names} are not the declared {schema.names}")
    with replacing(path) as partial:
        pq.write_table(table.cast(schema), partial, compression="zstd")


def write_text(text: str, path: Path) -> None:
    """Write UTF-8 text."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON; NaN and infinities raise ValueError rather than produce a file others cannot read."""
    write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def read_json(path: Path, keys: Collection[str], *, version: int | None = None) -> dict[str, Any]:
    """Return the JSON object in a file of a run.

    Raises RunFolderError for one that is damaged, or lacks one of `keys`, and before that OtherVersionError for one
    whose `schema` is another than `version`.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"cannot read {path}: {error}; run the audit again") from error
    if version is not None and isinstance(told, dict) and told.get("schema") != version:
        raise OtherVersionError(path.parent)
    absent = [key for key in keys if not isinstance(told, dict) or key not in told]
    if absent or not isinstance(told, dict):
        what = ", ".join(absent[:3])
        raise RunFolderError(f"{path} is not what fixaudit wrote: it has no {what}; run the audit again")
    return told


def sha256_of(path: Path) -> str:
    """Return the digest of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
