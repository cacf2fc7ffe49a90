"""How near a picture saved anew stays to itself, and how near others come: `python -m benchmarks.near_duplicates`.

For photographs and CIFAR-10 images: the correlation of thumbnails (`pipeline.duplicates`) between an image and its
changed copy (1 % and 5 % quantile), between different images (the most, and pairs from `SAME_PICTURE` on), and how
long the search takes. Needs the benchmark data; 1 minute.
"""

from __future__ import annotations

import io
import tarfile
import time

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.photographs import FOLDER, read_photographs
from pipeline.duplicates import SAME_PICTURE, near_pairs
from pipeline.images import thumbnail


def compressed(picture: Image.Image) -> Image.Image:
    """Return the picture after JPEG at quality 30."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


CHANGES = {
    "JPEG 30": compressed,
    "half size": lambda one: one.resize((one.width // 2, one.height // 2), Image.Resampling.BICUBIC),
    "1.5 size": lambda one: one.resize((one.width * 3 // 2, one.height * 3 // 2), Image.Resampling.BICUBIC),
    "contrast 0.8": lambda one: ImageEnhance.Contrast(one).enhance(0.8),
    "brightness 1.15": lambda one: ImageEnhance.Brightness(one).enhance(1.15),
    "grey": lambda one: one.convert("L").convert("RGB"),
    "blur 1 %": lambda one: one.filter(ImageFilter.GaussianBlur(one.width / 100)),
    "3 % off each side": lambda one: one.crop(
        (one.width * 3 // 100, one.height * 3 // 100, one.width * 97 // 100, one.height * 97 // 100)
    ),
}


def unit(pictures: list[Image.Image]) -> NDArray[np.float64]:
    """Return the thumbnails less their mean, at unit length, (n, 64)."""
    levels = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures]).astype(float)
    levels -= levels.mean(1, keepdims=True)
    return levels / np.linalg.norm(levels, axis=1, keepdims=True)


def main() -> None:
    """Print the table."""
    photographs = [Image.fromarray(pixels) for pixels in read_photographs().pixels]
    cifar = []
    with tarfile.open(FOLDER.parent / "cifar10" / "train_jpeg.tar.gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                cifar.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
    print("| images | change | 1 % | 5 % | median |\n|---|---|---|---|---|")
    for name, pictures in (("photographs", photographs), ("CIFAR-10", cifar[:2000])):
        own = unit(pictures)
        for change, apply in CHANGES.items():
            told = (own * unit([apply(one) for one in pictures])).sum(1)
            print(
                f"| {name} | {change} | "
                + " | ".join(f"{one:.4f}" for one in np.quantile(told, (0.01, 0.05, 0.5)))
                + " |"
            )
    print()
    for name, pictures in (("photographs", photographs), ("CIFAR-10", cifar)):
        levels = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures])
        began = time.perf_counter()
        pairs = near_pairs(levels)
        took = time.perf_counter() - began
        some = unit(pictures[:5000])
        near = some @ some.T
        np.fill_diagonal(near, 0)
        print(
            f"{name}: {len(pictures):,} images, {len(pairs)} pairs from {SAME_PICTURE} on in {took:.2f} s; "
            f"nearest two of the first {len(some):,}: {near.max():.4f}"
        )


if __name__ == "__main__":
    main()
