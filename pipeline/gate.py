"""Limits that a run must keep: "mislabeled > 2%", for all images or class by class; and what a CI is told of them.

A condition says what must not be, like an alarm: it is met when findings exceed it. Counts and shares are those of
summary.json; a share is of the images found, or of those with the class as given label.
"""

from __future__ import annotations

import difflib
import operator
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.files import replacing
from pipeline.schema import ISSUES
from pipeline.wording import printable

_OF_CLASSES = ("mislabeled", "ambiguous", "adversarial_drift", "flagged")
_COMPARED: dict[str, Callable[[float, float], bool]] = {">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(
    r"\s*(?P<what>[a-z_]+)\s*(?:\bin\s+(?P<label>.+?))?\s*(?P<sign>>=|>)\s*(?P<limit>[0-9.]+)\s*(?P<percent>%)?\s*"
)
_EVERY = "any class"
_XML_UNKNOWN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition."""

    text: str
    """As it was said."""
    what: str
    """An issue; of a class also `flagged`, any of the three flags."""
    label: str | None
    """Class name, or "any class"; None: the whole dataset."""
    sign: str
    limit: float
    is_share: bool

    def exceeded(self, summary: dict[str, Any]) -> list[str]:
        """Return a sentence for the dataset or for each class that meets the condition; none: it was kept."""
        if self.label is None:
            measured = [("the dataset", summary["issues"][self.what], summary["images"])]
        else:
            measured = [
                (f"class {printable(one['name'])}", one[self.what], one["images"])
                for one in summary["classes"]
                if self.label in (_EVERY, one["name"])
            ]
        found = []
        for whose, count, images in measured:
            value = count / images if self.is_share and images else float(count)
            if images and _COMPARED[self.sign](value, self.limit):
                found.append(f"{self.what} in {whose}: {count:,} of {images:,} images ({count / images:.2%})")
        return found


def parse_gates(text: str) -> tuple[Gate, ...]:
    """Read conditions, separated by `;`: `mislabeled > 2%; ambiguous in cat >= 10; flagged in any class > 20%`.

    Raises ConfigError, which shows the form, for anything else.
    """
    return tuple(_gate(part) for part in text.split(";") if part.strip())


def require_classes(gates: Sequence[Gate], names: Sequence[str]) -> None:
    """Raise ConfigError, naming the nearest, where a condition is about a class that the dataset does not have."""
    for gate in gates:
        if gate.label not in (None, _EVERY, *names):
            near = difflib.get_close_matches(str(gate.label), names, n=1, cutoff=0)
            raise ConfigError(
                f"--fail-on {gate.text!r}: there is no class {printable(str(gate.label))}; did you mean "
                f"{printable(near[0]) if near else 'any class'}?"
            )


def write_junit(path: Path, gates: Sequence[Gate], summary: dict[str, Any]) -> None:
    """Write the conditions as JUnit XML: a test case each, failed where findings exceed it; CI systems show them.

    Without conditions, the one test case says that the audit was done. Raises RunFolderError where the file cannot be
    written.
    """
    suite = ElementTree.Element("testsuite", name="fixaudit")
    failures = 0
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="fixaudit", name=_legible(gate.text))
        exceeded = gate.exceeded(summary)
        if exceeded:
            failures += 1
            failure = ElementTree.SubElement(case, "failure", message=_legible(exceeded[0]))
            failure.text = _legible("\n".join(exceeded))
    if not gates:
        ElementTree.SubElement(suite, "testcase", classname="fixaudit", name="audit")
    suite.set("tests", str(max(1, len(gates))))
    suite.set("failures", str(failures))
    output = ElementTree.SubElement(suite, "system-out")
    output.text = "\n".join(f"{issue}: {count}" for issue, count in summary["issues"].items())
    with replacing(path) as partial:
        ElementTree.ElementTree(suite).write(partial, encoding="utf-8", xml_declaration=True)


def _gate(text: str) -> Gate:
    said = " ".join(text.split())
    found = _CONDITION.fullmatch(said)
    if found is None or found["limit"].count(".") > 1 or found["limit"] == ".":
        raise ConfigError(f'--fail-on {said!r}: say it like "mislabeled > 2%" or "ambiguous in any class > 50"')
    known = ISSUES if found["label"] is None else _OF_CLASSES
    if found["what"] not in known:
        raise ConfigError(f"--fail-on {said!r}: {found['what']} is not known here; choose from {', '.join(known)}")
    limit = float(found["limit"]) / (100 if found["percent"] else 1)
    return Gate(said, found["what"], found["label"], found["sign"], limit, found["percent"] is not None)


def _legible(text: str) -> str:
    """Return the text without what XML cannot hold."""
    return _XML_UNKNOWN.sub("\N{REPLACEMENT CHARACTER}", text)
