"""Images that are there twice, with different labels or in different splits: the same bytes, or the same picture.

N images. The same picture saved anew (resized, compressed, recoloured a little) has other bytes and nearly the same
thumbnail: grey, 8 x 8, less its mean, at unit length. Two such thumbnails that correlate by `SAME_PICTURE` are one
picture. They are found by a k-d tree (scipy) over their lowest frequencies: an orthonormal transform keeps distances,
and to leave out frequencies can only make them smaller, so that nothing near is missed; candidates are then compared
whole. Of each image some 300 bytes are held; names are read only for those that have a twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from pipeline.audit.flags import scan
from pipeline.dataset.images import THUMBNAIL, levels

SAME_PICTURE = 0.995
"""Correlation from which two thumbnails are one picture. Measured (benchmarks/near_duplicates.py): photographs
compressed to JPEG quality 30, halved, blurred or at lower contrast stay above 0.998, different ones below 0.93."""

_LOWEST = 4
"""Frequencies along each side that the tree looks at: 15 numbers without the mean, most of a picture's variance."""

_FLAT = 2.0
"""Deviation of a thumbnail's grey levels below which there is no picture in it to compare; noise would decide."""

_MOST_COPIES = 50
"""Different files in a group up to which near thumbnails are copies of one picture. More are one scene, taken again and
again by a camera that stands still; then only the same bytes are copies."""

_CHUNK_ROWS = 1 << 16

_NEIGHBOURS = 8
"""Twins asked for of each picture; of more than that, the twins of its twins are found too."""


@dataclass(frozen=True, slots=True)
class Twin:
    """One of several files with the same picture."""

    image_id: str
    label_name: str
    split: str
    """Empty where the dataset has no splits."""
    sha256: str


def conflicting_copies(parts: Sequence[Path], manifest: Path | None = None) -> list[tuple[Twin, ...]]:
    """Return the groups of readable images of one picture with more than one label or split, members by image_id.

    Groups are in the order of their first member. Labels are compared by name, so that an unknown one counts too.
    `manifest` is where the splits are; without it, or them, only labels are compared.
    """
    digests, thumbnails = [np.zeros((0, 4), np.int64)], [np.zeros((0, THUMBNAIL**2), np.uint8)]
    for batch in scan(parts, ["status", "sha256", "thumbnail"]):
        readable = batch.filter(_readable(batch))
        digests.append(_digests(readable.column("sha256")))
        thumbnails.append(levels(readable.column("thumbnail")))
    group = _groups(np.concatenate(digests), np.concatenate(thumbnails))
    repeated = np.flatnonzero(np.bincount(group) > 1) if len(group) else np.zeros(0, np.int64)
    if not len(repeated):
        return []
    members: dict[int, list[Twin]] = {}
    start = 0
    for batch in scan(parts, ["image_id", "status", "sha256", "label_name"]):
        readable = batch.filter(_readable(batch))
        of_rows = group[start : start + len(readable)]
        start += len(readable)
        chosen = np.isin(of_rows, repeated)
        for row, number in zip(readable.filter(pa.array(chosen)).to_pylist(), of_rows[chosen].tolist(), strict=True):
            twin = Twin(row["image_id"], row["label_name"] or "", "", row["sha256"])
            members.setdefault(number, []).append(twin)
    split = _splits(manifest, [twin.image_id for twins in members.values() for twin in twins])
    groups = [
        tuple(
            sorted(
                (replace(one, split=split.get(one.image_id, "")) for one in twins),
                key=lambda twin: twin.image_id,
            )
        )
        for twins in members.values()
    ]
    conflicts = [twins for twins in groups if len({one.label_name for one in twins}) > 1 or is_leak(twins)]
    return sorted(conflicts, key=lambda twins: twins[0].image_id)


def is_leak(twins: Sequence[Twin]) -> bool:
    """Return whether the copies are in more than one split."""
    return len({twin.split for twin in twins if twin.split}) > 1


