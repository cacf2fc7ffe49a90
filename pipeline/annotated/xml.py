"""ILSVRC and VOC: one XML file per image, with the pixels of each box counted from 1 (VOC) or 0 (ILSVRC)."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from pipeline.annotated.annotation import IMAGES, Annotated, AnnotatedImage, AnnotatedSet, Files, finished
from pipeline.errors import DatasetError

_LARGEST = 1 << 22
"""Bytes of an annotation; a larger one is none."""


def read_voc(root: Path, split: str | None) -> AnnotatedSet:
    """Read JPEGImages, Annotations and, if it is there, the list ImageSets/Main/SPLIT.txt (default: test, then val).

    Boxes are xmin, ymin, xmax, ymax, counted from 1 and inclusive: pixel 1 covers [0, 1).
    """
    listed = _listed(root, split)
    return _read(root, root / "Annotations", "voc", listed, first=1)


def read_ilsvrc(root: Path, annotations: Path) -> AnnotatedSet:
    """Read the XML files of ILSVRC's classification and localisation task, beside or above its images.

    Boxes are counted from 0 and inclusive; classes are WordNet ids. The class of the image is that of its boxes.
    """
    return _read(root, annotations, "ilsvrc", None, first=0)


def _read(root: Path, annotations: Path, form: str, listed: set[str] | None, *, first: int) -> AnnotatedSet:
    images, missing = [], []
    files = Files(root, IMAGES)
    for path in sorted(annotations.rglob("*.xml")):
        if listed is not None and path.stem not in listed:
            continue
        found = files.find(path.stem)
        if found is None:
            missing.append(path.stem)
            continue
        objects = tuple(_objects(path, first))
        labels = {one.label for one in objects}
        label = labels.pop() if len(labels) == 1 and form == "ilsvrc" else None
        images.append(AnnotatedImage(files.image_id(found), str(found), objects, label=label))
    return finished(form, root, images, missing)


def _objects(path: Path, first: int) -> list[Annotated]:
    if path.stat().st_size > _LARGEST:
        raise DatasetError(f"{path} is {path.stat().st_size:,} bytes; an annotation is smaller")
    try:
        data = path.read_bytes()
        if b"<!ENTITY" in data:
            raise DatasetError(f"{path} defines entities, which an annotation has no use for")
        objects = []
        for one in ElementTree.fromstring(data).iter("object"):
            edges = [float(one.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0, x1, y1 = edges
            box = (x0 - first, y0 - first, x1 - first + 1, y1 - first + 1)
            hard = one.findtext("difficult", "0").strip() == "1"
            objects.append(Annotated((one.findtext("name") or "").strip(), box, hard))
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{path} is no annotation: {error}") from error
    return objects


def _listed(root: Path, split: str | None) -> set[str] | None:
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        return None
    for name in [split] if split else ["test", "val", "trainval"]:
        path = lists / f"{name}.txt"
        if path.is_file():
            return {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    if split:
        known = ", ".join(sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem))
        raise DatasetError(f"{lists} has no list {split}.txt; there are {known}")
    return None
