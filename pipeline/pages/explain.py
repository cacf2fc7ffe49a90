"""One image of a run, looked at closely: a picture of both labels' evidence, and the numbers in words.

H x W original pixels.
"""

from __future__ import annotations

import textwrap
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patches import Rectangle
from PIL import Image

from pipeline.dataset.images import ImageError, load_original
from pipeline.errors import RunFolderError
from pipeline.files import replacing
from pipeline.pages.findings import ClassEvidence, Finding, ImageEvidence, findings_of, read_one, read_settings
from pipeline.pages.overlay import heat, mask_of
from pipeline.runfolder import RunFolder
from pipeline.wording import TITLES, amount, percent, printable, score, shortened

_COLUMNS = ("image", "fixations", "box", "saliency mask", "heat map")
_GIVEN, _PREDICTION = ("#0b68b0", "#1f9bff"), ("#a84c00", "#ff8b1f")  # in text, on the image
_NARROWEST, _WIDEST = 0.4, 2.5  # width over height of a panel; thinner images are stretched to it
_SIDE = 2.9  # inches: longer side of a panel
_MARGIN, _GAP, _TITLE, _LINE = 0.3, 0.16, 0.3, 0.2  # inches
_LETTERS = 180  # of the words, in one line under the panels
_NAME_LENGTH = 90
_PIXELS, _CELLS = 900, 300  # sides at most, at which an image and a mask are drawn
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei", "Segoe UI Emoji")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What speaks for the labels of one image."""

    path: Path
    """The picture, PNG."""
    words: str
    """The same in words, several lines, for a terminal."""


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One class in the picture."""

    heading: str
    name: str
    probability: float | None
    evidence: ClassEvidence | None
    text_colour: str
    paint: str


def explain(run: RunFolder, image_id: str, out: Path) -> Explanation:
    """Write a PNG of the image with its fixations, box, saliency mask and heat map, for given label and prediction.

    One row where the two are the same. An image that could not be audited gets a picture that says why.

    Raises:
        RunFolderError: the image is not in the run (the nearest ids are named), its file is gone, or `out` cannot be
            written.

    """
    image = read_one(run, image_id)
    findings = findings_of(run, [image_id]).get(image_id, [])
    rows = _rows(image)
    if image.error is not None:
        words = [f"{_called(image.image_id)} could not be audited: {printable(image.error)}"]
        figure = _figure([], None, image, words)
    else:
        picture = _load(image)
        words = _words(image, _judge(run, image), rows, findings, picture)
        figure = _figure(rows, picture, image, words)
    with replacing(out) as partial, warnings.catch_warnings():
        # A name in letters that no installed font has is drawn as boxes; the words hold it as it is.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(partial, format="png")
    return Explanation(out, "\n".join(words))


def _rows(image: ImageEvidence) -> list[_Row]:
    rows = []
    if not image.agrees:
        rows.append(_Row("Given label", image.label_name, image.label_probability, image.given, *_GIVEN))
    if image.pred is not None:
        heading = "Given label = prediction" if image.agrees else "Prediction"
        rows.append(_Row(heading, image.pred_name or "", image.pred_probability, image.prediction, *_PREDICTION))
    return rows


def _load(image: ImageEvidence) -> Image.Image:
    try:
        return load_original(image.uri)
    except ImageError as error:
        raise RunFolderError(
            f"cannot draw {_called(image.image_id)}: {error} ({printable(image.uri)}); its numbers are still in the run"
        ) from error


def _judge(run: RunFolder, image: ImageEvidence) -> str:
    if image.fold is not None and image.fold >= 0:
        return f"judged by held-out fold {image.fold}, which never saw it"
    if read_settings(run).get("predict") == "probs":
        return "judged by the probabilities that were given"
    return "judged by a model that never saw this dataset"


def _words(
    image: ImageEvidence, judge: str, rows: list[_Row], findings: list[Finding], picture: Image.Image
) -> list[str]:
    assert image.width is not None
    assert image.height is not None
    lines = [f"{_called(image.image_id)}: {image.width} × {image.height} px, {judge}"]
    if picture.size != (image.width, image.height):
        lines.append(f"The file has changed since the run: it now has {picture.width} × {picture.height} px.")
    ratio = max(image.width, 1) / max(image.height, 1)
    if not _NARROWEST <= ratio <= _WIDEST:
        times = f"{ratio:,.0f} times as wide as high" if ratio > 1 else f"{1 / ratio:,.0f} times as high as wide"
        lines.append(f"The picture is drawn stretched: the image is {times}.")
    for row in rows:
        said = _evidence_in_words(row.evidence, image.width, image.height)
        lines.append(f"{row.heading} “{_called(row.name)}”, probability {percent(row.probability)}: {said}")
    if image.overlap is not None:
        lines.append(
            f"Overlap of the two evidences: {percent(image.overlap)} (0 % lie in different places, 100 % coincide)"
        )
    for finding in findings:
        scored = "" if finding.score is None else f", score {score(finding.score)}"
        lines.append(f"{TITLES[finding.issue]} (rank {finding.rank}{scored}): {printable(finding.reason)}")
    for name in dict.fromkeys(finding.suggested_name for finding in findings if finding.suggested_name):
        lines.append(f"Suggested label: {_called(name)}")
    if not findings:
        lines.append("Not flagged.")
    return lines


def _evidence_in_words(evidence: ClassEvidence | None, width: int, height: int) -> str:
    if evidence is None:
        return "no evidence was traced"
    if not len(evidence):
        return "nothing in the image speaks for it"
    heaviest = np.sort(evidence.mass.astype(np.float64))[::-1].cumsum()
    half = int(np.searchsorted(heaviest, heaviest[-1] / 2)) + 1
    parts = [f"{amount(len(evidence), 'fixation')}, half of the weight in the strongest {half}"]
    if evidence.box is not None:
        left, top, right, bottom = evidence.box
        share = (right - left) * (bottom - top) / (width * height)
        digits = 0 if max(width, height) >= 100 else 1
        parts.append(
            f"box x {left:.{digits}f}–{right:.{digits}f}, y {top:.{digits}f}–{bottom:.{digits}f} "
            f"({percent(share)} of the image)"
        )
    if evidence.mask is not None:
        parts.append(f"mask {percent(float(mask_of(evidence.mask, width, height).mean()))} of the image")
    return "; ".join(parts)


def _figure(rows: list[_Row], picture: Image.Image | None, image: ImageEvidence, words: list[str]) -> Figure:
    ratio = 1.0 if picture is None else min(max((image.width or 1) / (image.height or 1), _NARROWEST), _WIDEST)
    wide, high = (_SIDE, _SIDE / ratio) if ratio >= 1 else (max(_SIDE * ratio, 1.6), max(_SIDE * ratio, 1.6) / ratio)
    width = max(2 * _MARGIN + len(_COLUMNS) * wide + (len(_COLUMNS) - 1) * _GAP, 11.0) if rows else 9.0
    letters = int(_LETTERS * (width - 2 * _MARGIN) / 15.1)
    text = [line for said in words for line in textwrap.wrap(said, letters, subsequent_indent="    ")]
    head = _LINE + 0.06 if rows else 0.0
    height = 2 * _MARGIN + head + len(rows) * (_TITLE + high + 1.5 * _GAP) + len(text) * _LINE
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)

    def write(
        x: float, y: float, said: str, size: float, colour: str, weight: str = "normal", align: str = "left"
    ) -> None:
        """Write a line whose top is `y` inches below the figure's top."""
        figure.text(
            x / width,
            1 - y / height,
            said,
            fontsize=size,
            color=colour,
            weight=weight,
            ha=align,
            va="top",
            parse_math=False,  # a class may be called "$x^{"
            fontfamily=_fonts(),
        )

    y = _MARGIN
    for column, title in enumerate(_COLUMNS if rows else ()):
        write(_MARGIN + column * (wide + _GAP) + wide / 2, y, title, 10, "#586474", align="center")
    y += head
    for row in rows:
        heading = f"{row.heading}: {shortened(_called(row.name), 70)}"
        write(_MARGIN, y, f"{heading}   {percent(row.probability)}", 13, row.text_colour, "bold")
        y += _TITLE
        for column, title in enumerate(_COLUMNS):
            left = _MARGIN + column * (wide + _GAP)
            axes = figure.add_axes((left / width, 1 - (y + high) / height, wide / width, high / height))
            _panel(axes, title, row, picture, image)
        y += high + 1.5 * _GAP
    for number, line in enumerate(text):
        write(_MARGIN, y + number * _LINE, line, 9.5, "#17202b")
    return figure


