"""Networks by name: torchvision's, an exported program, or a function of the user's; weights that cannot run code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from pipeline.errors import ModelError
from pipeline.geometry import InputSpec

_DEFAULT_INPUT = InputSpec(size=224, resize=256)
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_WAYS_ON = "--weights FILE, --predict train"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A network ready to be captured: eval mode, float32, no gradients."""

    module: nn.Module | ExportedProgram
    input: InputSpec
    categories: tuple[str, ...] | None
    """Names of its classes, where they are known."""
    spec: str
    digest: str
    """sha256 of the weights."""


def load_model(
    spec: str, *, weights: Path | None = None, classes: int | None = None, pretrained: bool = True
) -> LoadedModel:
    """Return the network that `spec` names.

    `spec` is ``torchvision:NAME``, ``FILE.pt2`` (torch.export) or ``package.module:function``, which is called without
    arguments and returns an nn.Module, whose `input_spec` attribute, if any, is used. `weights` is a safetensors file
    or a state dict; without it torchvision's published weights are used, downloaded once. `classes` replaces the
    last layer, for fine-tuning. Raises ModelError, in one line, for anything that cannot be had or does not fit.
    """
    if spec.startswith("torchvision:"):
        return _torchvision(spec, weights, classes, pretrained)
    if spec.endswith(".pt2"):
        return _exported(spec, weights)
    if ":" in spec:
        return _function(spec, weights, classes)
    raise ModelError(f"unknown model {spec!r}; name torchvision:NAME, FILE.pt2 or package.module:function")


def resolve_classes(loaded: LoadedModel, dataset_names: Sequence[str]) -> tuple[str, ...]:
    """Return the class names in the order of the model's outputs, for `predict = direct`.

    The model's own names where the dataset's are among them; else the dataset's, whose number the judge compares with
    the outputs.
    """
    if loaded.categories is not None and set(dataset_names) <= set(loaded.categories):
        return loaded.categories
    return tuple(dataset_names)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from safetensors or a state dict, without running code that the file may hold.

    A checkpoint's "state_dict" or "model" entry and a "module." prefix are understood; half precision becomes float32.
    """
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"there are no weights at {path}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors and could run code, so it is not opened; save a state dict or safetensors"
        ) from error
    except (OSError, RuntimeError, SafetensorError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise ModelError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    return {
        name.removeprefix("module."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }


def _torchvision(spec: str, weights: Path | None, classes: int | None, pretrained: bool) -> LoadedModel:
    name = spec.removeprefix("torchvision:")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        raise ModelError(f"torchvision has no classifier {name!r}; did you mean {near[0]!r}?")
    published = torchvision.models.get_model_weights(name).DEFAULT
    spec_of_input = _published_input(published)
    categories: tuple[str, ...] | None = tuple(published.meta["categories"])
    state = None
    if weights is not None:
        state = read_state_dict(weights)
    elif pretrained:
        state = _download(name, published)
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    width = _width_of(state)
    outputs = classes or (width if width is not None and weights is not None else None)
    if outputs is not None and categories is not None and outputs != len(categories):
        options["num_classes"] = outputs
        categories = None
    # Auxiliary classifiers serve training only; theirs are dropped, and so are their weights.
    if name in ("googlenet", "inception_v3"):
        options["aux_logits"] = False
        state = None if state is None else {k: v for k, v in state.items() if not k.lower().startswith("aux")}
        if pretrained or weights:
            options["transform_input"] = weights is None
    module = torchvision.models.get_model(name, weights=None, **options)
    if state is not None:
        _load_into(module, state, weights or Path(published.url.rsplit("/", 1)[-1]), new_head=classes is not None)
    return _ready(module, spec_of_input, categories, spec)


def _width_of(state: Mapping[str, Tensor] | None) -> int | None:
    """Return the number of classes that weights tell apart: the length of their last matrix or convolution."""
    if state is None:
        return None
    layers = [value for name, value in state.items() if name.endswith("weight") and value.dim() in (2, 4)]
    return int(layers[-1].shape[0]) if layers else None


def _published_input(published: Any) -> InputSpec:
    shown = published.transforms()
    return InputSpec(
        size=shown.crop_size[0],
        resize=shown.resize_size[0],
        mean=tuple(shown.mean),
        std=tuple(shown.std),
    )


def _download(name: str, published: Any) -> dict[str, Tensor]:
    """Fetch torchvision's weights into its own cache, once, with a progress bar, checked against their hash."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[-1]
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            print(f"downloading the weights of {name}, once", file=sys.stderr)
            digest = cached.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(published.url, str(cached), hash_prefix=digest, progress=True)
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"cannot download the weights of {name} ({_reason(error)}); "
                f"go on with {_WAYS_ON}, or a smaller model already cached ({_cached_models()})"
            ) from error
    return read_state_dict(cached)


