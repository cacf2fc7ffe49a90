"""The CIFAR-10 images, human labels and trained networks that lie beside the project, for measuring only.

N images of 32 x 32 pixels.
"""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def training_files(count: int, folder: Path = FOLDER) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the JPEG file of the first `count` training images, in the archive's order."""
    with tarfile.open(folder / "train_jpeg.tar.gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None and _number(member) < count:
                yield _number(member), file.read()


def training_pixels(count: int, folder: Path = FOLDER) -> NDArray[np.uint8]:
    """Return the first `count` training images, uint8 (N, 32, 32, 3)."""
    pixels = np.zeros((count, 32, 32, 3), np.uint8)
    for number, data in training_files(count, folder):
        pixels[number] = _decoded(data)
    return pixels


def held_out_images(folder: Path = FOLDER) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the first 2,000 test images, uint8 (N, 32, 32, 3), and their classes, int64 (N,)."""
    with tarfile.open(folder / "test_jpeg_2000.tar") as tar:
        members = sorted((member for member in tar if member.isfile()), key=_number)
        files = [tar.extractfile(member) for member in members]
        pixels = np.stack([_decoded(file.read()) for file in files if file is not None])
    return pixels, np.array([CLASSES.index(member.name.split("/")[-2]) for member in members])


def resnets(folder: Path = FOLDER) -> ModuleType:
    """Return the module that reads the trained ResNets; it lies with the data."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("resnet_cifar")
    finally:
        sys.path.remove(str(folder))


def _number(member: tarfile.TarInfo) -> int:
    return int(Path(member.name).stem) if member.isfile() else -1


def _decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
