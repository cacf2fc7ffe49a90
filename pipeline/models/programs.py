"""Exported programs (.pt2), read without running code that the file may hold.

`torch.export.load` unpickles whatever it finds, evaluates symbolic sizes as Python, looks operators up by any dotted
name below `torch`, and builds Python source from names in the file. So every part that it would read is read here
first, by torch's own archive reader and from the same bytes, and must be one of the few things that a network needs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from pipeline.errors import ModelError
from pipeline.models.weights import load_tensors_only, one_line

NOTES = "fixaudit.json"
"""Name of the extra file (`torch.export.save(..., extra_files=)`) that says how the program sees images."""

_GRAPH = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_PAYLOADS = ("data/weights/", "data/constants/")
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)
_CONFIG = re.compile(r"model_(weights|constants)_config\.json", re.ASCII)

_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file|save)\w+\.\w+"  # from_file maps, and may create, a file
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|ite|not|sum)|math\.(ceil|floor|trunc)",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PATH = re.compile(r"[\w.:+<=>@-]*", re.ASCII)  # dotted names of parameters, versions, devices
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "And", "Or", "Not",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "FloorDiv", "CeilDiv", "CleanDiv", "PythonMod", "ModularIndexing", "IntTrueDiv", "FloatTrueDiv",
    "PowByNatural", "TruncToInt", "CeilToInt", "FloorToInt", "RoundToInt", "ToFloat", "Identity", "Where",
})  # fmt: skip
_EXPRESSION_PARTS = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A loaded exported program."""

    program: ExportedProgram
    notes: dict[str, Any]
    """The JSON object in its extra file `NOTES`; empty without one."""
    digest: str
    """sha256 of the file: weights and what is done with them."""


def load_program(path: Path) -> Program:
    """Load a program saved by `torch.export.save`.

    Raises ModelError: not such a file, of a version that this torch cannot read, or one holding anything that could
    run code: pickles of more than tensors, custom objects, compiled libraries, operators outside ATen.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the exported program {path}: {error.strerror or error}") from error
    notes = _check(data, path)
    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch.export.load raises many kinds
        raise ModelError(
            f"torch {torch.__version__} cannot load {path} ({one_line(error)}); export it again with this version"
        ) from error
    return Program(program, notes, hashlib.sha256(data).hexdigest())


def _check(data: bytes, path: Path) -> dict[str, Any]:
    """Raise ModelError for anything in the archive that is not known to be harmless; return the notes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "version" in archive.namelist():
                raise ModelError(f"{path} was exported by an old torch; export it again with torch {torch.__version__}")
        reader = PT2ArchiveReader(io.BytesIO(data))
        names = reader.get_file_names()
    except (zipfile.BadZipFile, RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"{path} is no program saved by torch.export.save") from error
    if len(set(names)) != len(names):
        raise ModelError(f"{path} is refused: its archive holds a file twice")
    if _GRAPH not in names:
        raise ModelError(f"{path} holds no exported program called 'model'; save it with torch.export.save")
    for name in names:
        folder = next((folder for folder in _PAYLOADS if name.startswith(folder)), None)
        if folder is not None:
            rest = name.removeprefix(folder)
            if not _PAYLOAD.fullmatch(rest) and not _CONFIG.fullmatch(rest):
                raise _refused(path, f"a pickled or custom object ({name})")
            if _CONFIG.fullmatch(rest):
                _check_config(_json(reader, name, path), path)
        elif name == _SAMPLE:
            if sample := reader.read_bytes(name):  # empty where the program was saved without example inputs
                load_tensors_only(io.BytesIO(sample), f"{name} in {path}")
        elif name == _GRAPH:
            _check_json(_json(reader, name, path), "", path)
        elif name not in _PLAIN and not name.startswith("extra/"):
            raise _refused(path, f"a part that no network needs ({name})")
    if f"extra/{NOTES}" not in names:
        return {}
    notes = _json(reader, f"extra/{NOTES}", path)
    if not isinstance(notes, dict):
        raise ModelError(f"{NOTES} in {path} must be a JSON object")
    return notes


def _json(reader: PT2ArchiveReader, name: str, path: Path) -> Any:
    try:
        return json.loads(reader.read_string(name))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {name} in it is not JSON") from error


def _check_config(config: Any, path: Path) -> None:
    """Let through weights that are plain bytes; torch would unpickle the others."""
    for payload in config["config"].values() if isinstance(config, dict) and "config" in config else [None]:
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise _refused(path, "pickled weights")
        if not _PAYLOAD.fullmatch(str(payload.get("path_name"))):
            raise _refused(path, f"weights at {payload.get('path_name')!r}")
        _check_json(payload, "", path)


def _check_json(value: Any, key: str, path: Path) -> None:
    """Check every string of the graph, by the key under which it stands."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not _PATH.fullmatch(name):
                raise _refused(path, f"the name {name!r}")
            if name != "metadata":
                _check_json(part, name, path)
            elif not isinstance(part, dict) or not all(isinstance(text, str) for text in part.values()):
                raise _refused(path, "metadata that is not text")  # text is kept as a note of the exporter, and not run
    elif isinstance(value, list):
        for part in value:
            _check_json(part, key, path)
    elif isinstance(value, str) and not _STRINGS.get(key, _PATH.fullmatch)(value):
        raise _refused(path, f"{key or 'the text'} {value[:80]!r}")


def _is_plain_expression(text: str) -> bool:
    """Tell whether `text` is arithmetic on symbols, with sympy's functions for it and nothing else."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for part in ast.walk(tree):
        if not isinstance(part, _EXPRESSION_PARTS):
            return False
        if isinstance(part, ast.Call) and not (isinstance(part.func, ast.Name) and part.func.id in _FUNCTIONS):
            return False
        if isinstance(part, ast.Name) and part.id.startswith("_"):
            return False
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and not _IDENTIFIER.fullmatch(part.value):
            return False
    return True


def _is_plain_tree(text: str) -> bool:
    """Tell whether `text` describes arguments or results made of tuples, lists and dicts only."""
    try:
        version, spec = json.loads(text)
        return version == 1 and _is_plain_branch(spec)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_plain_branch(spec: Any) -> bool:
    context = spec["context"]
    keys = [] if context in (None, "null") else json.loads(context)
    return (
        spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        and isinstance(keys, list)
        and all(isinstance(key, str) and _IDENTIFIER.fullmatch(key) for key in keys)
        and all(_is_plain_branch(child) for child in spec["children_spec"])
    )


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} is refused: it holds {what}, which is not known to be safe; export the network itself, in eval mode, "
        "with torch.export.save"
    )


# What a string may be, by its key in the graph's JSON; `_PATH` for all others.
_STRINGS: dict[str, Callable[[str], object]] = {
    "target": _OPERATOR.fullmatch,
    "as_operator": _OPERATOR.fullmatch,
    "expr_str": _is_plain_expression,
    "in_spec": _is_plain_tree,
    "out_spec": _is_plain_tree,
    "name": lambda text: text == "" or _IDENTIFIER.fullmatch(text),
    "as_name": _IDENTIFIER.fullmatch,
    "forward_arg_names": _IDENTIFIER.fullmatch,
    "as_string": lambda text: True,  # an operator's argument; written into the source with repr
    "as_strings": lambda text: True,
    "guards_code": lambda text: False,  # Python source
}
