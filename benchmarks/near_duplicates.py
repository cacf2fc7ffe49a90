"""How near a picture saved anew stays to itself, and how near others come: `python -m benchmarks.near_duplicates`.

For photographs and CIFAR-10 images: the correlation of thumbnails (`pipeline.audit.duplicates`) between an image and
its changed copy (1 % and 5 % quantile), between different images (the most, and pairs from `SAME_PICTURE` on), and how
long the search takes. `--features` asks the same of two networks' features instead. Needs the benchmark data; 1
minute, 5 with features.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

import fixcore
from benchmarks.cifar import training_pixels
from benchmarks.photographs import TrainedNetwork, read_networks, read_photographs
from pipeline.audit.duplicates import SAME_PICTURE, near_pairs
from pipeline.dataset.images import thumbnail


def compressed(picture: Image.Image) -> Image.Image:
    """Return the picture after JPEG at quality 30."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def without_border(share: float) -> Callable[[Image.Image], Image.Image]:
    """Return what cuts a share of each side off."""

    def cut(one: Image.Image) -> Image.Image:
        across, down = round(one.width * share), round(one.height * share)
        return one.crop((across, down, one.width - across, one.height - down))

    return cut


CHANGES = {
    "JPEG 30": compressed,
    "half size": lambda one: one.resize((one.width // 2, one.height // 2), Image.Resampling.BICUBIC),
    "1.5 size": lambda one: one.resize((one.width * 3 // 2, one.height * 3 // 2), Image.Resampling.BICUBIC),
    "contrast 0.8": lambda one: ImageEnhance.Contrast(one).enhance(0.8),
    "brightness 1.15": lambda one: ImageEnhance.Brightness(one).enhance(1.15),
    "grey": lambda one: one.convert("L").convert("RGB"),
    "blur 1 %": lambda one: one.filter(ImageFilter.GaussianBlur(one.width / 100)),
    "3 % off each side": without_border(0.03),
}
BEYOND_THUMBNAILS = {
    **{name: CHANGES[name] for name in ("JPEG 30", "grey", "3 % off each side")},
    "8 % off each side": without_border(0.08),
    "mirrored": ImageOps.mirror,
}


def unit(pictures: list[Image.Image]) -> NDArray[np.float64]:
    """Return the thumbnails less their mean, at unit length, (n, 64)."""
    levels = np.stack([np.frombuffer(thumbnail(one), np.uint8) for one in pictures]).astype(float)
    levels -= levels.mean(1, keepdims=True)
    return levels / np.linalg.norm(levels, axis=1, keepdims=True)


def features_of(network: TrainedNetwork, pictures: list[Image.Image]) -> Tensor:
    """Return what the network's last layer reads of each picture, (n, D)."""
    side = 227 if network.name.startswith("SqueezeNet") else 224
    pixels = np.stack([np.asarray(one.resize((side, side), Image.Resampling.BILINEAR)) for one in pictures])
    graph = fixcore.capture(network.module, network.prepared(pixels[:2]))
    return torch.cat([graph.embed(network.prepared(pixels[at : at + 64])) for at in range(0, len(pixels), 64)])


def by_features(named: dict[str, list[Image.Image]], changed: int = 300) -> None:
    """Print how near changed copies stay by features less their mean (cosine), and how near other pictures come."""
    print("| network | images | other pictures: 99 %, most | " + " | ".join(BEYOND_THUMBNAILS) + " |")
    print("|" + "---|" * (3 + len(BEYOND_THUMBNAILS)))
    for network in read_networks():
        for name, pictures in named.items():
            own = features_of(network, pictures)
            mean = own.mean(0)
            own = torch.nn.functional.normalize(own - mean, dim=1)
            near = (own @ own.T).fill_diagonal_(-1).amax(1)
            cells = [f"{near.quantile(0.99):.2f}, {near.max():.2f}"]
            for change in BEYOND_THUMBNAILS.values():
                other = features_of(network, [change(one) for one in pictures[:changed]]) - mean
                told = (torch.nn.functional.normalize(other, dim=1) * own[:changed]).sum(1)
                cells.append(f"{told.quantile(0.05):.2f}, {told.median():.2f}")
            print(f"| {network.name} | {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", action="store_true", help="of features: 5 % quantile and median of each change")
    options = parser.parse_args()
    photographs = [Image.fromarray(pixels) for pixels in read_photographs().pixels]
    cifar = [Image.fromarray(pixels) for pixels in training_pixels(50_000)]
    if options.features:
        by_features({"photographs": photographs, "CIFAR-10": cifar[:3000]})
        return
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
