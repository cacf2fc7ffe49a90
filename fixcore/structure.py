"""What a network does, apart from its weights: operations, arguments, shapes; plain data that a file can hold."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fixcore.errors import CaptureError

_SIZES = {f"operator.{name}": getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod")}
"""Functions other than ATen's that a graph may call: arithmetic on sizes."""
_KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
}
"""Arguments that are neither numbers nor nodes."""


Constants = dict[fx.Node, Tensor]
"""Placeholders that stand for parameters, buffers and other constants, with their values."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What export saw of a tensor."""

    shape: tuple[int | None, ...]
    """None where the extent depends on the number of images."""
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """Operations in order, and which placeholder stands for which tensor of the model.

    Each node's `meta` holds "seen" (a Seen, a tuple of them for several outputs, None for a size), "modules" (paths of
    the modules it was called in, outermost first) and "line" (where in the user's code).
    """

    graph: fx.Graph
    images: str
    """Name of the placeholder of the images."""
    tensors: Mapping[str, str]
    """Names of the other placeholders, and of the parameters, buffers and constants that they stand for."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """The constants that are single numbers, by name: such as code writes into a mask, which some versions of torch
    lift out of the operations."""


def structure_of(program: ExportedProgram) -> Structure:
    """Return the structure of an exported program; CaptureError if it takes anything but one batch of images."""
    _refuse_what_is_no_function(program)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    for node in graph.nodes:
        meta = node.meta
        stack = [path for path, _ in meta.get("nn_module_stack", {}).values()]
        modules = [path for path in stack if not path.startswith("_empty_nn_module_stack")]  # what torch adds itself
        node.meta = {"seen": _seen(meta.get("val")), "modules": tuple(modules), "line": _line(meta.get("stack_trace"))}
    names = {node.name: copies[node].name for node in program.graph.nodes if node.op == "placeholder"}
    images, tensors = [], {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            images.append(names[spec.arg.name])
        else:
            assert spec.target is not None
            tensors[names[spec.arg.name]] = spec.target
    if len(images) != 1:
        what = "no images" if not images else "more than one input; wrap it in a module that takes images only"
        raise CaptureError(f"the model takes {what}")
    _refuse_shapes(next(node for node in graph.nodes if node.name == images[0]))
    constants = {name: program.constants.get(name) for name in tensors.values()}
    numbers = {name: value for name, value in constants.items() if isinstance(value, Tensor) and value.dim() == 0}
    return Structure(graph, images[0], tensors, numbers)


def _refuse_what_is_no_function(program: ExportedProgram) -> None:
    """Raise CaptureError for a model that leaves more behind than its result, or that chooses what to do."""
    for spec in program.graph_signature.output_specs:
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise CaptureError(
                f"the model writes into its buffer {spec.target!r}; let it leave that alone in eval mode"
            )
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            raise CaptureError("the model writes into the images that it is given; let it work on a copy, x.clone()")
    for node in program.graph.nodes:
        if node.op == "get_attr":  # a part of the program that is run, or is not
            raise CaptureError(f"the model chooses between parts of itself ({', '.join(map(str, node.users))})")


def _refuse_shapes(images: fx.Node) -> None:
    """Raise CaptureError for a program that takes one number of images, or images of any size."""
    seen = images.meta["seen"]
    count, *extents = seen.shape if isinstance(seen, Seen) else [None]
    if count is not None:
        raise CaptureError(f"the program takes exactly {count} images; export it with a dynamic first dimension")
    if None in extents:
        raise CaptureError("the program takes images of any size; export it for one height and width")


def measures(dtype: torch.dtype) -> bool:
    """Whether numbers of a type measure something; whole ones count or name (an argmax, a comparison)."""
    return dtype.is_floating_point or dtype.is_complex


def arguments_by_name(node: fx.Node) -> dict[str, Any]:
    """Return a node's arguments by the operation's own names, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # arithmetic on sizes; or no operation at all
        return {}
    named = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            named[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value
    return named


def described(node: fx.Node) -> str:
    """Return a node's shape and its line in the user's code, as the end of a message that names it."""
    seen = node.meta["seen"]
    extents = [] if not isinstance(seen, Seen) else ["N" if extent is None else str(extent) for extent in seen.shape]
    shape = f" (output shape ({', '.join(extents)}))" if extents else ""
    return shape + (f", {node.meta['line']}" if node.meta["line"] else "")


def to_json(structure: Structure) -> str:
    """Return the structure as text. Raises TypeError for a call or an argument that text cannot hold."""
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "target": _target_name(node) if node.op == "call_function" else "",
            "args": _written(node.args),
            "kwargs": _written(node.kwargs),
            "seen": _written(node.meta.get("seen")),
            "modules": list(node.meta.get("modules", ())),
            "line": node.meta.get("line", ""),
        }
        for node in structure.graph.nodes
    ]
    numbers = {
        name: [value.item(), _written(value.dtype), _written(value.device)] for name, value in structure.numbers.items()
    }
    told = {"images": structure.images, "tensors": dict(structure.tensors), "numbers": numbers, "nodes": nodes}
    return json.dumps(told)


