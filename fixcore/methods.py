"""The methods that can be measured side by side: the fixations and the baselines, by name.

N images, H x W pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixcore import baselines
from fixcore.backtrack import backtrack
from fixcore.errors import TargetError
from fixcore.evidence.activity import activity_maps
from fixcore.evidence.boxes import evidence_boxes, moment_boxes
from fixcore.evidence.saliency import saliency_maps
from fixcore.network.graph import Graph
from fixcore.start import usual_contrast

Explain = Callable[[Graph, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """One way to say where the evidence for a class lies."""

    name: str
    explain: Explain
    """(graph, images (N, C, H, W), target (N,)) -> float32 maps (N, H, W), >= 0."""
    threshold: float | None
    """Share of a map's maximum at which its authors draw the box; None: they give none, or none of this kind."""
    by_pixel: bool
    """Whether neighbouring pixels may differ widely, so that a peak is sought in the blurred map."""
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """What one method says of N targets."""

    maps: Tensor
    """float32 (N, H, W), >= 0."""
    boxes: Tensor
    """float32 (N, 4) xyxy in input pixels: the method's default box."""


def fixation_maps(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the saliency maps of the fixations as audits find them ("finer", against the mean), float32 (N, H, W)."""
    return _with_boxes(graph, images, target, "finer").maps


def last_map_fixation_maps(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the saliency maps of the fixations that begin in the last map, float32 (N, H, W), at most 1."""
    return _with_boxes(graph, images, target, "mass").maps


def published_fixation_maps(graph: Graph, images: Tensor, target: Tensor) -> Tensor:
    """Return the saliency maps of the published rules, float32 (N, H, W)."""
    return saliency_maps(backtrack(graph.record(images), target, rules="paper"))


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("fixations", fixation_maps, None, False, "this project; Mopuri et al., CNN Fixations"),
        Method("mass", last_map_fixation_maps, None, False, "this project, from the last map, however few its places"),
        Method("paper", published_fixation_maps, None, False, "Mopuri et al., CNN Fixations, as published"),
        Method("gradient", baselines.gradient, None, True, "Simonyan et al., Deep Inside Convolutional Networks"),
        Method("deconvnet", baselines.deconvnet, None, True, "Zeiler and Fergus"),
        Method("guided-backprop", baselines.guided_backprop, None, True, "Springenberg et al."),
        Method("cam", baselines.cam, 0.2, False, "Zhou et al., Learning Deep Features"),
        Method("grad-cam", baselines.grad_cam, 0.15, False, "Selvaraju et al., Grad-CAM"),
        Method("guided-grad-cam", baselines.guided_grad_cam, None, True, "Selvaraju et al., Grad-CAM"),
        Method("excitation", baselines.excitation_backprop, None, False, "Zhang et al., Excitation Backprop"),
        Method("c-mwp", baselines.contrastive_excitation_backprop, None, False, "Zhang et al., contrastive"),
        Method("occlusion", baselines.occlusion, None, False, "Zeiler and Fergus"),
    )
}
"""In the order in which tables show them."""

DEFAULT = ("fixations", "gradient", "guided-backprop", "cam", "grad-cam", "excitation")


def find_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Return methods by name; TargetError names the nearest for one that does not exist."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, 1, cutoff=0)
            raise TargetError(f"there is no method {name!r}; did you mean {near[0]}? ({', '.join(METHODS)})")
    return tuple(METHODS[name] for name in names)


def explain(method: Method, graph: Graph, images: Tensor, target: Tensor) -> Explained:
    """Return a method's maps and its default boxes; for the fixations the evidence boxes, for others `moment_boxes`."""
    if method.explain in (fixation_maps, last_map_fixation_maps):
        return _with_boxes(graph, images, target, "finer" if method.explain is fixation_maps else "mass")
    maps = method.explain(graph, images, target)
    return Explained(torch.nan_to_num(maps), moment_boxes(maps))


def _with_boxes(graph: Graph, images: Tensor, target: Tensor, rules: Literal["mass", "finer"]) -> Explained:
    recording = graph.record(images)
    fixations = backtrack(recording, target, rules=rules, contrast=usual_contrast(graph))
    activity = activity_maps(recording, finer=rules == "finer")
    return Explained(saliency_maps(fixations, activity=activity), evidence_boxes(fixations))
