"""The table of rules: one small function per ATen operation, found by operation, never by model or layer name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, fx

from fixcore.errors import MissingRule
from fixcore.points import Points
from fixcore.structure import described

_Made = TypeVar("_Made")
Flow = Sequence[tuple[fx.Node, Points]]
"""Where the points of a node go: pairs of an input node and points in its output; a node may come twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Choices between readings of the algorithm; `MASS`, `FINER` and `PAPER` are the sets in use."""

    vector: Literal["positive", "net"]
    """Vectors: follow of every neuron what raises it (Alg. 1); or what each input adds to the target or takes away, and
    where a map begins the places that add more than its mean; where tokens mix, through all layers behind it."""
    fc_to_map: Literal["all", "argmax"]
    """Linear layer on a flattened map: follow as on a vector (paper), or the strongest input only (released code)."""
    location: Literal["same", "argmax"]
    """Convolution: stay at the window's centre, or go to the strongest product in the winning channel (Alg. 2)."""
    average_pool: Literal["above_mean", "argmax"]
    """Average pooling: follow the window's cells above its mean, or the strongest cell (paper)."""
    few_places: Literal["finer", "kept"]
    """A last map of few places: where evidence is net, go on in a finer one, at what in it adds to the places above the
    mean; or go on there."""


MASS = Options(vector="net", fc_to_map="all", location="same", average_pool="above_mean", few_places="kept")
FINER = replace(MASS, few_places="finer")
PAPER = Options(vector="positive", fc_to_map="all", location="same", average_pool="argmax", few_places="kept")


@dataclass(frozen=True, slots=True)
class Visit:
    """One node as a rule sees it: its arguments by name, the activations kept for it, the options."""

    node: fx.Node
    arguments: Mapping[str, Any]
    """Arguments by the operation's own names, defaults filled in; tensors are still nodes."""
    values: Mapping[fx.Node, Any]
    shapes: Mapping[fx.Node, torch.Size]
    options: Options
    blanks: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    """Where a node holds elements that no pixel reaches (a learned token beside the image's): bool, one image, flat."""
    made: dict[tuple[fx.Node, torch.Size, torch.Size], Any] = field(default_factory=dict)
    """What `once` made, for this node and others."""

    @property
    def result(self) -> Tensor:
        """The node's own output, if the rule keeps that (`"result"`)."""
        value = self.values[self.node]
        assert isinstance(value, Tensor)
        return value

    @property
    def shape(self) -> torch.Size:
        """Shape of the node's output."""
        return self.shapes[self.node]

    def source(self, name: str) -> fx.Node:
        """Return the node that argument `name` comes from."""
        node = self.arguments[name]
        assert isinstance(node, fx.Node), f"{self.node}: {name} is no tensor"
        return node

    def tensor(self, name: str) -> Tensor:
        """Return the value of tensor argument `name`: a constant, or an activation that the rule keeps."""
        source = self.source(name)
        if source not in self.values:
            raise MissingRule(
                f"{self.node.target} at node {self.node.name!r} has a {name} that depends on the images"
                f"{described(self.node)}; its backtracking rule follows none"
            )
        value = self.values[source]
        assert isinstance(value, Tensor)
        return value

    def again(self) -> Tensor:
        """Return the node's own output, computed once more of arguments that the rule keeps."""
        assert callable(self.node.target)
        return self.node.target(**fx.node.map_arg(self.arguments, self.values.__getitem__))  # type: ignore[no-any-return]

    def once(self, make: Callable[[Visit, torch.Size], _Made], places: torch.Size) -> _Made:
        """Return `make(self, places)`, made at the first visit: what no recording changes, such as windows and weights.

        `places` is the input's extent, (H, W).
        """
        key = (self.node, places, self.shape[2:])
        if key not in self.made:
            self.made[key] = make(self, places)
        return self.made[key]  # type: ignore[no-any-return]

    def without_blanks(self, source: fx.Node, index: Tensor, value: Tensor) -> Tensor:
        """Return `value` with -infinity where `index` of `source` lies on an element that no pixel reaches."""
        blank = self.blanks.get(source)
        return value if blank is None else value.masked_fill(blank[index % blank.numel()], -torch.inf)

    def plain(self, name: str) -> Any:
        """Return argument `name` as Python numbers, with sizes that depend on the batch filled in."""
        return fx.node.map_arg(self.arguments[name], lambda node: self.values[node])


Rule = Callable[[Visit, Points], Flow]


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and the tensor arguments whose values it reads."""

    follow: Rule
    keeps: tuple[str, ...]
    keeps_of_vectors: tuple[str, ...]
    """Those that it reads only where the output is a vector."""


class RuleTable(Mapping[Callable[..., Any], Entry]):
    """Rules by operation. Registering an operation twice raises; looking up one without a rule raises MissingRule."""

    def __init__(self) -> None:
        self._entries: dict[Callable[..., Any], Entry] = {}

    def __call__(
        self, *operations: Callable[..., Any], keeps: tuple[str, ...] = (), keeps_of_vectors: tuple[str, ...] = ()
    ) -> Callable[[Rule], Rule]:
        """Register a function as the rule of `operations`; `keeps` names the arguments that it reads, or `result`."""

        def register(follow: Rule) -> Rule:
            for operation in operations:
                if operation in self._entries:
                    raise ValueError(f"{operation} has a rule already: {self._entries[operation].follow.__name__}")
                self._entries[operation] = Entry(follow, keeps, keeps_of_vectors)
            return follow

        return register

    def __getitem__(self, operation: Callable[..., Any]) -> Entry:
        return self._entries[operation]

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, node: fx.Node) -> Entry:
        """Return the entry for a node; MissingRule names operation, node, shape and the line of the user's model."""
        assert callable(node.target)
        entry = self._entries.get(node.target)
        if entry is None:
            asked = node if hasattr(node.target, "_schema") else node.all_input_nodes[0]  # one of several outputs
            raise MissingRule(
                f"no backtracking rule for {asked.target} at node '{node.name}'{described(node)}; "
                "add one with @rule in fixcore/rules"
            )
        return entry


rule = RuleTable()
