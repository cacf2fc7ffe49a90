"""The network under test, and how it is shown images.

N images, S x S network pixels, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fixcore
from pipeline.errors import DatasetError
from pipeline.geometry import InputSpec
from pipeline.models.graphcache import GraphCache, default_folder
from pipeline.models.loading import LoadedModel, load_model


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A captured network with its own view of images."""

    name: str
    graph: fixcore.Graph
    module: nn.Module | None
    """The network itself, for protocols that change its weights; None for an exported program."""
    input: InputSpec
    classes: tuple[str, ...] | None
    """Names of its outputs, where they are known."""
    device: torch.device

    def images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return uint8 (N, S, S, 3) pixels as the network wants them, float (N, 3, S, S)."""
        mean, std = (
            torch.tensor(one, device=self.device).view(1, 3, 1, 1) for one in (self.input.mean, self.input.std)
        )
        shown = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2).float() / 255
        return (shown - mean) / std

    def with_module(self, module: nn.Module) -> Subject:
        """Return the same subject with other weights."""
        return replace(self, graph=fixcore.capture(module, self._example()), module=module)

    def _example(self) -> Tensor:
        return torch.zeros(2, 3, self.input.size, self.input.size, device=self.device)

    def class_ids(self, labels: Sequence[str]) -> dict[str, int]:
        """Return the output that each label of a dataset means: by name, or by number if it is one.

        Raises DatasetError for labels that the network does not know, with the nearest name.
        """
        count = self.graph.classes
        by_name = {name: at for at, name in reversed(list(enumerate(self.classes or ())))}
        found, strange = {}, []
        for label in labels:
            if label in by_name:
                found[label] = by_name[label]
            elif label.isascii() and label.isdecimal() and int(label) < count:
                found[label] = int(label)
            else:
                strange.append(label)
        if strange:
            near = difflib.get_close_matches(strange[0], list(by_name), 1)
            hint = f" (the nearest is '{near[0]}')" if near else ""
            raise DatasetError(
                f"{len(strange)} of {len(labels)} labels are no outputs of {self.name}, the first is "
                f"'{strange[0]}'{hint}; name its {count} outputs in the dataset's words with --classes FILE"
            )
        return found


def load_subject(
    model: str,
    *,
    weights: Path | None = None,
    classes: tuple[str, ...] | None = None,
    size: int | None = None,
    fit: str | None = None,
    device: str = "cpu",
) -> Subject:
    """Return the network that `model` names (see `load_model`), captured; ModelError where that fails.

    `fit` is squash by default, so that the whole image is seen, with everything that is marked in it.
    """
    loaded: LoadedModel = load_model(model, weights=weights)
    seen = replace(loaded.input, size=size or loaded.input.size, resize=None, fit=fit or "squash")
    where = torch.device(device)
    module = loaded.module if not isinstance(loaded.module, nn.Module) else loaded.module.to(where)
    example = torch.zeros(2, 3, seen.size, seen.size, device=where)
    graph = fixcore.capture(module, example, cache=GraphCache(default_folder()))
    own = module if isinstance(module, nn.Module) else None
    return Subject(model, graph, own, seen, classes or loaded.categories, where)
