"""Which format a folder has, by what lies in it."""

from __future__ import annotations

from pathlib import Path

from pipeline.annotated.annotation import AnnotatedSet
from pipeline.annotated.coco import find_json, read_coco
from pipeline.annotated.masks import is_graz, mask_folder, read_graz, read_masks
from pipeline.annotated.table import is_table, read_table
from pipeline.annotated.xml import read_ilsvrc, read_voc
from pipeline.errors import ConfigError, DatasetError

FORMATS = ("voc", "ilsvrc", "coco", "graz02", "masks", "table")
_ILSVRC = ("Annotations/CLS-LOC/val", "Annotations/CLS-LOC", "Annotations", "bbox_val", "val_bbox", "bbox")


def read_annotated(path: Path, *, form: str | None = None, split: str | None = None) -> AnnotatedSet:
    """Return the images of a dataset and what is marked in them.

    `path` is its folder, or its CSV or JSON file beside the images. `form` names the format (`FORMATS`); by default
    it is told by what lies there. `split` chooses the list of VOC (test) or the file of COCO (val2017).

    Raises DatasetError where nothing fits, or a file is damaged; ConfigError for an unknown format.
    """
    if form is not None and form not in FORMATS:
        raise ConfigError(f"there is no format {form!r}; known: {', '.join(FORMATS)}")
    if not path.exists():
        raise DatasetError(f"{path} is not there")
    if path.is_file():
        if path.suffix.lower() == ".json" and form in (None, "coco"):
            return read_coco(path.parent, path)
        if path.suffix.lower() == ".csv" and form in (None, "table") and is_table(path):
            return read_table(path.parent, path)
        raise DatasetError(f"{path} is neither a COCO file nor a CSV of boxes (image,label,x0,y0,x1,y1)")
    found = _read(path, form, split)
    if found is None:
        raise DatasetError(
            f"{path} holds no annotations that are known ({', '.join(FORMATS)}); docs/reproduce.md shows each layout"
        )
    return found


def _read(root: Path, form: str | None, split: str | None) -> AnnotatedSet | None:
    def may(name: str) -> bool:
        return form in (None, name)

    years = [path for path in sorted(root.glob("VOC2*")) if (path / "Annotations").is_dir()]
    if may("voc") and years:
        return read_voc(years[0], split)
    if may("voc") and (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir():
        return read_voc(root, split)
    tables = [path for path in sorted(root.glob("*.csv")) if may("table") and is_table(path)]
    if tables:
        return read_table(root, tables[0])
    if may("ilsvrc"):
        for name in (*_ILSVRC, "."):
            if (root / name).is_dir() and next((root / name).rglob("*.xml"), None) is not None:
                return read_ilsvrc(root, root / name)
    boxes = find_json(root, split) if may("coco") else None
    if boxes is not None:
        return read_coco(root, boxes)
    if may("graz02") and is_graz(root):
        return read_graz(root)
    masks = mask_folder(root) if may("masks") else None
    return None if masks is None else read_masks(root, masks)
