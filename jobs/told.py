"""What a finished run is told as: facts for programs, lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.result import RunResult
from pipeline.wording import amount, printable, shell_word

_SUMMED_UP = ("reviewed", "reviewed_wrong", "estimated_errors", "estimated_precision", "shortcuts")


def facts_of(result: RunResult) -> dict[str, Any]:
    """Return what `--json` prints of a run."""
    return {
        "run": str(result.folder.path),
        "report": str(result.folder.report),
        "seconds": result.seconds,
        "counts": result.counts,
        "warnings": list(result.warnings),
        "exceeded": list(result.exceeded),
        **{name: result.summary[name] for name in _SUMMED_UP},
    }


def lines_of(result: RunResult, *, judged: bool = True) -> Iterator[str]:
    """Yield what is printed of a run; `judged` is whether its images were, or only weighed anew by verdicts."""
    counts, told = result.counts, result.summary
    speed = f" ({counts['images'] / max(result.seconds, 1e-9):.1f} a second)" if judged else ", weighed anew"
    yield f"{amount(counts['images'], 'image')} in {result.seconds:.0f} s{speed}"
    yield f"mislabeled:        {counts['mislabeled']:,}"
    yield f"ambiguous:         {counts['ambiguous']:,}"
    yield f"adversarial drift: {counts['adversarial_drift']:,}"
    if counts["duplicate_conflict"]:
        yield f"duplicates:        {counts['duplicate_conflict']:,} (one picture under two labels, or in two splits)"
    if counts["error"]:
        yield f"unreadable:        {counts['error']:,} (the report says why)"
    if told["reviewed"]:
        yield f"looked at:         {told['reviewed']:,}, of which {told['reviewed_wrong']:,} are wrong"
    if told["estimated_errors"]:
        low, high = told["estimated_errors_range"]
        yield f"wrong labels in all: about {told['estimated_errors']:,.0f} ({low:,.0f} to {high:,.0f})"
    if told["estimated_precision"] is not None:
        low, high = told["estimated_precision_range"]
        yield f"flags that are right: about {told['estimated_precision']:.0%} ({low:.0%} to {high:.0%})"
    for one in told["shortcuts"]:
        yield f"shortcut? {printable(one['name'])}: its evidence gathers in the {one['where']}"
    yield f"report: {result.folder.report}"
    if told["worth_a_look"]:
        yield f"look:   {result.folder.review_page} ({amount(told['worth_a_look'], 'image')} that would settle most)"
    if result.first_issue is not None:
        yield f"next:   fixaudit explain {shell_word(str(result.folder.path))} {shell_word(result.first_issue)}"
