"""The report of a run: one HTML file that opens offline, small whatever the size of the dataset.

The flagged images are embedded as thumbnails, the most suspicious of each kind first, until the file's budget or the
number of cards is spent; the page says how many of how many it shows. Only rows of those images are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.audit.issues import count_issues
from pipeline.audit.summary import Summary
from pipeline.files import read_json, write_text
from pipeline.pages.cards import Limits, flagged_cards
from pipeline.pages.findings import Finding, top_findings
from pipeline.pages.page import environment, name_of, rendered
from pipeline.runfolder import RunFolder
from pipeline.schema import ISSUES, VERSION
from pipeline.wording import TITLES, count, percent, shell_word

__all__ = ["Limits", "write_report"]

_CLASS_COLUMNS = (
    ("images", "Images", count),
    ("mislabeled", "Mislabeled", count),
    ("ambiguous", "Ambiguous", count),
    ("estimated_noise", "Est. wrong", percent),
    ("estimated_precision", "Flags right", percent),
    ("accuracy", "Accuracy", percent),
)


def write_report(run: RunFolder, limits: Limits | None = None, *, dataset: str | None = None) -> Path:
    """Write the run's report.html and return where it lies.

    Reads manifest, evidence, issues and summary.json; `run.json` need not be there yet, where `dataset` says what was
    audited. An image that is gone since
    the run keeps its card, with the reason in place of the picture.

    Raises:
        RunFolderError: a file of the run is missing, or the report cannot be written.

    """
    limits = limits or Limits()
    counts = count_issues(run)
    page = _Page(run, name_of(run, dataset), limits, counts, _read_summary(run))
    unreadable = top_findings(run, "unreadable", limits.rows)
    bare = len(page.render((), dict.fromkeys(ISSUES, 0), unreadable).encode())
    cards: list[tuple[int, Markup]] = []
    shown = dict.fromkeys(ISSUES, 0)
    shown["unreadable"] = len(unreadable)
    left = limits.bytes - bare - 4096  # the counts in words are a little longer than in the bare page
    seen_twins: set[str] = set()
    for card, digest in flagged_cards(run, limits):
        kinds = {finding.issue for finding in card.findings}
        # A file whose only fault is to have a twin is in the twin's card already.
        if kinds != {"duplicate_conflict"} or digest is None or digest not in seen_twins:
            html = rendered(card)
            left -= len(html.encode()) + 1
            if left < 0:
                break
            cards.append((card.number, html))
            if "duplicate_conflict" in kinds and digest is not None:
                seen_twins.add(digest)
        for kind in kinds:
            shown[kind] += 1
    text = page.render([html for _, html in sorted(cards, key=lambda one: one[0])], shown, unreadable)
    assert len(text.encode()) <= limits.bytes
    write_text(text, run.report)
    return run.report


class _Page:
    """The templates, with what is the same for the whole report."""

    def __init__(
        self, run: RunFolder, name: str, limits: Limits, counts: dict[str, int], summary: dict[str, Any]
    ) -> None:
        self._limits = limits
        self._counts = counts
        self._summary = summary
        self._name = name
        self._run = shell_word(str(run.path))
        self._issues = repr(str(run.issues))
        self._page = environment().get_template("report.html")

    def render(self, cards: Sequence[Markup], shown: dict[str, int], unreadable: list[Finding]) -> str:
        return self._page.render(
            name=self._name,
            run=self._run,
            issues_literal=self._issues,
            titles=TITLES,
            counts=self._counts,
            shown=shown,
            flagged=sum(self._counts[kind] for kind in ISSUES if kind != "unreadable"),
            cards=cards,
            cards_missing=any(shown[kind] < number for kind, number in self._counts.items()),
            unreadable=unreadable,
            facts=_facts(self._summary),
            classes=_class_table(self._summary, self._limits.rows),
            shortcuts=self._summary["shortcuts"][: self._limits.rows],
        )


def _read_summary(run: RunFolder) -> dict[str, Any]:
    return read_json(run.summary, [field.name for field in fields(Summary)], version=VERSION)


def _facts(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the page's head, each None where the run could not tell."""
    return {
        "images": summary["images"],
        "errors": summary["estimated_errors"],
        "errors_range": summary["estimated_errors_range"],
        "worth_a_look": summary["worth_a_look"],
        "reviewed": summary["reviewed"],
        "reviewed_wrong": summary["reviewed_wrong"],
        "wrong": summary["estimated_noise"],
        "accuracy": summary["accuracy"],
    }


def _class_table(summary: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return the columns and rows of the class table; of more than `limit` classes those with most mislabeled."""
    classes = summary["classes"]
    chosen = classes
    if len(classes) > limit:
        chosen = sorted(sorted(classes, key=lambda one: -one["mislabeled"])[:limit], key=lambda one: one["label"])
    return {
        "columns": ["Class", *(title for _, title, _ in _CLASS_COLUMNS), "Most taken for"],
        "rows": [
            {
                "name": one["name"],
                "cells": [(one[key], words(one[key])) for key, _, words in _CLASS_COLUMNS],
                "taken_for": one["most_confused_with"],
            }
            for one in chosen
        ],
        "count": len(classes),
    }
