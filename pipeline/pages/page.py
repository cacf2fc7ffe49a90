"""What the HTML pages of a run share: templates, words, and the styles and scripts that a page may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.pages.cards import NAME_LENGTH, Card
from pipeline.pages.findings import dataset_name
from pipeline.runfolder import RunFolder
from pipeline.wording import TITLES, amount, count, percent, printable, score, shortened

_HERE = Path(__file__).parent
_REASON_LENGTH = 1500


@cache
def environment() -> Environment:
    """Return the templates beside this file; they escape whatever they are given."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["count"] = count
    environment.filters["score"] = score
    environment.filters["amount"] = amount
    environment.filters["printable"] = lambda name: shortened(printable(name), NAME_LENGTH)
    environment.filters["prose"] = lambda reason: shortened(printable(reason), _REASON_LENGTH)
    environment.globals["inlined"] = inlined
    environment.globals["digest"] = digest
    return environment


def name_of(run: RunFolder, dataset: str | None) -> str:
    """Return what a page is headed with: the dataset's name, or the run folder's where that cannot be told."""
    return shortened(printable(dataset_name(run, dataset) or run.path.name), NAME_LENGTH)


def rendered(card: Card, *, asked: int | None = None) -> Markup:
    """Return a card as HTML: what was found of an image, or, of so many `asked`, the question whether it is right."""
    return Markup(environment().get_template("card.html").render(card=card, titles=TITLES, asked=asked))  # autoescaped


@cache
def inlined(name: str) -> Markup:
    """Return one of our own style or script files, as it stands inside the page."""
    text = (_HERE / name).read_text(encoding="utf-8")
    assert "</" not in text  # would end the element
    return Markup(text)  # ships with the program


def digest(name: str) -> str:
    """Return what the content security policy must name for `name` to run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(inlined(name).encode()).digest()).decode("ascii")
