"""Masks as pictures: MSRA-B and ECSSD (one per image), Graz-02 (one per object)."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.annotated.annotation import IMAGES, AnnotatedImage, AnnotatedSet, Files, finished

MASK_FOLDERS = ("masks", "mask", "ground_truth_mask", "gt", "GT", "annotation")


def is_graz(root: Path) -> bool:
    """Whether a folder holds Graz-02's NAME.image.png somewhere."""
    return next(root.rglob("*.image.png"), None) is not None


def read_graz(root: Path) -> AnnotatedSet:
    """Read Graz-02: CLASS/NAME.image.png with NAME.mask.0.png, NAME.mask.1.png, ... of the objects of that class.

    Bright pixels are the object; the class is the folder. An image without a mask (a background) has none.
    """
    files = Files(root, (".png",))
    images = []
    for path in sorted(root.rglob("*.image.png")):
        stem = path.name.removesuffix(".image.png")
        masks = sorted(path.parent.glob(f"{_literal(stem)}.mask.*.png"))
        label = path.parent.name if path.parent != root else None
        images.append(
            AnnotatedImage(files.image_id(path), str(path), masks=tuple(str(mask) for mask in masks), label=label)
        )
    return finished("graz02", root, images, [])


def mask_folder(root: Path) -> Path | None:
    """Return the folder of masks of an MSRA-B or ECSSD layout: beside the images, or among them; None if none."""
    for name in MASK_FOLDERS:
        if (root / name).is_dir():
            return root / name
    stems = {path.stem for path in root.rglob("*.jpg")}
    return root if stems and any(path.stem in stems for path in root.rglob("*.png")) else None


def read_masks(root: Path, masks: Path) -> AnnotatedSet:
    """Read images with a mask of the same name: MSRA-B's and ECSSD's, NAME.jpg and NAME.png."""
    shown = Files(root, (".jpg", ".jpeg")) if masks == root else Files(_images_beside(root, masks), IMAGES)
    found = Files(masks, (".png", ".bmp"))
    images, missing = [], []
    for path in shown:
        mask = found.find(path.stem)
        if mask is None:
            missing.append(path.name)
        else:
            images.append(AnnotatedImage(path.relative_to(root).as_posix(), str(path), masks=(str(mask),)))
    return finished("masks", root, images, missing)


def _images_beside(root: Path, masks: Path) -> Path:
    """The folder of images beside that of the masks: `images`, or whatever other there is."""
    others = sorted(path for path in root.iterdir() if path.is_dir() and path != masks)
    named = [path for path in others if path.name.lower() in ("images", "image", "imgs")]
    return (named or others or [root])[0]


def _literal(stem: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", stem)
