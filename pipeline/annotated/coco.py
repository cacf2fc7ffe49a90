"""COCO: one JSON file of images, annotations (boxes as x, y, width, height) and categories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.annotated.annotation import IMAGES, Annotated, AnnotatedImage, AnnotatedSet, Files, finished
from pipeline.errors import DatasetError


def find_json(root: Path, split: str | None) -> Path | None:
    """Return the file of boxes of a COCO folder: `instances_*.json`, or the only JSON file; None if there is none."""
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    boxes = [path for path in found if path.name.startswith("instances")] or found
    if split:
        boxes = [path for path in boxes if split in path.stem]
    if len(boxes) > 1:
        raise DatasetError(
            f"{root} has several files of annotations ({', '.join(path.name for path in boxes)}); "
            "say which with --split, as in --split val2017"
        )
    return boxes[0] if boxes else None


def read_coco(root: Path, path: Path) -> AnnotatedSet:
    """Read the images below `root` that `path` lists; crowds and objects without an area are marked as difficult."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        names = {int(one["id"]): str(one["name"]) for one in told["categories"]}
        by_image: dict[int, list[Annotated]] = {}
        for one in told["annotations"]:
            number = int(one["image_id"])
            by_image.setdefault(number, []).append(_object(one, names, number))
        listed: list[tuple[int, str]] = [(int(one["id"]), str(one["file_name"])) for one in told["images"]]
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise DatasetError(f"{path} is no COCO file: its lists are nested too deep") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path} is no COCO file: {_what(error)}") from error
    files = Files(root, IMAGES)
    images, missing = [], []
    for number, name in listed:
        found = files.find(name)
        if found is None:
            missing.append(name)
        else:
            images.append(AnnotatedImage(files.image_id(found), str(found), tuple(by_image.get(number, ()))))
    return finished("coco", root, images, missing)


def _object(one: Any, names: dict[int, str], image: int) -> Annotated:
    label = names[int(one["category_id"])]
    try:
        x, y, width, height = (float(edge) for edge in one["bbox"])
        empty = width == 0 or height == 0
        return Annotated(label, (x, y, x + width, y + height), bool(one.get("iscrowd")) or empty)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"image {image}: {error}; a box is x, y, width, height") from error


def _what(error: Any) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
