"""The built-in sample: real handwritten digits of which a known set is mislabeled, so that the first run can be scored.

scikit-learn brings 1,797 scans of 8 x 8 pixels with 17 grey levels. They are written with every pixel as a square of
4 x 4, so that they can be looked at; nothing is smoothed or added.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.errors import DatasetError
from pipeline.files import write_text

_SCALE = 4
_BRIGHTEST = 16
_OURS = re.compile(r"\d/\d{4}\.png", re.ASCII)
_COLUMNS = ("image_id", "given", "true", "is_flipped")


@dataclass(frozen=True, slots=True)
class Truth:
    """What one image of the sample is said to show, and what it shows."""

    image_id: str
    given: str
    true: str

    @property
    def is_flipped(self) -> bool:
        """Whether the given label is wrong on purpose."""
        return self.given != self.true


@dataclass(frozen=True, slots=True)
class Score:
    """What an audit's flags are worth, by the truth."""

    planted: int
    """Images whose given label is wrong on purpose."""
    flagged: int
    """Images that the audit calls mislabeled."""
    found: int
    """Images that are both."""

    @property
    def precision(self) -> float:
        """Share of the flags that are right, in [0, 1]; NaN without flags."""
        return self.found / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        """Share of the wrong labels that are flagged, in [0, 1]; NaN without wrong labels."""
        return self.found / self.planted if self.planted else math.nan


def write_digits_sample(folder: Path, *, flipped: float = 0.05, seed: int = 0) -> Path:
    """Write the digits as an ImageFolder ``folder/images/<given label>/<index>.png`` and return ``folder/images``.

    Exactly ``round(flipped * 1797)`` labels, drawn with `seed`, are changed to another digit, each of the nine equally
    likely. ``folder/truth.csv`` (image_id, given, true, is_flipped) is written last: when it stands, all images do. The
    same arguments give the same bytes.

    Raises DatasetError if `folder` holds images of other origin or cannot be written.
    """
    if not 0 <= flipped <= 1:
        raise DatasetError(f"flipped is {flipped}; it is a share of the labels, from 0 to 1")
    digits = load_digits()
    true = digits.target
    draw = np.random.RandomState(seed)  # unlike default_rng, numpy promises that its numbers never change
    given = true.copy()
    wrong = draw.permutation(len(true))[: round(flipped * len(true))]
    given[wrong] = (true[wrong] + 1 + draw.randint(0, 9, len(wrong))) % 10
    rows = [
        Truth(f"{said}/{index:04d}.png", str(said), str(shown))
        for index, (said, shown) in enumerate(zip(given, true, strict=True))
    ]
    images = folder / "images"
    try:
        _clear(images, {row.image_id for row in rows})
        (folder / "truth.csv").unlink(missing_ok=True)
        for row, scan in zip(rows, digits.images, strict=True):
            grey = np.round(scan * (255 / _BRIGHTEST)).astype(np.uint8)
            path = images / row.image_id
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey.repeat(_SCALE, 0).repeat(_SCALE, 1)).save(path)
    except OSError as error:
        raise DatasetError(f"cannot write the sample to {folder}: {error.strerror or error}") from error
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows((row.image_id, row.given, row.true, str(row.is_flipped).lower()) for row in rows)
    write_text(text.getvalue(), folder / "truth.csv")
    return images


def read_truth(path: Path) -> tuple[Truth, ...]:
    """Read the truth.csv of `write_digits_sample`; raises DatasetError."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return tuple(Truth(row["image_id"], row["given"], row["true"]) for row in csv.DictReader(lines))
    except OSError as error:
        raise DatasetError(f"cannot read the truth in {path}: {error.strerror or error}") from error
    except (KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is no truth.csv; its columns must be {', '.join(_COLUMNS)}") from error


def score_flags(truth: tuple[Truth, ...], audit: pa.Table) -> Score:
    """Compare the truth with the columns `image_id` and `is_mislabeled` of an audit; a null flag is none."""
    wrong = {row.image_id for row in truth if row.is_flipped}
    rows = zip(audit["image_id"].to_pylist(), audit["is_mislabeled"].to_pylist(), strict=True)
    flagged = {image_id for image_id, is_flagged in rows if is_flagged}
    return Score(planted=len(wrong), flagged=len(flagged), found=len(wrong & flagged))


def _clear(images: Path, wanted: set[str]) -> None:
    """Remove what an earlier sample left in `images`; refuse to mix with files that are not ours."""
    if not images.exists():
        return
    there = {path.relative_to(images).as_posix() for path in images.rglob("*") if not path.is_dir()}
    if strange := sorted(name for name in there if not _OURS.fullmatch(name)):
        raise DatasetError(f"{images} holds other files ({strange[0]}); choose an empty folder for the sample")
    for name in there - wanted:
        (images / name).unlink()
