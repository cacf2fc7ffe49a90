"""What a person should look at: the flagged images, one row per issue, ranked, each with its reason in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.audit import reasons
from pipeline.audit.duplicates import Twin, conflicting_copies, is_leak
from pipeline.audit.flags import read_audited_classes, scan
from pipeline.audit.reasons import Copy, Seen, Smoothed
from pipeline.errors import RunFolderError
from pipeline.files import write_parquet
from pipeline.runfolder import RunFolder

ORDER = ("duplicate_conflict", "mislabeled", "adversarial_drift", "ambiguous", "unreadable")
"""What is certain comes before what is likely, and that before what is possible: two labels on the same bytes need no
model to be wrong; a wrong label has a better one at hand; drift says that the prediction cannot be trusted; an
ambiguous image may be right as it is; of an unreadable one nothing is known."""
assert sorted(ORDER) == sorted(schema.ISSUES)

_AUDITED = (
    *("image_id", "status", "label_name", "label_score", "ambiguity_score", "drift_score", "suggested_name"),
    *("verdict", "is_apart"),
    *schema.FLAGS,
)
_EVIDENCE = (
    *("image_id", "error", "label", "pred", "pred_name", "probs", "pred_box", "evidence_distance", "evidence_swing"),
    *("squeeze_shift", "squeeze_pred", "squeeze_overlap"),
)
_BATCH_ROWS = 1024


def write_issues(run: RunFolder) -> None:
    """Write issues.parquet from the audit and the evidence, under `schema.ISSUES_TABLE`; it may be empty.

    Rows are ordered by issue (`ORDER`), then score, then image_id; copies of one file stay together. An image has a
    row for each of its issues.

    Raises RunFolderError where audit.parquet is missing or belongs to other evidence.
    """
    names = read_audited_classes(run)
    rows = [pa.Table.from_pylist(_duplicate_rows(conflicting_copies(run.evidence_parts(), run.manifest)), _UNRANKED)]
    for audited, evidence in _flagged(run):
        found = (issue for pair in zip(audited, evidence, strict=True) for issue in _issues_of(*pair, names))
        rows.append(pa.Table.from_pylist(list(found), _UNRANKED))
    table = pa.concat_tables(rows)
    order = pc.sort_indices(table, [(name, "ascending") for name in ("place", "group", "score", "image_id")])
    ranked = table.take(order).append_column("rank", pa.array(np.arange(1, len(table) + 1), pa.int32()))
    write_parquet(ranked.select(schema.ISSUES_TABLE.names), run.issues, schema.ISSUES_TABLE)


def count_issues(run: RunFolder) -> dict[str, int]:
    """Return how many rows each issue has in issues.parquet, every issue named.

    Raises RunFolderError where the file is missing or unreadable.
    """
    counts = Counter[str]()
    for batch in scan([run.issues], ["issue"]):
        counts.update(batch.column("issue").to_pylist())
    return {issue: counts[issue] for issue in schema.ISSUES}


_UNRANKED = pa.schema(
    [
        *(field for field in schema.ISSUES_TABLE if field.name != "rank"),
        pa.field("place", pa.int8()),  # of the issue in ORDER
        pa.field("group", pa.int32()),  # of copies, numbered by suspicion; 0 for all other issues
    ]
)


def _flagged(run: RunFolder) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Yield the rows of audit and evidence, side by side, of the images that have an issue of their own."""
    try:
        audit = pq.read_table(run.audit, columns=list(_AUDITED))
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"cannot read {run.audit}: {error}; run the audit again") from error
    start = 0
    for batch in scan(run.evidence_parts(), _EVIDENCE, _BATCH_ROWS):
        part = audit.slice(start, len(batch)).combine_chunks()
        start += len(batch)
        if not part["image_id"].combine_chunks().equals(batch.column("image_id")):
            raise RunFolderError(f"{run.audit} belongs to other evidence than {run.evidence}; run the audit again")
        wanted = pc.equal(part["status"], "error")
        for flag in schema.FLAGS:
            wanted = pc.or_(wanted, part[flag])
        wanted = wanted.combine_chunks()
        yield part.filter(wanted).to_pylist(), _with_probabilities(batch.filter(wanted))
    if start != len(audit):
        raise RunFolderError(f"{run.audit} belongs to other evidence than {run.evidence}; run the audit again")