def same_pictures(names: Sequence[str], thumbnails: NDArray[np.uint8]) -> list[str]:
    """Return for each image one name for all images of its picture: the first, sorted, of theirs.

    `names` (N,) are the same for the same bytes; thumbnails uint8 (N, 64).
    """
    distinct = sorted(set(names))
    number = pc.index_in(pa.array(names, pa.string()), value_set=pa.array(distinct, pa.string())).to_numpy()
    group = _groups(number[:, None], thumbnails)
    first = np.full(len(group), len(distinct))
    np.minimum.at(first, group, number)
    return [distinct[at] for at in first[group]]


def _groups(digests: NDArray[np.int64], thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of each image's group, (N,): the same bytes, or the same picture, or by way of a third.

    `digests` (N, any) are the same for the same bytes.
    """
    order = np.lexsort(digests.T)  # stable: of equal ones the first comes first
    begins = np.ones(len(order), bool)
    begins[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    first = order[begins]
    same = np.empty(len(order), np.int64)
    same[order] = np.cumsum(begins) - 1
    pairs = near_pairs(thumbnails[first])
    group = _linked(pairs, len(first))
    crowded = np.bincount(group)[group] > _MOST_COPIES
    return _linked(pairs[~crowded[pairs[:, 0]]], len(first))[same]


def _linked(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(links, directed=False)
    numbers: NDArray[np.int64] = group.astype(np.int64)
    return numbers


def near_pairs(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the pairs of one picture, (P, 2), the lower index first, of uint8 (N, 64) thumbnails."""
    parts = [np.zeros((0, _LOWEST**2 - 1), np.float32)]
    shown = [np.zeros(0, np.int64)]
    for start in range(0, len(thumbnails), _CHUNK_ROWS):
        unit, is_flat = _unit(thumbnails[start : start + _CHUNK_ROWS])
        shown.append(start + np.flatnonzero(~is_flat))
        low = dctn(unit[~is_flat], axes=(1, 2), norm="ortho")[:, :_LOWEST, :_LOWEST]
        parts.append(low.reshape(len(low), _LOWEST**2)[:, 1:])
    lowest, rows = np.concatenate(parts), np.concatenate(shown)
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64)
    radius = math.sqrt(2 * (1 - SAME_PICTURE))  # of two vectors of unit length
    count = min(_NEIGHBOURS + 1, len(rows))
    tree = KDTree(lowest)
    pairs = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = lowest[start : start + _CHUNK_ROWS]
        distance, other = tree.query(part, k=count, distance_upper_bound=radius * (1 + 1e-6), workers=-1)  # all cores
        row, place = np.nonzero(np.isfinite(distance))
        pairs.append(np.stack([start + row, other[row, place]], axis=1))
    found = np.concatenate(pairs)
    ordered = rows[np.unique(np.sort(found[found[:, 0] != found[:, 1]], axis=1), axis=0)]
    first, second = (_unit(thumbnails[ordered[:, side]])[0] for side in (0, 1))
    near: NDArray[np.int64] = ordered[np.einsum("nij,nij->n", first, second) >= SAME_PICTURE]
    return near


def _unit(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return thumbnails less their mean at unit length, float32 (n, 8, 8), and which are flat, (n,)."""
    grey = thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.square(grey).sum(axis=(1, 2)))
    is_flat: NDArray[np.bool_] = length <= _FLAT * THUMBNAIL
    return grey / np.maximum(length, 1e-6)[:, None, None], is_flat


def _digests(column: Any) -> NDArray[np.int64]:
    """Return each SHA-256 as numbers, (n, 4): half as long as its text."""
    return np.frombuffer(bytes.fromhex("".join(column.to_pylist())), np.int64).reshape(-1, 4)


def _splits(manifest: Path | None, image_ids: Sequence[str]) -> dict[str, str]:
    if manifest is None or not manifest.is_file():
        return {}
    wanted = pa.array(image_ids, pa.string())
    table = pq.read_table(manifest, columns=["image_id", "split"])
    found = table.filter(pc.is_in(table["image_id"], value_set=wanted))
    return {row["image_id"]: row["split"] or "" for row in found.to_pylist()}


def _readable(batch: Any) -> Any:
    return pc.and_(pc.equal(batch.column("status"), "ok"), batch.column("sha256").is_valid())
