"""The report's cards: what is shown of each flagged image, and which images those are."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest

from PIL import Image

from pipeline.dataset.images import ImageError, load_original
from pipeline.pages.findings import (
    ClassEvidence,
    Finding,
    ImageEvidence,
    findings_of,
    read_evidence,
    top_findings,
    twins_of,
)
from pipeline.pages.overlay import Canvas, Drawing, draw
from pipeline.runfolder import RunFolder
from pipeline.schema import ISSUES
from pipeline.wording import amount, percent, printable, shell_word, shortened

NAME_LENGTH = 300
"""Letters of a name that the report shows."""

_CRISP_BELOW = 64  # pixels: smaller images are stored without loss and drawn with their pixels to be seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What keeps the report small enough to open and to send."""

    bytes: int = 15_000_000
    """The whole file."""
    cards: int = 400
    """Flagged images drawn; a browser lays out about this many without a pause."""
    thumbnail: int = 256
    """Longer side of an embedded image in pixels."""
    points: int = 200
    """Fixations drawn for one class of one image, the strongest first."""
    rows: int = 1000
    """Rows of the class table and of the list of unreadable files."""
    twins: int = 8
    """Files with the same bytes named in one card."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the page embeds it."""

    data: str | None
    """WebP as a data URI; None where the file can no longer be read."""
    problem: str
    """Why there is no picture, in words."""
    crisp: bool
    """True for tiny images, whose pixels are to be seen as squares."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One class's evidence on the image, beside its name and probability."""

    role: str
    """`given`, `prediction`, or `same` where the prediction is the given label."""
    heading: str
    name: str
    probability: float | None
    drawing: Drawing | None
    note: str
    description: str
    """The panel in words, for those who do not see it."""


@dataclass(frozen=True, slots=True)
class Card:
    """One flagged image."""

    number: int
    """The best rank among its findings, or its place among those asked about; unique in the page."""
    image_id: str
    label_name: str
    findings: tuple[Finding, ...]
    suggestions: tuple[str, ...]
    """Labels suggested other than the prediction that is shown anyway."""
    canvas: Canvas
    picture: Picture
    panels: tuple[Panel, ...]
    overlap: float | None
    twins: tuple[tuple[str, str, bool], ...]
    """Files with the same bytes: image_id, label, and whether it is this one."""
    command: str
    """How to look closer."""


def flagged_cards(run: RunFolder, limits: Limits) -> Iterator[tuple[Card, str | None]]:
    """Yield the cards with the image's digest, the kinds of issue taking turns, each from its most suspicious on."""
    tops = [
        [finding.image_id for finding in top_findings(run, kind, limits.cards)]
        for kind in ISSUES
        if kind != "unreadable"
    ]
    turns = [image_id for turn in zip_longest(*tops) for image_id in turn if image_id is not None]
    chosen = list(dict.fromkeys(turns))[: limits.cards]
    findings = findings_of(run, chosen)
    yield from _cards(run, {image_id: findings[image_id][0].rank for image_id in chosen}, findings, limits)


def asked_cards(run: RunFolder, image_ids: Sequence[str], limits: Limits) -> Iterator[Card]:
    """Yield the cards of images that people are asked about, numbered in their order."""
    numbers = {image_id: number for number, image_id in enumerate(image_ids, 1)}
    for card, _ in _cards(run, numbers, findings_of(run, image_ids), limits):
        yield card


def _cards(
    run: RunFolder, numbers: Mapping[str, int], findings: Mapping[str, list[Finding]], limits: Limits
) -> Iterator[tuple[Card, str | None]]:
    """Yield the cards of images, in the order of `numbers`, with the image's digest."""
    drawn: dict[str, tuple[ImageEvidence, Canvas, tuple[Panel, ...]]] = {}
    for image in read_evidence(run, list(numbers)):
        canvas = Canvas(image.width or 1, image.height or 1)
        panels = _panels(image, canvas, limits.points)
        # The points are in the drawing now; what every shown image keeps in memory is a few kilobytes.
        drawn[image.image_id] = (image.without_points(), canvas, panels)
    digests = {
        image.sha256
        for image, _, _ in drawn.values()
        if image.sha256 and any(one.issue == "duplicate_conflict" for one in findings.get(image.image_id, ()))
    }
    twins = twins_of(run, digests, limits.twins)
    for image_id, number in numbers.items():
        if image_id in drawn:
            image, canvas, panels = drawn[image_id]
            same = twins.get(image.sha256 or "", [])
            yield (
                Card(
                    number=number,
                    image_id=image_id,
                    label_name=image.label_name,
                    findings=tuple(findings.get(image_id, ())),
                    suggestions=_suggestions(findings.get(image_id, ()), image),
                    canvas=canvas,
                    picture=_picture(image, limits.thumbnail),
                    panels=panels,
                    overlap=image.overlap,
                    twins=tuple((name, label, name == image_id) for name, label in same if len(same) > 1),
                    command=f"fixaudit explain {shell_word(str(run.path))} {shell_word(image_id)}",
                ),
                image.sha256,
            )


def _panels(image: ImageEvidence, canvas: Canvas, points: int) -> tuple[Panel, ...]:
    prediction = _panel(
        "same" if image.agrees else "prediction",
        "Given label = prediction" if image.agrees else "Prediction",
        image.pred_name or "",
        image.pred_probability,
        _drawn(image.prediction, canvas, points),
    )
    if image.agrees:
        return (prediction,)
    given = _panel(
        "given", "Given label", image.label_name, image.label_probability, _drawn(image.given, canvas, points)
    )
    return (given,) if image.pred is None else (given, prediction)


def _drawn(evidence: ClassEvidence | None, canvas: Canvas, points: int) -> Drawing | None:
    return None if evidence is None else draw(evidence, canvas, points)


def _panel(role: str, heading: str, name: str, probability: float | None, drawing: Drawing | None) -> Panel:
    if drawing is None:
        note = "no evidence was traced for this class"
    elif not drawing.points:
        note = "nothing in the image speaks for this class"
    elif drawing.points_drawn < drawing.points:
        drawn = f"{drawing.points_drawn} of {amount(drawing.points, 'fixation')}"
        note = f"{drawn}, {percent(drawing.mass_drawn)} of the weight"
    else:
        note = amount(drawing.points, "fixation")
    said = f"{heading}: {shortened(printable(name), NAME_LENGTH)}, probability {percent(probability)}; {note}"
    return Panel(role, heading, name, probability, drawing, note, said)


def _suggestions(findings: Sequence[Finding], image: ImageEvidence) -> tuple[str, ...]:
    named = (finding.suggested_name for finding in findings)
    return tuple(dict.fromkeys(name for name in named if name and name not in (image.pred_name, image.label_name)))


def _picture(image: ImageEvidence, side: int) -> Picture:
    try:
        original = load_original(image.uri)
    except (ImageError, MemoryError) as error:
        return Picture(None, f"No picture: {error or 'too large for the memory'}", False)
    crisp = max(original.size) <= _CRISP_BELOW
    original.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = BytesIO()
    original.save(file, "WEBP", lossless=crisp, quality=72, method=4)
    return Picture("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii"), "", crisp)
