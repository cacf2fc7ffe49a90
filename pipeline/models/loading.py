"""Networks by name: torchvision's, an exported program, or what a function of the user's returns."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.export import ExportedProgram

from fixcore.network.capture import written
from pipeline.errors import ConfigError, ModelError
from pipeline.geometry import InputSpec
from pipeline.models.downloads import fetch_weights
from pipeline.models.programs import NOTES, load_program
from pipeline.models.weights import digest_of, fit_weights, head_width, one_line, read_state_dict

_DEFAULT_INPUT = InputSpec(size=224, resize=256)  # as most networks trained on ImageNet are shown images
_FORMS = "torchvision:NAME, FILE.pt2, FILE.py:function or package.module:function"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # networks have no single ==
class LoadedModel:
    """A network ready to be captured: eval mode, float32, no gradients, on the CPU."""

    module: nn.Module | ExportedProgram
    input: InputSpec
    """How it wants to be shown images."""
    categories: tuple[str, ...] | None
    """Names of its outputs, in order, where they are known."""
    spec: str
    """The name it was asked for by."""
    digest: str
    """sha256 of the weights."""
    new_head: tuple[str, ...] = ()
    """Tensors of the last layer that start anew, since `classes` is not what the weights were made for."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides what it says of an image file: weights, layers, code, how images are shown."""
        layers = written(self.module) if isinstance(self.module, nn.Module) else ()
        told = (self.digest, str(self.input), *map(str, layers))
        return hashlib.sha256("\n".join(told).encode()).hexdigest()


def load_model(
    spec: str, *, weights: Path | None = None, classes: int | None = None, pretrained: bool = True
) -> LoadedModel:
    """Return the network that `spec` names.

    - ``torchvision:NAME``: a classifier of torchvision with its published weights, downloaded once into torch.hub's
      cache. Its input and categories are those of the published weights. Without `weights` and `pretrained` its weights
      are random, but always the same.
    - ``FILE.pt2``: saved by `torch.export.save`. Its input has the size of its example, and ImageNet's normalisation
      unless an extra file `fixaudit.json` has "mean", "std", "fit", "resize" or "categories".
    - ``FILE.py:function`` or ``package.module:function``: called without arguments; it returns an nn.Module. The
      working directory may hold the package; beside FILE.py may lie what it imports. The module's `input_spec` is used,
      if it has one, else 224 pixels out of 256.

    `weights` is a .safetensors file or a state dict. If it was made for another number of classes and the builder takes
    `num_classes`, the network is built for that number. `classes` asks for a last layer for so many classes, for
    fine-tuning; one of another size starts anew, its tensors are named in `new_head`.

    Raises ModelError, in one line: an unknown name, a download that is impossible, weights that do not fit or that
    could run code, a program or function that is no classifier.
    """
    if spec.endswith(".pt2"):
        return _exported(spec, weights, classes)
    kind, _, name = spec.rpartition(":")
    if kind == "torchvision" and name:
        return _torchvision(name.lower(), spec, weights, classes, pretrained)
    if kind and name:
        return _from_function(kind, name, spec, weights, classes)
    near = difflib.get_close_matches(spec.lower(), _torchvision_names(), 1)
    hint = f"did you mean torchvision:{near[0]}?" if near else f"a model is {_FORMS}"
    raise ModelError(f"unknown model {spec!r}; {hint}")


def from_anywhere(spec: str) -> str:
    """Return the name of the same network for a process that stands elsewhere: a file by its whole path."""
    file, colon, function = (spec, "", "") if spec.endswith(".pt2") else spec.rpartition(":")
    return f"{Path(file).resolve()}{colon}{function}" if file.endswith((".pt2", ".py")) else spec


