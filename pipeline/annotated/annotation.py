"""One image, and what people marked in it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import DatasetError

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Annotated:
    """One object: its class as written, and its box in original pixels, x0, y0, x1, y1, the last two exclusive."""

    label: str
    box: Box
    difficult: bool = False
    """Marked as hard to see (VOC), as a crowd or without an area (COCO); protocols leave these out."""

    def __post_init__(self) -> None:
        """Raise ValueError for a box that no object has: any map would miss it, and the score would be wrong."""
        x0, y0, x1, y1 = self.box
        shown = ", ".join(f"{edge:g}" for edge in self.box)
        if not all(map(math.isfinite, self.box)):
            raise ValueError(f"the box {shown} is not four finite numbers")
        # COCO itself has a few boxes of no area; elsewhere the last pixel belongs to the box, so none can be empty.
        if x1 < x0 or y1 < y0 or ((x1 == x0 or y1 == y0) and not self.difficult):
            raise ValueError(f"the box {shown} (x0, y0, x1, y1) ends before it begins")


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its objects or its masks."""

    image_id: str
    """Relative to the dataset's root, `/` separators."""
    uri: str
    objects: tuple[Annotated, ...] = ()
    masks: tuple[str, ...] = ()
    """Files whose bright pixels are the object; their union counts."""
    label: str | None = None
    """Class of the whole image, where there is one."""


@dataclass(frozen=True, slots=True)
class AnnotatedSet:
    """A dataset as it was found, sorted by image."""

    form: str
    """Name of the format."""
    images: tuple[AnnotatedImage, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def labels(self) -> list[str]:
        """Every class that is named, sorted."""
        named = {one.label for image in self.images for one in image.objects}
        return sorted(named | {image.label for image in self.images if image.label is not None})


class Files:
    """The files below a folder, by name without ending, found once; what a manifest names is looked up here only.

    So a name inside a manifest never leads out of the folder, wherever it points.
    """

    def __init__(self, root: Path, endings: Sequence[str]) -> None:
        self.root = root
        self._paths = sorted(path for path in _walk(root) if path.suffix.lower() in endings)
        self._called: dict[str, list[Path]] = {}
        for path in self._paths:
            for name in (self.image_id(path), path.name, path.stem):
                own = self._called.setdefault(name, [])
                if path not in own:
                    own.append(path)

    def __iter__(self) -> Iterator[Path]:
        """Yield every file, sorted by path."""
        return iter(self._paths)

    def find(self, written: str) -> Path | None:
        """Return the file that a manifest means: by its path below the folder, its name, or its name without ending.

        None if there is none; DatasetError if several are called so.
        """
        path = PurePosixPath(written.replace("\\", "/"))
        for name in (path.as_posix(), path.name, path.stem):
            found = self._called.get(name, [])
            if len(found) > 1:
                raise DatasetError(f"{len(found)} files below {self.root} are called {name}: {found[0]}, {found[1]}")
            if found:
                return found[0]
        return None

    def image_id(self, path: Path) -> str:
        """Return a file's path below the root."""
        return path.relative_to(self.root).as_posix()


IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def finished(form: str, root: Path, images: list[AnnotatedImage], missing: list[str]) -> AnnotatedSet:
    """Return the set, with a warning for what was marked but is not there; DatasetError if nothing is left."""
    if not images:
        first = f" (first: {missing[0]})" if missing else ""
        raise DatasetError(f"{root} looks like {form}, but none of its images is there{first}")
    warnings = []
    if missing:
        warnings.append(f"{len(missing):,} annotated images are not there (first: {missing[0]}); they are left out")
    return AnnotatedSet(form, tuple(sorted(images, key=lambda image: image.image_id)), tuple(warnings))


def _walk(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)