def _reason(error: BaseException) -> str:
    text: str = str(getattr(error, "reason", error))
    return str(text.split("\n", 1)[0])


def _cached_models() -> str:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    there = {path.name for path in folder.glob("*.pth")} if folder.is_dir() else set()
    found = [
        f"--model torchvision:{name}"
        for name in torchvision.models.list_models(module=torchvision.models)
        if torchvision.models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[-1] in there
    ]
    return ", ".join(found[:3]) or "there is none"


def _load_into(module: nn.Module, state: dict[str, Tensor], path: Path, *, new_head: bool) -> None:
    own = module.state_dict()
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if new_head:
        last = _last_layer(module)
        for name in [name for name in wrong if name.rpartition(".")[0] == last]:
            wrong.remove(name)
            state = {**state, name: own[name]}
    missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{path} does not fit {type(module).__name__}: {name} is {tuple(state[name].shape)} in the file and "
            f"{tuple(own[name].shape)} in the network ({len(wrong)} such, {len(missing)} missing, "
            f"{len(unexpected)} unexpected)"
        )
    if missing or unexpected:
        first = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is unknown"
        raise ModelError(
            f"{path} does not fit {type(module).__name__}: {first} ({len(missing)} missing, "
            f"{len(unexpected)} unexpected)"
        )
    module.load_state_dict(state, strict=False)


def _last_layer(module: nn.Module) -> str:
    last: str = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    return last


def _exported(spec: str, weights: Path | None) -> LoadedModel:
    path = Path(spec)
    if weights is not None:
        raise ModelError(f"{spec} holds its own weights; leave out --weights")
    if not path.is_file():
        raise ModelError(f"there is no exported program at {spec}")
    _refuse_code(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch.export.load raises many kinds
        raise ModelError(f"{spec} is no program saved by torch.export: {str(error).splitlines()[0]}") from error
    example = program.example_inputs[0][0] if program.example_inputs else None
    size = int(example.shape[-1]) if isinstance(example, Tensor) else _DEFAULT_INPUT.size
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadedModel(module=program, input=InputSpec(size=size), categories=None, spec=spec, digest=digest)


def _refuse_code(path: Path) -> None:
    """Refuse an archive with a pickle that holds more than tensors: opening it could run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in names:
                if name.endswith((".pt", ".pth", ".pkl", ".pickle")):
                    with archive.open(name) as member:
                        torch.load(_seekable(member.read()), "cpu", weights_only=True)
            if any("custom_objs" in name for name in names):
                raise ModelError(f"{path} holds custom objects, which could run code; export the network without them")
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path} is no program saved by torch.export") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(f"{path} holds a pickle that could run code, so it is not opened") from error


def _seekable(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def _function(spec: str, weights: Path | None, classes: int | None) -> LoadedModel:
    where, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        build: Callable[..., Any] = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {spec}: {error}") from error
    options = {"num_classes": classes} if classes and "num_classes" in inspect.signature(build).parameters else {}
    module = build(**options)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec} returned {type(module).__name__}; it must return an nn.Module")
    if weights is not None:
        _load_into(module, read_state_dict(weights), weights, new_head=classes is not None)
    own = getattr(module, "input_spec", _DEFAULT_INPUT)
    return _ready(module, own, None, spec)


def _ready(module: nn.Module, own: InputSpec, categories: tuple[str, ...] | None, spec: str) -> LoadedModel:
    module = module.eval().float().requires_grad_(False)
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return LoadedModel(module=module, input=own, categories=categories, spec=spec, digest=digest.hexdigest())


__all__ = ["LoadedModel", "load_model", "read_state_dict", "resolve_classes"]
