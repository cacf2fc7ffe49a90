"""The built-in sample: real handwritten digits with a known set of wrong labels, so the first run shows the truth."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.files import replacing, write_text

_SCALE = 4
"""Each of the 8 x 8 pixels becomes a square of this side, so that a report shows more than a stamp."""
_BRIGHTEST = 16


@dataclass(frozen=True, slots=True)
class Truth:
    """One image of the sample."""

    image_id: str
    given: str
    true: str

    @property
    def is_flipped(self) -> bool:
        """Whether the given label is wrong on purpose."""
        return self.given != self.true


@dataclass(frozen=True, slots=True)
class Score:
    """What the flags were worth."""

    planted: int
    flagged: int
    found: int
    """Flagged images whose label is wrong indeed."""

    @property
    def precision(self) -> float:
        """Share of the flags that are right; NaN without flags."""
        return self.found / self.flagged if self.flagged else float("nan")

    @property
    def recall(self) -> float:
        """Share of the planted errors that are flagged; NaN without errors."""
        return self.found / self.planted if self.planted else float("nan")


def write_digits_sample(folder: Path, *, flipped: float = 0.05, seed: int = 0) -> Path:
    """Write scikit-learn's 1,797 digits as `folder/images/<given label>/<index>.png`, the truth as `folder/truth.csv`.

    `flipped` of the labels, drawn with `seed`, are another digit than the true one. The pictures are 32 x 32 greys.
    The same arguments write the same bytes. Returns the folder of images.
    """
    digits = load_digits()
    true = digits.target.astype(np.int64)
    draw = np.random.default_rng(seed)
    wrong = draw.choice(len(true), size=round(flipped * len(true)), replace=False)
    given = true.copy()
    given[wrong] = (true[wrong] + draw.integers(1, 10, len(wrong))) % 10
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image_id", "given", "true", "is_flipped"))
    for index, (picture, said, is_true) in enumerate(zip(digits.images, given, true, strict=True)):
        image_id = f"{said}/{index:04d}.png"
        grey = np.round(picture * (255 / _BRIGHTEST)).astype(np.uint8).repeat(_SCALE, 0).repeat(_SCALE, 1)
        with replacing(folder / "images" / image_id) as partial:
            Image.fromarray(grey).save(partial, format="PNG")
        table.writerow((image_id, said, is_true, said != is_true))
    write_text(text.getvalue(), folder / "truth.csv")
    return folder / "images"


def read_truth(path: Path) -> tuple[Truth, ...]:
    """Read what `write_digits_sample` wrote beside the images."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(Truth(row["image_id"], row["given"], row["true"]) for row in csv.DictReader(file))


def score_flags(truth: tuple[Truth, ...], audit: pa.Table) -> Score:
    """Count how many planted errors are flagged as mislabeled, and how many flags are right."""
    wrong = {image.image_id for image in truth if image.is_flipped}
    rows = zip(audit["image_id"].to_pylist(), audit["is_mislabeled"].to_pylist(), strict=True)
    flagged = {image_id for image_id, is_flagged in rows if is_flagged}
    return Score(planted=len(wrong), flagged=len(flagged), found=len(wrong & flagged))