def from_json(text: str) -> Structure:
    """Return the structure that `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else.

    Nothing is run and nothing imported: calls are looked up among ATen's and the arithmetic on sizes.
    """
    told = json.loads(text)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for row in told["nodes"]:
        args, kwargs = _read(row["args"], nodes), _read(row["kwargs"], nodes)
        if row["op"] == "placeholder":
            node = graph.placeholder(row["name"])
        elif row["op"] == "output":
            node = graph.output(*args)
        else:
            node = graph.create_node("call_function", _target(row["target"]), tuple(args), kwargs, name=row["name"])
        seen = _read(row["seen"], nodes)
        node.meta = {
            "seen": tuple(seen) if isinstance(seen, list) else seen,
            "modules": tuple(str(path) for path in row["modules"]),
            "line": str(row["line"]),
        }
        nodes[row["name"]] = node
    tensors = {nodes[name].name: str(target) for name, target in told["tensors"].items()}
    numbers = {
        str(name): torch.tensor(value, dtype=_read(dtype, nodes), device=_read(device, nodes))
        for name, (value, dtype, device) in told["numbers"].items()
    }
    return Structure(graph, nodes[told["images"]].name, tensors, numbers)


def _seen(value: Any) -> Seen | tuple[Seen | None, ...] | None:
    if isinstance(value, tuple | list):
        parts = [_seen(part) for part in value]
        return tuple(part if isinstance(part, Seen) else None for part in parts)
    if not isinstance(value, Tensor):
        return None
    shape = tuple(extent if isinstance(extent, int) else None for extent in value.shape)
    return Seen(shape, value.dtype, value.device)


def _line(trace: str | None) -> str:
    """Return the last line of the user's own code in a stack trace."""
    lines = [line.strip() for line in (trace or "").splitlines()]
    own = [line for line in lines if line.startswith("File ") and "/torch/" not in line]
    return own[-1] if own else ""


def _target_name(node: fx.Node) -> str:
    name = str(node.target)
    if isinstance(node.target, torch._ops.OpOverload) and name.startswith("aten."):
        return name
    for known, function in _SIZES.items():
        if function is node.target:
            return known
    raise TypeError(f"{name} cannot be written down")


def _target(name: str) -> Any:
    if name in _SIZES:
        return _SIZES[name]
    namespace, packet, overload = name.split(".")
    if namespace != "aten":
        raise ValueError(f"{name} is no operation of ATen")
    found = getattr(getattr(torch.ops.aten, packet), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{name} is no operation of ATen")
    return found


def _written(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, Seen):
        return {"seen": [list(value.shape), _written(value.dtype), _written(value.device)]}
    if isinstance(value, tuple | list):
        return [_written(part) for part in value]
    if isinstance(value, Mapping):
        return {"named": {key: _written(part) for key, part in value.items()}}
    for kind, known in _KINDS.items():
        if isinstance(value, known):
            return {kind: str(value).removeprefix("torch.")}
    raise TypeError(f"an argument of type {type(value).__name__} cannot be written down")


def _read(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(part, nodes) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, told),) = value.items()
    if kind == "node":
        return nodes[told]
    if kind == "named":
        return {key: _read(part, nodes) for key, part in told.items()}
    if kind == "seen":
        shape, dtype, device = told
        return Seen(tuple(shape), _read(dtype, nodes), _read(device, nodes))
    if kind == "device":
        return torch.device(told)
    found = getattr(torch, told)
    if not isinstance(found, _KINDS[kind]):
        raise ValueError(f"{told} is no {kind}")
    return found