def _panel(axes: Axes, column: str, row: _Row, picture: Image.Image | None, image: ImageEvidence) -> None:
    """Draw one aspect of one class's evidence over the image, in original pixels."""
    assert picture is not None
    width, height = image.width or 1, image.height or 1
    evidence = row.evidence if row.evidence is not None and len(row.evidence) else None
    small = picture.resize((min(picture.width, _PIXELS), min(picture.height, _PIXELS)), Image.Resampling.BOX)
    under = np.asarray(small.convert("L").convert("RGB") if column == "heat map" else small)
    extent = (0.0, float(width), float(height), 0.0)
    axes.imshow(under, interpolation="nearest" if max(small.size) <= 128 else "antialiased", extent=extent)
    axes.set_aspect("auto")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color("#c9cfd7")
    if evidence is None:
        if column != "image":
            axes.images[0].set_alpha(0.35)
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color="#17202b")
    elif column == "fixations":
        faint_first = np.argsort(evidence.mass, kind="stable")
        share = evidence.mass[faint_first] / max(float(evidence.mass.max()), 1e-30)
        opacity: Any = 0.5 + 0.5 * share  # the stubs know one for all only
        axes.scatter(
            evidence.x[faint_first] + 0.5,
            evidence.y[faint_first] + 0.5,
            s=5 + 60 * share,
            c=row.paint,
            edgecolors="black",
            linewidths=0.4,
            alpha=opacity,
        )
    elif column == "box" and evidence.box is not None:
        left, top, right, bottom = evidence.box
        for colour, line in (("black", 3.8), (row.paint, 2.0)):
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=line)
            )
    elif column == "saliency mask" and evidence.mask is not None:
        mask = mask_of(evidence.mask, width, height)
        # A cell of several pixels is in the mask if one of them is: a small mask must not fall through the grid.
        for axis in (0, 1):
            starts = np.arange(0, mask.shape[axis], -(-mask.shape[axis] // _CELLS))
            mask = np.logical_or.reduceat(mask, starts, axis=axis)
        shade = np.zeros((*mask.shape, 4), np.float32)
        shade[..., 3] = np.where(mask, 0.0, 0.72)
        axes.imshow(shade, interpolation="nearest", extent=extent, aspect="auto")
    elif column == "heat map":
        density = heat(evidence, width, height, 240)
        axes.imshow(
            density,
            cmap="inferno",
            vmin=0,
            vmax=1,
            alpha=0.15 + 0.7 * density,
            interpolation="bilinear",
            extent=extent,
            aspect="auto",
        )


def _called(name: str) -> str:
    return shortened(printable(name), _NAME_LENGTH)


@cache
def _fonts() -> list[str]:
    """Return the installed ones of the fonts that together cover most scripts, the plainest first."""
    installed = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in installed]