def _with_probabilities(batch: Any) -> list[dict[str, Any]]:
    """Return the rows with the two probabilities that a reason names instead of all K."""
    probs = batch.column("probs")
    rows: list[dict[str, Any]] = batch.drop_columns(["probs"]).to_pylist()
    values, starts = probs.values.to_numpy(), probs.offsets.to_numpy()
    for row, start in zip(rows, starts[:-1], strict=True):
        if row["label"] is not None and row["pred"] is not None:
            row["label_probability"] = float(values[start + row["label"]])
            row["pred_probability"] = float(values[start + row["pred"]])
    return rows


def _issues_of(audited: dict[str, Any], evidence: dict[str, Any], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the issues of one image."""
    if audited["status"] == "error":
        yield _row(audited, "unreadable", None, None, reasons.unreadable(evidence["error"]))
        return
    seen = Seen(
        label_name=audited["label_name"] or "",
        pred_name=evidence["pred_name"],
        label_probability=evidence["label_probability"],
        pred_probability=evidence["pred_probability"],
        traced=evidence["pred_box"] is not None,
        distance=evidence["evidence_distance"],
        is_apart=bool(audited["is_apart"]),
        swing=evidence["evidence_swing"],
        confirmed=audited["verdict"] == "wrong",
    )
    suggested = audited["suggested_name"]
    if audited["is_mislabeled"]:
        yield _row(audited, "mislabeled", audited["label_score"], suggested, reasons.mislabeled(seen))
    if audited["is_ambiguous"]:
        yield _row(audited, "ambiguous", audited["ambiguity_score"], suggested, reasons.ambiguous(seen))
    if audited["is_adversarial_drift"]:
        smoothed = Smoothed(
            pred_name=names[evidence["squeeze_pred"]],
            shift=evidence["squeeze_shift"],
            overlap=evidence["squeeze_overlap"],
        )
        why = reasons.adversarial_drift(seen, smoothed)
        yield _row(audited, "adversarial_drift", audited["drift_score"], suggested, why)


def _duplicate_rows(groups: list[tuple[Twin, ...]]) -> list[dict[str, Any]]:
    """Return a row for each copy; groups in which one label is most alone come first."""
    conflicts = sorted((_conflict(group) for group in groups), key=lambda rows: min(row["score"] for row in rows))
    return [{**row, "group": number} for number, rows in enumerate(conflicts) for row in rows]


def _conflict(group: tuple[Twin, ...]) -> list[dict[str, Any]]:
    """Return a row for each copy that another one contradicts by its label or lies beside in another split."""
    votes = Counter(twin.label_name for twin in group)
    (most, count), *rest = votes.most_common(2)
    decided = not rest or count > rest[0][1]
    leak = is_leak(group)
    rows = []
    for twin in group:
        copies = [
            Copy(other.image_id, other.label_name, other.split, same_bytes=other.sha256 == twin.sha256)
            for other in group
            if other.label_name != twin.label_name or (leak and other.split != twin.split)
        ]
        if not copies:
            continue
        suggested = most if decided and twin.label_name != most else None
        reason = reasons.duplicate_conflict(Copy(twin.image_id, twin.label_name, twin.split, same_bytes=True), copies)
        share = votes[twin.label_name] / len(group)
        rows.append(_row(asdict(twin), "duplicate_conflict", share, suggested, reason))
    return rows


def _row(image: dict[str, Any], issue: str, score: float | None, suggested: str | None, reason: str) -> dict[str, Any]:
    return {
        "image_id": image["image_id"],
        "issue": issue,
        "score": score,
        "label_name": image["label_name"],
        "suggested_name": suggested,
        "reason": reason,
        "place": ORDER.index(issue),
        "group": 0,
    }
