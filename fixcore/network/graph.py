"""A captured network as a graph of ATen operations, and the recording of its forward pass.

N images, K classes, D features, C channels, H x W pixels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.errors import CaptureError, InputError, TargetError
from fixcore.network.finer import Finer, find_finer
from fixcore.network.head import Head, find_head
from fixcore.network.schedule import Step, operations_of, run, schedule
from fixcore.network.simplify import FILLED, activate_in_place
from fixcore.network.tokens import find_tokens
from fixcore.network.way import Way
from fixcore.points import is_vector
from fixcore.rules import rule
from fixcore.rules.elementwise import CHOOSES_BY_CONDITION
from fixcore.structure import Constants, Seen, arguments_by_name, measures

aten = torch.ops.aten


class Graph:
    """A captured network: its operations in order, its constants, and which activations the rules will read."""

    def __init__(self, graph: fx.Graph, constants: Constants, images: fx.Node) -> None:
        _annotate(graph, constants, images)
        self.images = images
        self.constants: Mapping[fx.Node, Tensor] = constants
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.logits = _only_output(output)
        if self.logits.meta["is_constant"]:
            raise CaptureError(
                "no evidence reaches the logits: from the images to them all becomes whole numbers, as in a quantised "
                "network, or the images are not read at all; take the network as it was before it was quantised"
            )
        self.nodes: tuple[fx.Node, ...] = tuple(node for node in graph.nodes if node.op == "call_function")
        self.head: Head | None = find_head(self.logits, constants)
        self.arguments = {node: arguments_by_name(node) for node in self.nodes}
        behind = (self.nodes, self.arguments, self.logits, self.head)
        self.tokens: Way | None = find_tokens(*behind)
        self.finer: Finer | None = None if self.tokens is not None else find_finer(*behind)
        self.made: dict[tuple[fx.Node, torch.Size, torch.Size], Any] = {}  # by rules; see Visit.once
        self._graph = graph  # owns the nodes
        kept = self._kept_nodes()
        activate_in_place(self.nodes, kept)
        operations = operations_of(self.nodes, self.arguments)
        self._steps = schedule(self.nodes, {*kept, self.logits, *constants}, operations)
        self.blanks = self._find_blanks()
        self._logit_steps = schedule(self.nodes, {self.logits, *constants}, operations)
        features = [] if self.head is None else [self.head.map]
        until = self.nodes.index(features[0]) + 1 if features and features[0] in self.nodes else 0
        self._feature_steps = schedule(self.nodes[:until], {*features, *constants}, operations)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.meta["seen"].shape
        return int(channels), int(height), int(width)

    @property
    def classes(self) -> int:
        """K, the width of the logits."""
        return int(self.logits.meta["seen"].shape[-1])

    def layer(self, name: str) -> fx.Node:
        """Return the operation that gives the output of a layer.

        `name` is the module's path in the user's model ("layer3.0.conv2"), or an operation's name in the graph. Of a
        module that is called several times it is the last call. Raises TargetError with the nearest names.
        """
        for node in reversed(self.nodes):
            if name == node.name or name in node.meta["modules"]:
                return node
        known = sorted({path for node in self.nodes for path in node.meta["modules"] if path})
        near = difflib.get_close_matches(name, known, 3) or known[-3:]
        raise TargetError(f"the network has no layer {name!r}; did you mean {', '.join(near)}?")

    def record(self, images: Tensor) -> Recording:
        """Run one forward pass in inference mode and keep the activations that the rules read.

        `images` is float (N, C, H, W) on the graph's device and of its dtype, in any memory format. Raises InputError
        for another shape or type, and for activations that overflow (logits that are not finite).
        """
        self.check(images)
        values: dict[fx.Node, Any] = {**self.constants, self.images: images}
        shapes = {node: value.shape for node, value in values.items()}
        run(self._steps, values, shapes)
        logits = values[self.logits]
        if logits.dim() not in (2, 3) or logits.shape[0] != images.shape[0]:
            raise InputError(
                f"the model returns {tuple(logits.shape)} for {images.shape[0]} images; logits are (N, K), or of a "
                "caption of S words (N, S, K)"
            )
        if not bool(torch.isfinite(logits).all()):
            raise InputError("the logits hold NaN or infinity; look at the images' range and at the model's dtype")
        return Recording(self, values, shapes, logits)

    def classify(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) alone, keeping nothing; InputError as `record`."""
        self.check(images)
        values: dict[fx.Node, Any] = {**self.constants, self.images: images}
        run(self._logit_steps, values, {})
        logits = values[self.logits]
        assert isinstance(logits, Tensor)
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Return the features that the last linear layer reads, (N, D): what a linear probe is trained on.

        A map before global average pooling is averaged, and normalised where the model does that. Runs no further than
        needed and keeps nothing. Raises InputError as `record` does, and CaptureError for a network that does not end
        in a linear layer.
        """
        self.check(images)
        if self.head is None:
            raise CaptureError("the model does not end in a linear layer, so there are no features to train a probe on")
        values: dict[fx.Node, Any] = {**self.constants, self.images: images}
        run(self._feature_steps, values, {})
        return self.head.features(values[self.head.map])

    def check(self, images: Tensor) -> None:
        """Raise InputError for images that the network was not captured for."""
        if not images.is_floating_point():
            raise InputError(f"images are {images.dtype}; convert them to float and normalise them as in training")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape:
            expected = ", ".join(str(extent) for extent in self.input_shape)
            raise InputError(f"images are {tuple(images.shape)}; this graph was captured for (N, {expected})")
        seen = self.images.meta["seen"]
        if (images.dtype, images.device.type) != (seen.dtype, seen.device.type):
            raise InputError(
                f"images are {images.dtype} on {images.device}; "
                f"this graph was captured for {seen.dtype} on {seen.device}"
            )
        if images.shape[0] == 0:
            raise InputError("there are no images in the batch")

    def _kept_nodes(self) -> set[fx.Node]:
        kept = set() if self.head is None else {self.head.map}
        ways = [] if self.tokens is None else [self.tokens]
        ways += [] if self.finer is None else [self.finer.to_coarse, self.finer.to_fine]
        for way in ways:
            kept.update(way.kept(self.arguments))
        for node in self.nodes:
            assert callable(node.target)
            if node.meta["is_constant"] or node.target not in rule:
                if not isinstance(node.meta["seen"], Seen):
                    kept.add(node)  # sizes, read again by layout rules
                continue
            entry = rule[node.target]
            names = entry.keeps
            if isinstance(node.meta["seen"], Seen) and is_vector(node.meta["seen"].shape):
                names = (*names, *entry.keeps_of_vectors)
            for name in names:
                fx.node.map_arg(node if name == "result" else self.arguments[node].get(name), kept.add)
        return kept

    def _find_blanks(self) -> dict[fx.Node, Tensor]:
        """Find kept elements that no pixel reaches: show the network an image of NaN, and see what is a number still.

        There are such elements only where something constant, say a learned token, was joined to what came from the
        image. Without it the network is not run.
        """
        joined = (aten.cat.default, aten.stack.default)
        if not any(
            node.target in joined and any(source.meta["is_constant"] for source in node.all_input_nodes)
            for node in self.nodes
            if not node.meta["is_constant"]
        ):
            return {}
        seen = self.images.meta["seen"]
        nothing = torch.full((1, *self.input_shape), torch.nan, dtype=seen.dtype, device=seen.device)
        values: dict[fx.Node, Any] = {**self.constants, self.images: nothing}
        depends = {self.images}
        for node in self.nodes:
            if any(source in depends for source in node.all_input_nodes):
                depends.add(node)
        run(tuple(_unanswered(step, depends) for step in self._steps), values, {})
        blanks = {}
        for node in self.nodes:
            value = values.get(node)
            if not isinstance(value, Tensor) or node.meta["is_constant"] or not value.is_floating_point():
                continue
            if None not in node.meta["seen"].shape[1:]:  # images follow each other, one by one
                blank = ~value.isnan().flatten()
                if blank.any():
                    blanks[node] = blank
        return blanks


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One forward pass: the logits, and what the way back needs."""

    graph: Graph
    values: Mapping[fx.Node, Any]
    """Activations that rules read, constants, and sizes. Where a maximum pool reads a ReLU, that is not yet applied."""
    shapes: Mapping[fx.Node, torch.Size]
    """Shape of every node's output."""
    logits: Tensor
    """(N, K): the model's output."""

    @property
    def features(self) -> Tensor:
        """(N, D): what the last linear layer reads; CaptureError if there is no such layer."""
        head = self.graph.head
        if head is None:
            raise CaptureError("the model does not end in a linear layer, so there are no features")
        return head.features(self.values[head.map])


