"""Reading a run back, a few images at a time: what was flagged, and the evidence of chosen images.

Nothing here loads a table whole: Parquet is streamed in batches and filtered while it is read.
P points of one class in one image.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.errors import OtherVersionError, RunFolderError
from pipeline.files import read_json
from pipeline.geometry import MAP_SIDE
from pipeline.runfolder import RunFolder
from pipeline.schema import EVIDENCE, ISSUES_TABLE, MANIFEST, VERSION
from pipeline.wording import printable

Box = tuple[float, float, float, float]

_LISTS = (".csv", ".tsv", ".parquet")

_SIMILAR_IDS_READ = 20_000  # difflib needs about 20 microseconds an id


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single ==
class ClassEvidence:
    """What speaks for one class in one image, in original pixels; (0, 0) is the top-left pixel."""

    x: np.ndarray
    """int32 (P,): columns."""
    y: np.ndarray
    """int32 (P,): rows."""
    mass: np.ndarray
    """float32 (P,): share of the evidence, >= 0; sums to 1."""
    box: Box | None
    """x0, y0, x1, y1; None where there are no points."""
    mask: str | None
    """Saliency mask as COCO RLE counts at original size (height, width)."""
    map: np.ndarray
    """Saliency map, uint8 (MAP_SIDE, MAP_SIDE), spread over the whole image; zeros where there are no points."""

    def __len__(self) -> int:
        """Return the number of points, P."""
        return len(self.x)

    def strongest(self, limit: int) -> ClassEvidence:
        """Return the `limit` points of most mass, strongest first; ties in (y, x) order."""
        order = np.lexsort((self.x, self.y, -self.mass))[:limit]
        return ClassEvidence(self.x[order], self.y[order], self.mass[order], self.box, self.mask, self.map)


@dataclass(frozen=True, slots=True, eq=False)
class ImageEvidence:
    """One row of the evidence: what the audit saw in one image."""

    image_id: str
    uri: str
    sha256: str | None
    width: int | None
    """Original pixels; None where the image could not be read."""
    height: int | None
    error: str | None
    """Why the image could not be audited, in words; None where it could."""
    label: int | None
    label_name: str
    pred: int | None
    pred_name: str | None
    fold: int | None
    label_probability: float | None
    """Out-of-sample probability of the given label, in [0, 1]; None where the label is no known class."""
    pred_probability: float | None
    prediction: ClassEvidence | None
    """Evidence for the predicted class; None where none was traced."""
    given: ClassEvidence | None
    """Evidence for the given label, only when it is not the prediction."""
    overlap: float | None
    """How far the two classes' evidence coincides, in [0, 1]."""

    @property
    def agrees(self) -> bool:
        """True when the prediction is the given label."""
        return self.pred is not None and self.pred == self.label

    def without_points(self) -> ImageEvidence:
        """Return the row without the fixations and masks, which are nearly all of it."""
        return replace(self, prediction=None, given=None)


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the issues."""

    rank: int
    image_id: str
    issue: str
    score: float | None
    suggested_name: str | None
    reason: str


def top_findings(run: RunFolder, issue: str, limit: int) -> list[Finding]:
    """Return the `limit` most suspicious findings of one issue, best rank first."""
    of_issue = pc.field("issue") == issue
    ranks = (
        rank
        for batch in _batches(run.issues, ISSUES_TABLE, ["rank"], of_issue)
        for rank in batch.column("rank").to_pylist()
    )
    best = heapq.nsmallest(limit, ranks)
    if not best:
        return []
    # Only now the rows with their reasons: of a million flags, a few hundred.
    rows = [
        row
        for batch in _batches(run.issues, ISSUES_TABLE, None, of_issue & (pc.field("rank") <= best[-1]))
        for row in batch.to_pylist()
    ]
    rows.sort(key=lambda row: (row["rank"], row["image_id"]))
    return [_finding(row) for row in rows[:limit]]


def findings_of(run: RunFolder, image_ids: Collection[str]) -> dict[str, list[Finding]]:
    """Return all findings of the images, best rank first; an image without any is left out."""
    found: dict[str, list[Finding]] = {}
    for batch in _batches(run.issues, ISSUES_TABLE, None, _is_one_of("image_id", image_ids)):
        for row in batch.to_pylist():
            found.setdefault(row["image_id"], []).append(_finding(row))
    return {image: sorted(rows, key=lambda finding: finding.rank) for image, rows in found.items()}


def read_evidence(run: RunFolder, image_ids: Collection[str]) -> Iterator[ImageEvidence]:
    """Yield the evidence of the images, part by part; only parts that hold one of them are opened.

    Raises RunFolderError where the run has no manifest, or a part that should hold an image is not there; where it was
    written by another version, OtherVersionError.
    """
    wanted = _is_one_of("image_id", image_ids)
    shards: dict[int, list[str]] = {}
    for batch in _batches(run.manifest, MANIFEST, ["image_id", "shard"], wanted):
        for row in batch.to_pylist():
            shards.setdefault(row["shard"], []).append(row["image_id"])
    for shard, members in sorted(shards.items()):
        part = run.evidence_part(shard)
        if not part.is_file():
            raise RunFolderError(
                f"no evidence yet for {printable(members[0])}: {part} is missing; finish the run with `fixaudit run`"
            )
        if _version(part) != VERSION:
            raise OtherVersionError(run.path)
        for batch in _batches(part, EVIDENCE, None, _is_one_of("image_id", members)):
            for row in batch.to_pylist():
                yield _image_evidence(row)


def read_one(run: RunFolder, image_id: str) -> ImageEvidence:
    """Return the evidence of one image; an unknown id raises RunFolderError: the nearest, or where ids are."""
    for found in read_evidence(run, [image_id]):
        return found
    near = similar_ids(run, image_id)
    named = f"nearest: {', '.join(printable(name) for name in near)}"
    hint = named if near else "ids are in the column image_id of audit.parquet"
    raise RunFolderError(f"no image {printable(image_id)} in run {run.path}; {hint}")


def similar_ids(run: RunFolder, image_id: str, limit: int = 3) -> list[str]:
    """Return up to `limit` ids a person may have meant: those that end alike first, then those spelt alike."""
    ending = "/" + image_id.replace("\\", "/").rsplit("/", 1)[-1]
    alike: list[str] = []
    spelt: list[str] = []
    for batch in _batches(run.manifest, MANIFEST, ["image_id"]):
        ids = batch.column("image_id")
        if len(alike) < limit:
            alike += ids.filter(pc.ends_with(ids, ending)).to_pylist()[:limit]
        spelt += ids.slice(0, max(0, _SIMILAR_IDS_READ - len(spelt))).to_pylist()
    return list(dict.fromkeys(alike + difflib.get_close_matches(image_id, spelt, n=limit)))[:limit]


def twins_of(run: RunFolder, digests: Collection[str], limit: int) -> dict[str, list[tuple[str, str]]]:
    """Return (image_id, label_name) of up to `limit` files for each digest: the files that hold the same bytes."""
    twins: dict[str, list[tuple[str, str]]] = {}
    parts = run.evidence_parts()
    if not digests or not parts:
        return twins
    columns = ["image_id", "label_name", "sha256"]
    for batch in _batches(parts, EVIDENCE, columns, _is_one_of("sha256", digests)):
        for row in batch.to_pylist():
            same = twins.setdefault(row["sha256"], [])
            if len(same) < limit:
                same.append((row["image_id"], row["label_name"]))
    return twins


def dataset_name(run: RunFolder, dataset: str | None = None) -> str:
    """Return what was audited: the name of the folder that holds the images, with that of the file that lists them.

    The folder is read off where the first image lies. `dataset` is what the run was given, by default as run.json
    says; what cannot be told is left out, and it may be all.
    """
    given = Path(read_settings(run).get("dataset", "") if dataset is None else dataset)
    listed = given.stem if given.suffix.lower() in _LISTS else ""
    return " · ".join(filter(None, (_folder_name(run), listed)))


def read_settings(run: RunFolder) -> dict[str, Any]:
    """Return the settings of a complete run; nothing while run.json is not there yet."""
    if not run.is_complete:
        return {}
    settings: dict[str, Any] = read_json(run.run_json, ("config",))["config"]
    return settings


def _folder_name(run: RunFolder) -> str:
    for batch in _batches(run.manifest, MANIFEST, ["image_id", "uri"]):
        for row in batch.slice(0, 1).to_pylist():
            root, found, _ = row["uri"].replace("\\", "/").rpartition("/" + row["image_id"])
            return root.rstrip("/").rsplit("/", 1)[-1] if found else ""
    return ""


def _version(part: Path) -> int | None:
    """Return the schema version under which a part was written; None where it does not say."""
    try:
        told = (pq.read_schema(part).metadata or {}).get(b"fixaudit.schema", b"")
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"cannot read {part}: {str(error).splitlines()[0]}") from error
    return int(told) if told.isdigit() else None


def _batches(
    source: Path | list[Path], schema: pa.Schema, columns: list[str] | None = None, wanted: Any = None
) -> Iterator[Any]:  # record batches; their stubs do not know what a column yields
    if isinstance(source, Path) and not source.is_file():
        raise RunFolderError(f"{source} is missing: {source.parent} is not a run folder, or its run is not finished")
    try:
        files = [str(path) for path in source] if isinstance(source, list) else str(source)
        table = ds.dataset(files, schema=schema, format="parquet")
        # Rows may carry thousands of points: few at a time, and little read ahead.
        yield from table.to_batches(
            columns=columns, filter=wanted, batch_size=4096, batch_readahead=2, fragment_readahead=2
        )
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"cannot read {source}: {str(error).splitlines()[0]}") from error


def _is_one_of(column: str, values: Collection[str]) -> Any:
    return pc.field(column).isin(pa.array(list(values), pa.string()))


def _finding(row: dict[str, Any]) -> Finding:
    return Finding(row["rank"], row["image_id"], row["issue"], row["score"], row["suggested_name"], row["reason"] or "")


def _image_evidence(row: dict[str, Any]) -> ImageEvidence:
    return ImageEvidence(
        image_id=row["image_id"],
        uri=row["uri"],
        sha256=row["sha256"],
        width=row["width"],
        height=row["height"],
        error=None if row["status"] == "ok" else row["error"] or "no reason was recorded",
        label=row["label"],
        label_name=row["label_name"] or "",
        pred=row["pred"],
        pred_name=row["pred_name"],
        fold=row["fold"],
        label_probability=_probability(row["probs"], row["label"]),
        pred_probability=_probability(row["probs"], row["pred"]),
        prediction=_class_evidence(row, "pred"),
        given=_class_evidence(row, "label"),
        overlap=row["evidence_overlap"],
    )


def _probability(probs: list[float] | None, label: int | None) -> float | None:
    if not probs or label is None or not 0 <= label < len(probs):
        return None
    return float(probs[label])


def _class_evidence(row: dict[str, Any], prefix: str) -> ClassEvidence | None:
    x = row[f"{prefix}_fix_x"]
    if x is None:
        return None
    box = row[f"{prefix}_box"]
    return ClassEvidence(
        np.asarray(x, np.int32),
        np.asarray(row[f"{prefix}_fix_y"], np.int32),
        np.asarray(row[f"{prefix}_fix_mass"], np.float32),
        None if box is None or any(edge != edge for edge in box) else (box[0], box[1], box[2], box[3]),
        row[f"{prefix}_mask"],
        np.frombuffer(row[f"{prefix}_map"] or bytes(MAP_SIDE * MAP_SIDE), np.uint8).reshape(MAP_SIDE, MAP_SIDE),
    )
