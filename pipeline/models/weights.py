"""Weights from files: read without running code, fitted to a network, named by a digest.

A file may come from anywhere. safetensors holds tensors only; of a pickle only what torch's weights-only reader
knows is read, and anything else is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights in a checkpoint
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
_COUNTER = "num_batches_tracked"  # of a batch norm; training only, and not in old files


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a .safetensors file, or else from a state dict saved by torch.

    A checkpoint that holds the weights under "state_dict", "model_state_dict" or "model" is understood.

    Raises ModelError: no such file, not weights, tensors that are not plain numbers, or a pickle that could run code.
    """
    if not path.is_file():
        raise ModelError(f"there are no weights at {path}")
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is not a readable safetensors file: {one_line(error)}") from error
    state = load_tensors_only(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    for name, value in state.items():
        if value.is_meta or value.is_quantized or value.is_nested or value.layout is not torch.strided:
            kind = "has a shape but no numbers" if value.is_meta else "is sparse, quantized or nested"
            raise ModelError(f"{path}: {name} {kind}; save plain tensors with torch.save(model.state_dict(), FILE)")
    return state


def load_tensors_only(source: Any, name: object = None) -> Any:
    """Unpickle with torch's weights-only reader onto the CPU; `source` is a path or a binary file called `name`.

    Raises ModelError.
    """
    shown = source if name is None else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says how to load TorchScript, which is refused below
            return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        refused = _what_is_refused(error)
        if refused is None:
            raise ModelError(f"{shown} cannot be read as weights: {one_line(error)}") from error
        raise ModelError(
            f"{shown} is refused: it {refused}, and reading it could run code; save model.state_dict() with "
            "torch.save, or safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise ModelError(f"{shown} is not a file of weights, or is damaged ({type(error).__name__})") from error


def fit_weights(module: nn.Module, state: Mapping[str, Tensor], source: str, *, new_head: bool) -> tuple[str, ...]:
    """Copy `state` into `module` and return the names of the head's tensors that were left as they are.

    Names may differ by a prefix or by dots (torchvision's old DenseNets); auxiliary heads, which serve training only,
    are dropped where the network has none. With `new_head`, tensors of one layer may differ in the number of classes.

    Raises ModelError with the first name that does not fit, `source` being what to call the weights.
    """
    expected: dict[str, Tensor] = module.state_dict()
    given = _renamed(state, expected)
    wrong = mismatches(expected, given)
    left_out: tuple[str, ...] = ()
    if new_head and head_width(expected, given) is not None:
        left_out = tuple(wrong)
        wrong = []
    fitting = OrderedDict((name, value) for name, value in given.items() if name not in left_out)
    # torch keeps the versions of layers here, by which old weights are converted on loading
    versions = getattr(state, "_metadata", None)
    fitting._metadata = (  # type: ignore[attr-defined]
        {_bare(name, state, expected): value for name, value in versions.items()}
        if versions
        else module.state_dict()._metadata  # type: ignore[attr-defined]
    )
    missing: list[str] = []
    unexpected: list[str] = []
    if not wrong:
        found = module.load_state_dict(fitting, strict=False)
        missing = [name for name in found.missing_keys if name not in left_out and not name.endswith(_COUNTER)]
        unexpected = list(found.unexpected_keys)
    else:
        missing = [name for name in expected if name not in given and not name.endswith(_COUNTER)]
        unexpected = [name for name in given if name not in expected]
    if wrong or missing or unexpected:
        if wrong:
            there, here = given[wrong[0]], expected[wrong[0]]
            first = f"{wrong[0]} is {_shown(there)} there and {_shown(here)} in the network"
        else:
            first = f"{missing[0]} is missing" if missing else f"the network has no {unexpected[0]}"
        raise ModelError(
            f"{source} do not fit: {first} (of {len(expected)} tensors {len(wrong)} differ and {len(missing)} are "
            f"missing; {len(unexpected)} are unexpected)"
        )
    return left_out


def mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors whose shape, or kind of number, is not the expected one."""
    return [
        name
        for name, value in expected.items()
        if name in given
        and (given[name].shape != value.shape or given[name].is_floating_point() != value.is_floating_point())
    ]


def head_width(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of `state`, if all that differs is the length of one layer's output.

    Then no layer reads that output, or its own width would differ as well: the layer is the head. None otherwise.
    """
    given = _renamed(state, expected)
    wrong = mismatches(expected, given)
    layers = {name.rpartition(".")[0] for name in wrong}
    widths = {given[name].shape[:1] for name in wrong}
    same_rest = all(
        given[name].dim() == expected[name].dim() > 0 and given[name].shape[1:] == expected[name].shape[1:]
        for name in wrong
    )
    if len(layers) != 1 or len(widths) != 1 or not same_rest:
        return None
    return int(widths.pop()[0])


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of the tensors' names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Return what `error` says, in one line of moderate length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _what_is_refused(error: BaseException) -> str | None:
    """Return in words what torch's weights-only reader does not allow; None if it says that the file is damaged."""
    text = str(error)
    if named := re.search(r"GLOBAL ([\w.]+)", text):
        return f"holds a pickled {named[1]}"
    if "TorchScript" in text:
        return "is a TorchScript program"
    return "holds more than tensors" if isinstance(error, pickle.UnpicklingError) or "weights_only" in text else None


def _renamed(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return `state` under the network's names, without auxiliary heads that the network lacks."""
    given = {_bare(name, state, expected): value for name, value in state.items()}
    branches = {name.split(".", 1)[0] for name in expected}
    undotted = {name.replace(".", ""): name for name in expected if name not in given}
    renamed: dict[str, Tensor] = {}
    for name, value in given.items():
        branch = name.split(".", 1)[0]
        if branch.lower().startswith("aux") and branch not in branches:
            continue
        known = name in expected
        renamed[name if known else undotted.get(name.replace(".", ""), name)] = value
    return renamed


def _bare(name: str, state: Collection[str], expected: Collection[str]) -> str:
    """Return `name` without a prefix that all of `state` has and no name of the network."""
    prefix = _prefix(state, expected)
    if name == prefix.rstrip("."):  # the wrapper's own entry among the versions
        return ""
    return name.removeprefix(prefix)


def _prefix(state: Collection[str], expected: Collection[str]) -> str:
    prefix = ""
    while True:
        further = next((p for p in _PREFIXES if all(name.startswith(prefix + p) for name in state)), None)
        if further is None or any(name.startswith(prefix + further) for name in expected):
            return prefix
        prefix += further


def _shown(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"
