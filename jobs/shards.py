"""What is left on disk for each shard, and what counts as done. These run on the workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.dataset.images import DecodedShard, levels
from pipeline.dataset.manifest import Shard
from pipeline.files import replacing, sha256_of, write_json, write_parquet
from pipeline.runfolder import RunFolder


@dataclass(frozen=True, slots=True)
class CommitEvidence:
    """Writes a shard's evidence, then its commit: row count and digest under the run's fingerprint."""

    folder: RunFolder
    fingerprint: str

    def __call__(self, shard: DecodedShard, evidence: pa.Table) -> int:
        """Return the number of rows written."""
        assert evidence["image_id"].equals(shard.rows["image_id"]), "one row per image, in the shard's order"
        path = self.folder.evidence_part(shard.index)
        write_parquet(evidence, path, schema.EVIDENCE)
        commit = {"fingerprint": self.fingerprint, "rows": len(evidence), "sha256": sha256_of(path)}
        write_json(commit, _commit_file(self.folder, shard.index))
        return len(evidence)


def is_committed(folder: RunFolder, shard: Shard, fingerprint: str) -> bool:
    """Whether a shard's evidence is there whole, written under the same fingerprint."""
    part = folder.evidence_part(shard.index)
    try:
        commit = json.loads(_commit_file(folder, shard.index).read_text(encoding="utf-8"))
        return bool(commit == {"fingerprint": fingerprint, "rows": len(shard.rows), "sha256": sha256_of(part)})
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class _SaveShards:
    """Keeps what a pass found in each shard; written last, and telling that it is there: which images these were."""

    work: Path

    def path(self, index: int) -> Path:
        """Return the file that says that a shard is there."""
        return self.work / "seen" / f"part-{index:05d}.npz"

    def seen(self, index: int) -> tuple[list[str], NDArray[np.uint8]]:
        """Return the groups of one shard's images (see `groups_of`), and their thumbnails, uint8 (n, 64)."""
        with np.load(self.path(index)) as part:
            return part["groups"].tolist(), part["thumbnails"]

    def _told(self, shard: DecodedShard) -> int:
        with replacing(self.path(shard.index)) as partial, partial.open("wb") as file:
            thumbnails = levels(shard.rows["thumbnail"])
            np.savez(file, groups=np.array(groups_of(shard), np.str_), thumbnails=thumbnails)
        return len(shard.pixels)


@dataclass(frozen=True, slots=True)
class SaveFeatures(_SaveShards):
    """Keeps a shard's features, for the heads that will be fitted to them."""

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return self.work / "features"

    def __call__(self, shard: DecodedShard, features: NDArray[np.float32]) -> int:
        """Return the number of images."""
        with replacing(self._file(shard.index)) as partial, partial.open("wb") as file:
            np.save(file, features)
        return self._told(shard)

    def features(self, index: int) -> NDArray[np.float32]:
        """Return the features of one shard's images."""
        values: NDArray[np.float32] = np.load(self._file(index))
        return values

    def _file(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.npy"


class NoStep:
    """The step of a pass that only keeps what was decoded. It stands here, where nothing reads torch."""

    def __call__(self, shard: object) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class SavePixels(_SaveShards):
    """Puts a shard's pixels into the training set's memory map."""

    first: dict[int, int]
    """Row at which each shard begins."""

    @property
    def pixels(self) -> Path:
        """The memory map, uint8 (N, S, S, 3)."""
        return self.work / "pixels.npy"

    def __call__(self, shard: DecodedShard, nothing: None) -> int:
        """Return the number of images."""
        pixels = np.load(self.pixels, mmap_mode="r+")
        start = self.first[shard.index]
        pixels[start : start + len(shard.pixels)] = shard.pixels
        pixels.flush()
        return self._told(shard)


UNREADABLE = "unreadable:"
"""How the group of an image that cannot be read begins; no digest does."""


def groups_of(shard: DecodedShard) -> list[str]:
    """Return the digest of each image's bytes: copies share it. An image that cannot be read is a group of its own."""
    status, digest, ids = (shard.rows[name].to_pylist() for name in ("status", "sha256", "image_id"))
    return [
        sha if state == "ok" else f"{UNREADABLE}{image_id}"
        for state, sha, image_id in zip(status, digest, ids, strict=True)
    ]


def _commit_file(folder: RunFolder, index: int) -> Path:
    return folder.work / "commits" / f"part-{index:05d}.json"
