"""The end of an audit, from evidence to report, and what it comes to; a run ends with it, and so does a review."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.audit.flags import write_audit
from pipeline.audit.issues import write_issues
from pipeline.audit.review import write_review_list
from pipeline.audit.summary import write_summary
from pipeline.errors import RunFolderError
from pipeline.files import read_json
from pipeline.gate import Gate
from pipeline.pages.report import write_report
from pipeline.pages.review_page import write_review_page
from pipeline.runfolder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run found."""

    folder: RunFolder
    counts: dict[str, int]
    """images, ok, error, and the number of each issue."""
    seconds: float
    """From start to report, of this call alone."""
    warnings: tuple[str, ...]
    """What the user should know, a line each."""
    first_issue: str | None
    """image_id of the most suspicious image that can be drawn; None where nothing is flagged."""
    exceeded: tuple[str, ...]
    """What exceeds the limits of `fail_on`, a sentence each."""
    summary: dict[str, Any]
    """What summary.json says."""


def conclude(folder: RunFolder, class_names: Sequence[str], wrong: Mapping[str, bool]) -> dict[str, Any]:
    """Write audit, issues and summary from the evidence and from what people said; return what summary.json says."""
    write_audit(folder, class_names, wrong)
    write_issues(folder)
    return dataclasses.asdict(write_summary(folder, class_names))


def check_evidence(folder: RunFolder) -> None:
    """Raise RunFolderError where the evidence is not that of the manifest's images: a part is missing, or one too many.

    An audit of what is left would look whole.
    """
    manifest = pq.read_table(folder.manifest, columns=["image_id", "shard"]).to_pandas()
    expected = {folder.evidence_part(shard): set(ids) for shard, ids in manifest.groupby("shard")["image_id"]}
    found = set(folder.evidence_parts())
    wrong = sorted(found ^ expected.keys())
    try:
        for part, ids in expected.items() if not wrong else ():
            own = pq.read_table(part, columns=["image_id"])["image_id"].to_pylist()
            if len(own) != len(ids) or set(own) != ids:
                wrong.append(part)
    except (OSError, pa.ArrowException) as error:
        raise RunFolderError(f"the evidence of {folder.path} cannot be read: {error}") from error
    if wrong:
        what = "is missing" if wrong[0] not in found else "is not this run's"
        raise RunFolderError(
            f"the evidence of {folder.path} is not whole: {wrong[0].name} {what}; run the audit again with --overwrite"
        )


def write_pages(folder: RunFolder, dataset: str) -> None:
    """Write what people read: the report, and the images that are worth a look."""
    write_report(folder, dataset=dataset)
    write_review_list(folder)
    write_review_page(folder, dataset=dataset)


def result_of(
    folder: RunFolder,
    summary: dict[str, Any],
    gates: Sequence[Gate],
    *,
    seconds: float,
    warnings: Sequence[str],
) -> RunResult:
    """Return what a concluded audit found."""
    return RunResult(
        folder=folder,
        counts={name: summary[name] for name in ("images", *schema.STATUSES)} | summary["issues"],
        seconds=seconds,
        warnings=tuple(warnings),
        first_issue=_first_issue(folder),
        exceeded=tuple(line for gate in gates for line in gate.exceeded(summary)),
        summary=summary,
    )


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """Return what run.json says; RunFolderError if this is no complete run, or one of another schema version."""
    if not folder.is_complete:
        is_begun = folder.work.is_dir() or folder.manifest.is_file()
        what = "finish it with the command that began it" if is_begun else "name the folder that fixaudit run printed"
        raise RunFolderError(f"{folder.path} is not a complete run: there is no run.json in it; {what}")
    return read_json(folder.run_json, ("config", "counts"), version=schema.VERSION)


def _first_issue(folder: RunFolder) -> str | None:
    issues = pq.read_table(folder.issues, columns=["image_id", "issue"])
    drawn = issues.filter(pc.not_equal(issues["issue"], "unreadable"))
    return str(drawn["image_id"][0]) if len(drawn) else None
