"""Where the walk begins: class logits, or any linear function of the features.

N images, T targets, D features, L places, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, fx

from fixcore.errors import InputError, TargetError
from fixcore.network.class_map import class_map_points
from fixcore.network.graph import Graph, Recording
from fixcore.points import Points, is_vector
from fixcore.rules.elementwise import PASSES
from fixcore.rules.layout import LAYOUT
from fixcore.rules.linear import excitation

Contrast = Literal["mean", "softmax", "runner_up"]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """T things to explain, each in one image of a recording; an image may be named any number of times."""

    image: Tensor
    """int64 (T,): position in the recorded batch."""
    target: Tensor
    """int64 (T,): class ids, or any name the caller gives to `weight`'s rows; of a caption's logits (N, S, K) the
    position `word * K + class`."""
    weight: Tensor | None = None
    """(T, D): the linear function of the features to explain; None: the network's own weights for class `target`."""
    layer: str | None = None
    """Explain neurons of this layer (see `Graph.layer`) instead; `target` is the row-major position of each in the
    layer's output for one image."""


def class_starts(recording: Recording, target: Tensor) -> Start:
    """Return the start at one class logit per image; `target` is int64 (N,), -1 to leave an image out.

    Of a caption's logits (N, S, K), at one per image and word: `target` is (N, S), and the words of an image follow
    each other in the start. Raises TargetError for another shape or a class that does not exist.
    """
    classes = recording.logits.shape[-1]
    target = _class_ids(recording.logits, target, least=-1)
    image = torch.arange(len(target), device=target.device)
    if target.dim() == 1:
        return Start(image, target)
    word = torch.arange(target.shape[1], device=target.device)
    position = torch.where(target < 0, -1, word * classes + target)
    return Start(image.repeat_interleave(target.shape[1]), position.flatten())


def class_of_each(logits: Tensor, target: Tensor) -> Tensor:
    """Return the class asked for of each image, int64 (N,) on the device of the logits (N, K).

    Raises TargetError for a caption's logits, for another shape or type, and for a class that does not exist.
    """
    if logits.dim() != 2:
        raise TargetError(f"target is one class per image, which logits {tuple(logits.shape)} of a caption do not have")
    return _class_ids(logits, target, least=0)


def scores_of(logits: Tensor, target: Tensor) -> Tensor:
    """Return each image's logit of its target (N,); TargetError as `class_of_each`."""
    return logits.gather(1, class_of_each(logits, target)[:, None])[:, 0]


def checked(recording: Recording, start: Start) -> Start:
    """Return a caller's start with int64 tensors on the recording's device.

    Raises TargetError for images and targets that are no lists of integers of one length, for images that were not
    recorded, and for classes that do not exist. What the weights and neurons need is asked where they are used.
    """
    device = recording.logits.device
    for name, told in (("image", start.image), ("target", start.target)):
        if told.dim() != 1 or told.is_floating_point() or told.dtype == torch.bool:
            raise TargetError(f"a start's {name} is {told.dtype} {tuple(told.shape)}; it is int64 (T,)")
    if len(start.image) != len(start.target):
        raise TargetError(f"a start names {len(start.image)} images and {len(start.target)} targets; each has its own")
    image, target = (told.to(device, torch.int64) for told in (start.image, start.target))
    count, classes = len(recording.logits), recording.logits[0].numel()
    strange = (image < 0) | (image >= count)
    unknown = target < -1
    if start.weight is None and start.layer is None:
        unknown = unknown | (target >= classes)
    if bool((strange | unknown).any()):
        if bool(strange.any()):
            raise TargetError(f"a start names images {image[strange][:5].tolist()}; {count} were recorded, from 0")
        there = f"the network has classes 0..{classes - 1}" if start.layer is None else "neurons are counted from 0"
        raise TargetError(f"target holds {target[unknown][:5].tolist()}; {there}, and -1 asks for none")
    return replace(start, image=image, target=target)


