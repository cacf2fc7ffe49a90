"""Capturing a network: what it does is exported once, kept as text if wanted, and joined with its weights."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fixcore.errors import CaptureError
from fixcore.network.decomposition import FOLLOWED, decomposed
from fixcore.network.graph import Graph
from fixcore.network.simplify import simplify
from fixcore.structure import Constants, Structure, from_json, structure_of, to_json

_FORMAT = 3
"""Of the texts in a cache."""
_HINTS = {
    "specialized": "its code fixes the number of images, as int(x.shape[0]) does; use x.shape[0] as it is",
    "data-dependent": "its code branches on what the images hold, as `if x.mean() > 0` does; choose by torch.where",
}
"""What people can do about it, by a word in what torch says."""


def capture(
    model: nn.Module | ExportedProgram, example: Tensor, *, cache: MutableMapping[str, str] | None = None
) -> Graph:
    """Return the network as a graph that can be recorded and walked back; the model itself is left untouched.

    `example` is a batch of images, float (N, C, H, W), on the model's device; the graph takes any N and exactly this
    C, H and W. The weights are shared with the model where they need no change. Batch norms are folded into the
    convolutions before them, so logits agree with the model's up to rounding.

    `cache` keeps the structure of modules as text, so that the next start need not export again: any mapping will do, a
    dict or one that writes files. Its keys are digests of the weights, the modules' code, the images' shape and torch's
    version; an entry that is damaged, or whose network does not answer as the model does, is made anew.

    Raises CaptureError for a model in train mode, one that torch.export cannot read or that fixes the number of images,
    and one without evidence: between images and logits all becomes whole numbers.
    """
    if isinstance(model, ExportedProgram):
        return _joined(*_structured(model))
    _refuse_train_mode(model)
    key = "" if cache is None else _key(model, example)
    if cache is not None and key in cache:
        kept = _kept(cache[key], model, example)
        if kept is not None:
            return kept
    structure, tensors = _structured(_exported(model, example))
    if cache is not None and set(structure.tensors.values()) <= _own_tensors(model).keys() | structure.numbers.keys():
        with suppress(TypeError):  # it calls or holds what text cannot say
            cache[key] = to_json(structure)
    return _joined(structure, tensors)


def capture_all(models: Sequence[nn.Module], example: Tensor) -> list[Graph]:
    """Return networks that were built alike, such as those of folds, as graphs; the export is made once.

    As `capture` for each. Networks are alike that print alike (layers, strides, activations), hold the same numbers,
    and whose parameters and buffers have the same names and shapes; where they are not, or hold tensors that are
    neither, each is exported for itself. A choice that a network of the user's makes in `forward` and does not print
    must be the same in all.
    """
    for model in models:
        _refuse_train_mode(model)
    structure, first = _structured(_exported(models[0], example))
    graphs = [_joined(structure, first)]
    for model in models[1:]:
        own = _own_tensors(model)
        alike = (repr(model), _own_numbers(model)) == (repr(models[0]), _own_numbers(models[0])) and all(
            name in structure.numbers or (name in own and own[name].shape == value.shape)
            for name, value in first.items()
        )
        graphs.append(_joined(structure, own) if alike else capture(model, example))
    return graphs


def _refuse_train_mode(model: nn.Module) -> None:
    if model.training:
        raise CaptureError("the model is in train mode; call model.eval() first")


def _exported(model: nn.Module, example: Tensor) -> ExportedProgram:
    example = example.detach()
    if example.shape[0] < 2:  # a batch of one would be taken for a constant
        example = example.expand(2, *example.shape[1:])
    try:
        return _export(model, example, strict=False)
    except Exception as error:  # torch.export raises many kinds
        with suppress(Exception), _unlogged():  # it reads the code instead of running it, which leaves len(images) open
            return _export(model, example, strict=True)
        told = str(error).strip()
        reason, *_ = (
            [hint for word, hint in _HINTS.items() if word in told] or told.splitlines() or [type(error).__name__]
        )
        raise CaptureError(f"torch.export cannot read {type(model).__name__}: {reason}") from error


def _export(model: nn.Module, example: Tensor, *, strict: bool) -> ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        # Torch's own recurrent layers list their weights anew in `forward`.
        warnings.filterwarnings("ignore", "The tensor attribute", UserWarning)
        return torch.export.export(model, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=strict)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep what torch logs of a second attempt to itself: the first one's error is what people are told."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def _structured(program: ExportedProgram) -> tuple[Structure, dict[str, Any]]:
    """Return a program's structure and its tensors by name."""
    program = decomposed(program)
    return structure_of(program), {**program.constants, **program.state_dict}


def _joined(structure: Structure, tensors: Mapping[str, Any]) -> Graph:
    """Return the graph of a structure with these parameters, buffers and other constants."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(structure.graph, copies))
    by_name = {node.name: copies[node] for node in structure.graph.nodes if node.op == "placeholder"}
    known = {**structure.numbers, **tensors}
    constants: Constants = {by_name[name]: known[target].detach() for name, target in structure.tensors.items()}
    simplify(graph, constants)
    for node, value in constants.items():
        if value.dim() == 4:  # convolution weights: the layout in which windows are gathered and convolved fastest
            constants[node] = value.contiguous(memory_format=torch.channels_last)
    return Graph(graph, constants, by_name[structure.images])


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _own_numbers(model: nn.Module) -> list[tuple[str, str, float]]:
    """Single numbers that modules hold beside parameters and buffers, which an export takes for constants."""
    return [
        (path, name, value.item() if isinstance(value, Tensor) else value)
        for path, module in model.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.dim() == 0)
    ]


def written(model: nn.Module) -> Iterator[object]:
    """Yield what decides what a network computes beside its parameters and buffers: layers, numbers, its code."""
    yield re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))
    yield _own_numbers(model)
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        yield kind.__module__, kind.__qualname__
        with suppress(OSError, TypeError):  # built in a notebook or by exec: there is no source to read
            yield inspect.getsource(kind)


def _key(model: nn.Module, example: Tensor) -> str:
    """Digest of all that the structure of a network may follow from."""
    digest = hashlib.sha256()

    def told() -> Iterator[object]:
        yield from (_FORMAT, torch.__version__, tuple(example.shape[1:]), example.dtype, example.device.type)
        yield sorted(str(operation) for operation in FOLLOWED)
        yield from written(model)

    for part in told():
        digest.update(f"{part}\0".encode())
    for name, value in _own_tensors(model).items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _kept(text: str, model: nn.Module, example: Tensor) -> Graph | None:
    """Return the graph of a kept structure; None if it is damaged, or not this network's."""
    try:
        graph = _joined(from_json(text), _own_tensors(model))
        images = torch.rand(2, *example.shape[1:], generator=torch.Generator().manual_seed(0))
        images = images.to(example.device, example.dtype)
        with torch.inference_mode():
            expected, found = model(images), graph.record(images).logits
        scale = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
        return graph if bool(((found - expected).abs().max() / scale) < 1e-2) else None
    except Exception:  # whatever a damaged text leads to: it is only a copy
        return None
