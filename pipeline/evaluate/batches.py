"""Annotated images as the network sees them, with the truth in its pixels.

N images of a batch, B objects of an image at most, S x S network pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from pipeline.annotated import AnnotatedImage, AnnotatedSet
from pipeline.dataset.images import DecodedImage, ImageError, load_original, read_image
from pipeline.errors import DatasetError
from pipeline.evaluate.subject import Subject
from pipeline.geometry import InputSpec, seen_region


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Images that could be read, in the dataset's order."""

    shown: tuple[AnnotatedImage, ...]
    pixels: NDArray[np.uint8]
    """uint8 (N, S, S, 3)."""
    images: Tensor
    """float (N, 3, S, S)."""
    truths: Tensor
    """float32 (N, B, 4): every object's box in network pixels, not cut at the edges; NaN where there are fewer."""
    owners: tuple[tuple[str, ...], ...]
    """Per image the labels of its boxes."""

    @property
    def pictures(self) -> Tensor:
        """Colours in [0, 1], float32 (N, 3, S, S)."""
        return torch.from_numpy(self.pixels).permute(0, 3, 1, 2).float() / 255

    def boxes_of(self, labels: Sequence[str | None]) -> Tensor:
        """Return the boxes of one label per image (N, B, 4), NaN for the others; None: of all labels."""
        chosen = torch.zeros(self.truths.shape[:2], dtype=torch.bool)
        for at, (label, owners) in enumerate(zip(labels, self.owners, strict=True)):
            for place, owner in enumerate(owners):
                chosen[at, place] = label is None or owner == label
        return self.truths.masked_fill(~chosen[:, :, None], torch.nan)

    def asked(self, subject: Subject, ids: Mapping[str, int] | None, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class whose box is asked of each image, int64 (N,), and the boxes to hit, (N, B, 4).

        With `ids` (of `asked_classes`) that is the image's own class and its objects; without, the one that the network
        takes it for by `logits` (N, K), and the main object. DatasetError for an unreadable mask.
        """
        if ids is None:
            return logits.argmax(1), self.main_objects(subject.input)
        labels = [str(image.label) for image in self.shown]
        return torch.tensor([ids[label] for label in labels], device=logits.device), self.boxes_of(labels)

    def main_objects(self, spec: InputSpec) -> Tensor:
        """Return the box of each image's largest object, or around all that its mask shows, (N, 1, 4); NaN: neither.

        In network pixels. DatasetError for an unreadable mask.
        """
        width, height = (self.truths[..., 2:] - self.truths[..., :2]).unbind(-1)
        largest = torch.nan_to_num(width * height, nan=-1.0).argmax(1)
        boxes = self.truths[torch.arange(len(largest)), largest]
        if any(image.masks for image in self.shown):
            masks = self.masks(spec)
            without = boxes[:, 0].isnan() & masks.any(2).any(1)
            boxes[without] = masks_to_boxes(masks[without]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
        return boxes[:, None]

    def masks(self, spec: InputSpec) -> Tensor:
        """Return the objects' pixels as the network sees them, bool (N, S, S); DatasetError for an unreadable mask."""
        found = torch.zeros(len(self.shown), spec.size, spec.size, dtype=torch.bool)
        for at, image in enumerate(self.shown):
            for path in image.masks:
                try:
                    mask = load_original(path).convert("L")
                except ImageError as error:
                    raise DatasetError(f"the mask {path} cannot be read: {error}") from error
                region = seen_region(mask.width, mask.height, spec)
                seen = mask.resize((spec.size, spec.size), Image.Resampling.BILINEAR, box=region.box)
                found[at] |= torch.from_numpy(np.asarray(seen) >= 128)
        return found


@dataclass(slots=True)
class Problems:
    """Images that could not be read, gathered while batches are made."""

    reasons: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Return one line if there were any."""
        if not self.reasons:
            return ()
        return (f"{len(self.reasons):,} images could not be read (first: {self.reasons[0]}); they are left out",)


def batches(
    subject: Subject, dataset: AnnotatedSet | Sequence[AnnotatedImage], size: int, problems: Problems
) -> Iterator[Batch]:
    """Yield all images in batches of at most `size`; those that cannot be read go to `problems`."""
    images = dataset.images if isinstance(dataset, AnnotatedSet) else tuple(dataset)

    def decoded(image: AnnotatedImage) -> DecodedImage | str:
        try:
            return read_image(image.uri, subject.input)
        except ImageError as error:
            return f"{image.image_id}: {error}"

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            found = list(zip(part, pool.map(decoded, part), strict=True))
            problems.reasons += [one for _, one in found if isinstance(one, str)]
            readable = [(image, one) for image, one in found if isinstance(one, DecodedImage)]
            if readable:
                yield _batch(subject, readable)


def asked_classes(subject: Subject, dataset: AnnotatedSet) -> dict[str, int] | None:
    """Return the output that each class of the images means, None where images have none.

    Raises DatasetError where some images have a class and others none, and for classes that the network does not know.
    """
    unlabelled = sum(image.label is None for image in dataset.images)
    if 0 < unlabelled < len(dataset):
        raise DatasetError(
            f"boxes are asked of a class for each image, or for none: {unlabelled:,} of {len(dataset):,} have none"
        )
    return None if unlabelled else subject.class_ids(dataset.labels)


def halves(images: Sequence[AnnotatedImage], splits: int) -> Tensor:
    """Return which of two halves each image belongs to in each of at most 256 splits, bool (splits, N).

    A bit of its name's digest each, whatever the other images are.
    """
    digests = b"".join(hashlib.sha256(image.image_id.encode()).digest() for image in images)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(len(images), -1)
    return torch.from_numpy(bits[:, :splits].T.astype(bool))


def _batch(subject: Subject, readable: Sequence[tuple[AnnotatedImage, DecodedImage]]) -> Batch:
    pixels = np.stack([one.pixels for _, one in readable])
    kept = [[one for one in image.objects if not one.difficult] for image, _ in readable]
    truths = torch.full((len(readable), max(1, *map(len, kept)), 4), torch.nan)
    for at, ((_, decoded), objects) in enumerate(zip(readable, kept, strict=True)):
        region = seen_region(decoded.width, decoded.height, subject.input)
        for place, one in enumerate(objects):
            x0, y0, x1, y1 = one.box
            truths[at, place] = torch.tensor(
                [
                    (x0 - region.left) / region.step_x,
                    (y0 - region.top) / region.step_y,
                    (x1 - region.left) / region.step_x,
                    (y1 - region.top) / region.step_y,
                ]
            )
    owners = tuple(tuple(one.label for one in objects) for objects in kept)
    return Batch(tuple(image for image, _ in readable), pixels, subject.images(pixels), truths, owners)