def _class_ids(logits: Tensor, target: Tensor, *, least: int) -> Tensor:
    """Say classes, one for each row of logits (..., K), as int64 on their device; TargetError as `class_starts`."""
    *asked, classes = logits.shape
    if list(target.shape) != asked:
        what = "one class per image is" if len(asked) == 1 else "one class per image and word is"
        raise TargetError(f"target is {tuple(target.shape)}; {what} {tuple(asked)}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TargetError(f"target is {target.dtype}; class ids are integers")
    target = target.to(logits.device, torch.int64)
    if bool(((target < least) | (target >= classes)).any()):
        wrong = sorted({int(at) for at in target.flatten() if not least <= int(at) < classes})
        raise TargetError(f"target holds {wrong[:5]}; the network has classes 0..{classes - 1}")
    return target


def usual_contrast(graph: Graph) -> Contrast | None:
    """Return what audits set a class against: "mean" where a network ends in a linear layer, None for others.

    What all logits share, softmax cannot see: it speaks for no class. Where classes have no weights of their own their
    mean cannot be taken away, and a single one has nothing beside it.
    """
    return None if graph.head is None or len(graph.head.weight) < 2 else "mean"


def contrasted_weight(recording: Recording, start: Start, contrast: Contrast | None) -> Tensor:
    """Return the (T, D) weights of the targets' logits, less those of other classes.

    "mean" takes away the mean over all classes, which softmax cannot see; "softmax" the others weighted by their
    probability; "runner_up" the most probable other class. Raises TargetError without a linear head.
    """
    head = recording.graph.head
    if head is None:
        raise TargetError("the network does not end in a linear layer, so one class cannot be set against others")
    if start.weight is not None:
        if contrast is not None:
            raise TargetError("contrast is for class targets; give a start with weights its contrast in the weights")
        if start.weight.shape != (start.target.numel(), head.weight.shape[1]):
            raise TargetError(
                f"weights are {tuple(start.weight.shape)}; the features need "
                f"({start.target.numel()}, {head.weight.shape[1]})"
            )
        return start.weight
    own = start.target.clamp(min=0)
    weight = head.weight[own]
    if contrast is None:
        return weight
    if contrast not in get_args(Contrast):
        raise InputError(f"there is no contrast {contrast!r}; it is {', '.join(get_args(Contrast))} or None")
    if len(head.weight) < 2:
        raise TargetError("the network has one output, which cannot be set against others")
    if contrast == "mean":
        return weight - head.weight.mean(0)
    others = recording.logits[start.image].float().scatter(1, own[:, None], -torch.inf)
    if contrast == "runner_up":
        return weight - head.weight[others.argmax(1)]
    return weight - others.softmax(1).to(weight.dtype) @ head.weight


def head_points(recording: Recording, start: Start, weight: Tensor, signed: bool) -> tuple[fx.Node, Points]:
    """Begin on the map of features: at the places whose class-map value lies above its mean, one channel at each.

    See `class_map_points`. A vector of features, or a map that is read as one, is followed as a linear layer follows a
    neuron; `signed`: what the features add, and take away.
    """
    head = recording.graph.head
    assert head is not None
    value = recording.values[head.map]
    asked = (start.target >= 0).nonzero()[:, 0]
    image = start.image[asked]
    weight = weight[asked].to(value.dtype)
    if head.places:
        return head.map, class_map_points(value, head.places, image, head.on_map(weight), asked)
    product = (head.by_place(value)[image, 0] * weight).float()
    kept, share = (product != 0, product) if signed else excitation(product)
    index = image[:, None] * value[0].numel() + head.position(value.shape[1:], value.device)[0]
    return head.map, Points(index[:, 0], asked, torch.ones_like(asked, dtype=torch.float32), signed=signed).spread(
        index, kept, share
    )


def neuron_points(recording: Recording, start: Start, signed: bool) -> tuple[fx.Node, Points]:
    """Begin at neurons of an inner layer, each with mass 1; raises TargetError for neurons that the layer lacks."""
    assert start.layer is not None
    if start.weight is not None:
        raise TargetError("a start has weights of the features, or a layer, not both")
    node = recording.graph.layer(start.layer)
    per_image = recording.shapes[node][1:].numel()
    if bool((start.target >= per_image).any()):
        raise TargetError(
            f"layer {start.layer!r} has neurons 0..{per_image - 1}; target holds {int(start.target.max())}"
        )
    asked = (start.target >= 0).nonzero()[:, 0]
    index = start.image[asked] * per_image + start.target[asked]
    return node, _begun(recording, node, index, asked, signed)


def logit_points(recording: Recording, start: Start, signed: bool) -> tuple[fx.Node, Points]:
    """Begin at the class logits themselves, each with mass 1; where mass has a sign at what they are a softmax of."""
    asked = (start.target >= 0).nonzero()[:, 0]
    index = start.image[asked] * recording.logits[0].numel() + start.target[asked]
    node = recording.graph.logits
    while signed and node.target in PASSES and is_vector(recording.shapes[node]):
        node = node.all_input_nodes[0]
    return node, _begun(recording, node, index, asked, signed)


def _begun(recording: Recording, node: fx.Node, index: Tensor, trace: Tensor, signed: bool) -> Points:
    """Points of mass 1. Where mass has a sign, -1 at a neuron below 0: asked is what makes neurons high."""
    mass = torch.ones_like(trace, dtype=torch.float32)
    if not signed or not (is_vector(recording.shapes[node]) or node.target in LAYOUT):
        return Points(index, trace, mass, distinct=True)
    value = recording.logits if node is recording.graph.logits else recording.values.get(node)
    if value is not None:
        mass = torch.where(value.reshape(-1)[index] < 0, -mass, mass)
    return Points(index, trace, mass, distinct=True, signed=True)