def resolve_classes(loaded: LoadedModel, dataset_names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each of the model's outputs in the dataset's words, for ``predict = direct``.

    In this order: the model's own names, if the dataset's are among them; numbers, if the dataset's names are positions
    of outputs and fewer than these; the dataset's names in their order, if there are as many as outputs.

    Raises ModelError: another number of names, or names of which only some are the model's.
    """
    outputs = _count_outputs(loaded)
    names = tuple(dataset_names)
    known = loaded.categories if loaded.categories is not None and len(loaded.categories) == outputs else None
    strange = [name for name in names if known is not None and name not in known]
    if known is not None and not strange:
        return known
    if known is not None and len(strange) < len(names) and not any(map(str.isdecimal, names)):
        near = difflib.get_close_matches(strange[0], known, 1)
        hint = f" (the nearest is '{near[0]}')" if near else ""
        raise ModelError(
            f"{len(strange)} of the dataset's {len(names)} classes are unknown to {loaded.spec}, the first is "
            f"'{strange[0]}'{hint}; name its {outputs} outputs in the dataset's words with --classes FILE"
        )
    if len(names) == outputs:
        return names
    if all(name.isascii() and name.isdecimal() and int(name) < outputs for name in names) and len(names) < outputs:
        return known or tuple(str(position) for position in range(outputs))
    raise ModelError(
        f"{loaded.spec} tells {outputs} classes apart, the dataset has {len(names)}; name the model's outputs in order "
        "with --classes FILE, or use --predict probe"
    )


def _torchvision(name: str, spec: str, weights: Path | None, classes: int | None, pretrained: bool) -> LoadedModel:
    names = _torchvision_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, cutoff=0)
        raise ModelError(f"torchvision has no classifier {name!r}; did you mean torchvision:{near[0]}?")
    published = torchvision.models.get_model_weights(name).DEFAULT
    shown = published.transforms()
    categories = tuple(published.meta["categories"])
    state = None
    source = f"the published weights of {name}"
    if weights is not None:
        state, source = read_state_dict(weights), f"the weights in {weights}"
    elif pretrained:
        state = read_state_dict(fetch_weights(name, published.url))
    # What a network can be asked to be is read from its class, so that no network needs a line of its own here.
    builder = torchvision.models.get_model_builder(name)
    asked = inspect.signature(inspect.signature(builder).return_annotation).parameters
    wanted = {
        "init_weights": state is None,
        "aux_logits": False,  # serves training only
        "transform_input": state is not None,  # as torchvision does with its published weights
    }
    options = {option: value for option, value in wanted.items() if option in asked}
    built = _build(functools.partial(builder, weights=None, **options), state, source, classes)
    return _ready(
        built.module,
        input_spec=InputSpec(
            size=shown.crop_size[0], resize=shown.resize_size[0], mean=tuple(shown.mean), std=tuple(shown.std)
        ),
        categories=categories if built.classes in (None, len(categories)) else None,
        spec=spec,
        new_head=built.new_head,
    )


def _from_function(where: str, name: str, spec: str, weights: Path | None, classes: int | None) -> LoadedModel:
    try:
        package = _of_file(Path(where)) if where.endswith(".py") else _of_package(where)
    except Exception as error:  # importing runs the user's code
        raise ModelError(
            f"cannot import {where} for the model {spec}: {type(error).__name__}: {one_line(error)}"
        ) from error
    function = getattr(package, name, None)
    if not callable(function):
        near = difflib.get_close_matches(
            name, [known for known in dir(package) if callable(getattr(package, known))], 1
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"{where} has no function {name!r}{hint}")

    def build(**head: int) -> nn.Module:
        try:
            module = function(**head)
        except Exception as error:
            raise ModelError(f"{spec} failed: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"{spec} returned {type(module).__name__}; it must return a torch.nn.Module")
        return module

    state = None if weights is None else read_state_dict(weights)
    takes_head = "num_classes" in _parameters(function)
    built = _build(build, state, f"the weights in {weights}", classes, takes_head=takes_head)
    input_spec = getattr(built.module, "input_spec", _DEFAULT_INPUT)
    if not isinstance(input_spec, InputSpec):
        raise ModelError(
            f"input_spec of {spec} is {type(input_spec).__name__}; it must be a pipeline.geometry.InputSpec"
        )
    return _ready(built.module, input_spec=input_spec, categories=None, spec=spec, new_head=built.new_head)


def _of_package(name: str) -> ModuleType:
    _search_first(Path.cwd())  # as python -m does
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    file = path.resolve(strict=True)
    spec = importlib.util.spec_from_file_location(f"model_in_{path.stem}", file)
    assert spec is not None, "it ends in .py"
    assert spec.loader is not None
    _search_first(file.parent)  # as python FILE does
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where `inspect` finds its source
    spec.loader.exec_module(module)
    return module


def _search_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@dataclass(frozen=True, slots=True, eq=False)
class _Built:
    module: nn.Module
    classes: int | None
    """The number of classes that was asked of the builder; None: it chose itself."""
    new_head: tuple[str, ...]


def _build(
    build: Callable[..., nn.Module],
    state: Mapping[str, Tensor] | None,
    source: str,
    classes: int | None,
    *,
    takes_head: bool = True,
) -> _Built:
    """Build the network for `classes`, or for as many as the weights were made for, and give it the weights."""
    outputs = classes if takes_head else None
    with torch.random.fork_rng(devices=[]):  # a layer that starts anew starts the same in every process
        torch.manual_seed(0)
        module = build() if outputs is None else build(num_classes=outputs)
        if state is not None and classes is None and takes_head:
            outputs = head_width(module.state_dict(), state)
            module = module if outputs is None else build(num_classes=outputs)
    new_head = () if state is None else fit_weights(module, state, source, new_head=classes is not None and takes_head)
    return _Built(module, outputs, new_head)


def _exported(spec: str, weights: Path | None, classes: int | None) -> LoadedModel:
    path = Path(spec)
    if weights is not None:
        raise ModelError(f"{spec} holds its own weights; leave out --weights")
    if classes is not None:
        raise ModelError(
            f"{spec} is an exported program, whose last layer cannot be replaced; name its network instead"
        )
    loaded = load_program(path)
    program = loaded.program
    for name, tensor in [*program.state_dict.items(), *program.constants.items()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(f"{name} in {spec} is {tensor.dtype}; call .float() on the network and export it again")
        if tensor.device.type != "cpu":
            raise ModelError(f"{name} in {spec} is on {tensor.device}; move the network to the CPU and export it again")
        tensor.requires_grad_(False)
    notes = dict(loaded.notes)
    categories = notes.pop("categories", None)
    known = ("fit", "resize", "mean", "std")
    if strange := sorted(notes.keys() - set(known)):
        raise ModelError(f"{NOTES} in {spec} has an unknown key {strange[0]!r}; known: categories, {', '.join(known)}")
    try:
        triples = {key: _triple(value) for key, value in notes.items() if key in ("mean", "std")}
        input_spec = InputSpec(size=_side_of_input(program, spec), **{**notes, **triples})
        categories = None if categories is None else tuple(str(name) for name in categories)
    except (ConfigError, TypeError, ValueError) as error:
        raise ModelError(f"{NOTES} in {spec} does not say how images are seen: {one_line(error)}") from error
    return LoadedModel(module=program, input=input_spec, categories=categories, spec=spec, digest=loaded.digest)


def _triple(value: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(channel) for channel in value)
    return red, green, blue


def _side_of_input(program: ExportedProgram, spec: str) -> int:
    names = program.graph_signature.user_inputs
    shape = _shape_of(program, names[0]) if len(names) == 1 else ()
    if len(shape) != 4 or shape[1] != 3:
        raise ModelError(
            f"{spec} takes {len(names)} inputs, of shape {tuple(shape)}; it must take images (N, 3, S, S) alone"
        )
    height, width = shape[2:]
    if not isinstance(height, int) or height != width:
        raise ModelError(f"{spec} takes images of {height} x {width} pixels; export it for a fixed square size")
    return height


def _count_outputs(loaded: LoadedModel) -> int:
    """Return K, by judging a black image; a program says it without."""
    shape: Sequence[Any]
    if isinstance(loaded.module, ExportedProgram):
        results = loaded.module.graph_signature.user_outputs
        shape = _shape_of(loaded.module, str(results[0])) if len(results) == 1 else ()
    else:
        side = loaded.input.size
        try:
            with torch.no_grad():
                result = loaded.module(torch.zeros(1, 3, side, side))
        except Exception as error:  # whatever the user's network raises
            raise ModelError(
                f"{loaded.spec} cannot judge an image of {side} x {side} pixels: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        shape = tuple(result.shape) if isinstance(result, Tensor) else ()
    if len(shape) != 2:
        raise ModelError(f"{loaded.spec} is no classifier: it must return one tensor of shape (N, K)")
    return int(shape[1])


def _shape_of(program: ExportedProgram, name: str) -> tuple[Any, ...]:
    return next(tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name == name)


def _ready(
    module: nn.Module,
    *,
    input_spec: InputSpec,
    categories: tuple[str, ...] | None,
    spec: str,
    new_head: tuple[str, ...],
) -> LoadedModel:
    module = module.eval().float().requires_grad_(False)
    return LoadedModel(
        module=module,
        input=input_spec,
        categories=categories,
        spec=spec,
        digest=digest_of(module.state_dict().items()),
        new_head=new_head,
    )


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # written in C
        return {}


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names
