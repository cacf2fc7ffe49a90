"""CSV files of boxes: our own, one row per box, and Kaggle's solution of ILSVRC, one row per image."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.annotated.annotation import IMAGES, Annotated, AnnotatedImage, AnnotatedSet, Files, finished
from pipeline.errors import DatasetError

COLUMNS = ("image", "label", "x0", "y0", "x1", "y1")
_KAGGLE = ("ImageId", "PredictionString")


def is_table(path: Path) -> bool:
    """Whether a CSV file has the columns of one of the two kinds."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            head = next(csv.reader(lines), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    return set(COLUMNS) <= set(head) or set(_KAGGLE) <= set(head)


def read_table(root: Path, path: Path) -> AnnotatedSet:
    """Read a CSV of boxes over the images below `root`.

    Either the columns image, label, x0, y0, x1, y1 with pixels counted from 0, x1 and y1 exclusive, a row per box, an
    image without boxes with these empty; or Kaggle's ImageId, PredictionString: "label xmin ymin xmax ymax ...",
    inclusive. The class of an image is that of its first box.
    """
    by_image: dict[str, list[Annotated]] = {}
    labels: dict[str, str] = {}
    for where, row in _rows(path):
        kaggle = set(_KAGGLE) <= set(row)
        name = row["ImageId"] if kaggle else row["image"]
        try:
            marked = _kaggle_boxes(row["PredictionString"]) if kaggle else _own_box(row)
        except ValueError as error:
            raise DatasetError(f"{where}: {error} (image {name}); a box is four numbers") from error
        by_image.setdefault(name, []).extend(marked)
        if marked or not kaggle:
            labels.setdefault(name, marked[0].label if marked else row["label"])
    files = Files(root, IMAGES)
    images, missing = [], []
    for name, objects in by_image.items():
        found = files.find(name)
        if found is None:
            missing.append(name)
        else:
            images.append(
                AnnotatedImage(files.image_id(found), str(found), tuple(objects), label=labels.get(name) or None)
            )
    return finished("table", root, images, missing)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where a row stands and its cells; DatasetError where it has not one for each column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            twice = [name for name, times in Counter(reader.fieldnames).items() if times > 1]
            if twice:
                raise DatasetError(f"{path} has several columns {twice[0]}; keep one")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(
                        f"{where}: there are {len(reader.fieldnames or ())} columns, but not as many cells"
                    )
                yield where, row
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise DatasetError(f"{path} is not valid CSV: {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error


def _own_box(row: dict[str, str]) -> list[Annotated]:
    edges = [row[name].strip() for name in COLUMNS[2:]]
    if not any(edges):
        return []
    x0, y0, x1, y1 = (float(edge) for edge in edges)
    return [Annotated(row["label"].strip(), (x0, y0, x1, y1))]


def _kaggle_boxes(text: str) -> list[Annotated]:
    words = text.split()
    if len(words) % 5:
        raise ValueError(f"{len(words)} words are not label xmin ymin xmax ymax again and again")
    boxes = []
    for at in range(0, len(words), 5):
        x0, y0, x1, y1 = (float(word) for word in words[at + 1 : at + 5])
        boxes.append(Annotated(words[at], (x0, y0, x1 + 1, y1 + 1)))
    return boxes
