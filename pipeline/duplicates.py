"""Images that are there twice with different labels: the same bytes, so at most one label is right.

N images. Of all of them 8 bytes are held each; names are read only for those that have a twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.audit import scan

_PREFIX = 15
"""Hex digits of a digest that fit an int64; whole digests are compared where these agree."""


@dataclass(frozen=True, slots=True)
class Twin:
    """One of several files with the same bytes."""

    image_id: str
    label_name: str


def conflicting_copies(parts: Sequence[Path]) -> list[tuple[Twin, ...]]:
    """Return the groups of readable images with the same SHA-256 and more than one label, members by image_id.

    Groups are in the order of their first member. Labels are compared by name, so that an unknown one counts too.
    """
    prefixes = [np.zeros(0, np.int64)]
    for batch in scan(parts, ["status", "sha256"]):
        prefixes.append(_prefixes(batch.filter(_readable(batch))))
    values, times = np.unique(np.concatenate(prefixes), return_counts=True)
    repeated = values[times > 1]
    if not len(repeated):
        return []
    groups: dict[str, list[Twin]] = {}
    for batch in scan(parts, ["image_id", "status", "sha256", "label_name"]):
        readable = batch.filter(_readable(batch))
        twins = readable.filter(np.isin(_prefixes(readable), repeated))
        for row in twins.to_pylist():
            groups.setdefault(row["sha256"], []).append(Twin(row["image_id"], row["label_name"] or ""))
    conflicts = [
        tuple(sorted(group, key=lambda twin: twin.image_id))
        for group in groups.values()
        if len({twin.label_name for twin in group}) > 1
    ]
    return sorted(conflicts, key=lambda group: group[0].image_id)


def _readable(batch: Any) -> Any:
    return pc.and_(pc.equal(batch.column("status"), "ok"), batch.column("sha256").is_valid())


def _prefixes(batch: Any) -> NDArray[np.int64]:
    return np.array([int(digest[:_PREFIX], 16) for digest in batch.column("sha256").to_pylist()], dtype=np.int64)
