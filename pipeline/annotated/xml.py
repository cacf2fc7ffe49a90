"""ILSVRC and VOC: one XML file per image, with the pixels of each box counted from 1 (VOC) or 0 (ILSVRC)."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

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
    try:
        if not path.is_file():
            raise DatasetError(f"{path} is not a file, or a link that leads nowhere; remove it")
        if path.stat().st_size > _LARGEST:
            raise DatasetError(f"{path} is {path.stat().st_size:,} bytes; an annotation is smaller")
        objects = []
        for one in _tree(path.read_bytes()).iter("object"):
            edges = [float(one.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0, x1, y1 = edges
            box = (x0 - first, y0 - first, x1 - first + 1, y1 - first + 1)
            hard = one.findtext("difficult", "0").strip() == "1"
            objects.append(Annotated((one.findtext("name") or "").strip(), box, hard))
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise DatasetError(f"{path} is no annotation: {error}") from error
    return objects


def _tree(data: bytes) -> ElementTree.Element:
    """Parse XML, refusing entities: a few lines of them make gigabytes, or name another file.

    The parser tells of them, as it alone knows the encoding.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = parser.SkippedEntityHandler = _refuse_entity
    parser.Parse(data, True)
    return builder.close()


def _refuse_entity(*_: object) -> NoReturn:
    raise ValueError("it defines entities, which an annotation has no use for")


def _listed(root: Path, split: str | None) -> set[str] | None:
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        return None
    for name in [split] if split else ["test", "val", "trainval"]:
        path = lists / f"{name}.txt"
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8") from error
            except OSError as error:
                raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
            return {line.split()[0] for line in lines if line.strip()}
    if split:
        known = ", ".join(sorted(path.stem for path in lists.glob("*.txt") if "_" not in path.stem))
        raise DatasetError(f"{lists} has no list {split}.txt; there are {known}")
    return None
