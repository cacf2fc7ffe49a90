"""One operation as a rule sees it, without a network around it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.points import Points
from fixcore.rules.table import Options, Visit, rule
from fixcore.structure import arguments_by_name
from tests.oracles import ADDED, ORACLES, Arrow, added


@dataclass
class OneNode:
    visit: Visit
    result: Tensor
    given: dict[str, Any]
    """What an oracle gets: arguments by name, with tensors."""
    names: dict[fx.Node, list[str]]


def one_node(
    operation: Any, *arguments: Any, options: Options, constants: tuple[int, ...] = (1, 2), **rest: Any
) -> OneNode:
    """Build a graph of one operation. Arguments in positions `constants` that are tensors count as weights."""
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}

    def placeholder(value: Any, name: str, constant: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = graph.placeholder(name)
        node.meta.update(is_constant=constant, position=len(values))
        values[node] = value
        return node

    built = []
    for position, value in enumerate(arguments):
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            built.append([placeholder(part, f"part{position}_{i}", False) for i, part in enumerate(value)])
        else:
            built.append(placeholder(value, f"argument{position}", position in constants))
    node = graph.call_function(operation, tuple(built), rest)
    # An operation that overwrites its input gets a copy: the rule sees what was recorded.
    result = operation(*[value.clone() if isinstance(value, Tensor) else value for value in arguments], **rest)
    node.meta.update(is_constant=False, position=len(values))
    named = arguments_by_name(node)
    shapes = {at: value.shape for at, value in values.items()} | {node: result.shape}
    visit = Visit(node, named, {**values, node: result}, shapes, options)
    given: dict[str, Any] = {name: fx.node.map_arg(value, lambda at: values[at]) for name, value in named.items()}
    names: dict[fx.Node, list[str]] = defaultdict(list)
    for name, value in named.items():
        for number, part in enumerate(value if isinstance(value, list | tuple) else [value]):
            if isinstance(part, fx.Node):
                names[part].append(f"{name}.{number}" if isinstance(value, list | tuple) else name)
    order = [name for at in values if not at.meta["is_constant"] for name in names[at]]
    given |= {
        "result": result,
        "operation": operation,
        "names": list(named)[: len(arguments)],
        "order": order,
        "from_map": False,
    }
    return OneNode(visit, result, given, names)


def followed(case: OneNode, signed: bool = False) -> list[Arrow]:
    """Where the rule sends each output element: every element is its own trace, all in one call."""
    count = case.result.numel()
    points = Points(torch.arange(count), torch.arange(count), torch.ones(count), signed=signed)
    found: list[Arrow] = [defaultdict(float) for _ in range(count)]
    for source, moved in rule[case.visit.node.target].follow(case.visit, points):
        (name, *_) = case.names[source]
        places = torch.stack(torch.unravel_index(moved.index, case.visit.shapes[source]), 1)
        for trace, place, mass in zip(moved.trace.tolist(), places.tolist(), moved.mass.tolist(), strict=True):
            found[trace][name, tuple(place)] += mass
    return found


def check_against_oracle(case: OneNode, signed: bool = False) -> None:
    """Assert that the rule sends every output element where the oracle does, in the same shares.

    `signed`: to what adds to the element and what takes away, each with its sign.
    """
    answer, adds = ORACLES[case.visit.node.target], signed and case.visit.node.target in ADDED
    case.given["signed"] = signed
    for element, found in enumerate(followed(case, signed)):
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), case.result.shape))
        expected = added(case.given, at) if adds else answer(case.given, at, case.visit.options)
        found = {key: share for key, share in found.items() if share != 0}
        assert found.keys() == expected.keys(), f"element {at}: {dict(found)} is not {expected}"
        for key, share in expected.items():
            assert abs(found[key] - share) < 1e-5, f"element {at}: {dict(found)} is not {expected}"
        assert signed or abs(sum(found.values()) - 1) < 1e-5
