"""A run looked at by people: their verdicts are weighed, and the audit is concluded anew; no image is judged again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.claim import held
from jobs.progress import Reporter
from jobs.result import RunResult, check_evidence, conclude, read_facts, result_of, write_pages
from pipeline.audit.flags import read_audited_classes, scan
from pipeline.audit.review import earlier_verdicts, known_verdicts, read_verdicts
from pipeline.errors import RunFolderError
from pipeline.files import write_json
from pipeline.gate import Gate, parse_gates, write_junit
from pipeline.runfolder import RunFolder


def review_run(folder: RunFolder, file: Path | None, reporter: Reporter) -> RunResult:
    """Take the verdicts in `file` (default: the run's review.csv) into account, and write audit to report anew.

    Verdicts that an earlier review took into account stay, unless the file says otherwise. Stopped half way, the same
    call again makes it whole. The run's JUnit file, if it has one, is written anew as well.

    Raises:
        RunFolderError: no complete run, one whose evidence is not whole, or one that cannot be written.
        VerdictsError: the file cannot be read, holds no verdict, or is of another dataset.

    """
    facts = read_facts(folder)
    with held(folder):
        return _reviewed(folder, facts, file, reporter)


def _reviewed(folder: RunFolder, facts: dict[str, Any], file: Path | None, reporter: Reporter) -> RunResult:
    began = time.perf_counter()
    check_evidence(folder)
    path = file or folder.review
    manifest = pa.Table.from_batches(scan([folder.manifest], ["image_id", "label_name"]))
    verdicts, warnings = known_verdicts(read_verdicts(path), manifest, path)
    for line in warnings:
        reporter.say(f"note: {line}")
    names = read_audited_classes(folder)
    earlier = {image_id: said.wrong for image_id, said in earlier_verdicts(folder).items()}
    summary = conclude(folder, names, earlier | verdicts)
    write_pages(folder, facts["config"]["dataset"])
    gates = parse_gates(facts["config"].get("fail_on") or "")
    stale = _renew_junit(facts, gates, summary)
    for line in stale:
        reporter.say(f"note: {line}")
    result = result_of(folder, summary, gates, seconds=time.perf_counter() - began, warnings=[*warnings, *stale])
    write_json(facts | {"counts": result.counts}, folder.run_json)
    return result


def _renew_junit(facts: dict[str, Any], gates: Sequence[Gate], summary: dict[str, Any]) -> list[str]:
    """Write the run's JUnit file anew, where it has one; return a warning where that is not possible."""
    told = facts.get("resolved", {}).get("junit")
    if told is None:
        return []
    path = Path(told)
    try:
        if not path.parent.is_dir():  # of another machine, or taken away: no place to make a folder
            raise RunFolderError(f"cannot write {path}: its folder is gone")
        write_junit(path, gates, summary)
    except RunFolderError as error:
        return [f"{error}; a JUnit file of this run says what was found before the review"]
    return []