def _annotate(graph: fx.Graph, constants: Constants, images: fx.Node) -> None:
    """Mark each node with its place in the order and with whether no evidence lies behind it.

    That is so where it does not depend on the pixels, and where it is a choice: the word that a captioner said last has
    evidence of its own, and is not what it sees now (CNN Fixations, III-D: gathered on m_(t-1)).
    """
    for position, node in enumerate(graph.nodes):
        node.meta["position"] = position
        if node is images:
            node.meta["is_constant"] = False
        elif node in constants or node.meta.get("seen") is None:
            node.meta["is_constant"] = True  # a weight, or a size
        elif node.target in FILLED or _is_choice(node.meta["seen"]):
            node.meta["is_constant"] = True
        else:
            node.meta["is_constant"] = all(source.meta["is_constant"] for source in node.all_input_nodes)


def _unanswered(step: Step, of_pixels: set[fx.Node]) -> Step:
    """Return a step that makes NaN of what pixels choose: a comparison with NaN has an answer, no."""
    if step.node.target not in CHOOSES_BY_CONDITION or step.node.args[0] not in of_pixels:
        return step

    def chosen(*arguments: Any, **named: Any) -> Tensor:
        return torch.full_like(step.operation(*arguments, **named), torch.nan)

    return replace(step, operation=chosen)


def _is_choice(value: Any) -> bool:
    """Whether a value counts or names something (the result of an argmax, a comparison), instead of measuring it."""
    return isinstance(value, Seen) and not measures(value.dtype)


def _only_output(output: fx.Node) -> fx.Node:
    (results,) = output.args
    found = [value for value in (results if isinstance(results, tuple | list) else [results]) if value is not None]
    if len(found) != 1 or not isinstance(found[0], fx.Node):
        raise CaptureError(f"the model returns {len(found)} values; wrap it in a module that returns the logits alone")
    return found[0]
