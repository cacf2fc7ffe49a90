"""What a run is told: one frozen record, from defaults, a TOML file, the environment and flags, in that order."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError

if TYPE_CHECKING:  # NumPy; the command's help must not wait for it
    from pipeline.geometry import InputSpec

PREFIX = "FIXAUDIT_"
DEFAULT_BACKBONE = "torchvision:resnet50"

FEW_IMAGES = 256
"""Images that one process has judged before Ray's workers, which read torch and the network anew, get to work."""

Predict = Literal["direct", "probe", "train", "probs"]
Fit = Literal["crop", "squash"]
EngineName = Literal["auto", "ray", "inprocess"]
Device = Literal["auto", "cpu", "cuda"]
Numbers = tuple[float, float, float]

_WORDS = {str: "text", int: "a whole number", bool: "true or false", Numbers: "three numbers"}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _about(meaning: str, *, changes_result: bool = True, low: int | None = None) -> dict[str, Any]:
    return {"meaning": meaning, "changes_result": changes_result, "low": low}


def _place(meaning: str) -> dict[str, Any]:
    return _about(meaning, changes_result=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Settings of one audit; `meaning` in each field's metadata is its documentation.

    Files are named here; what is in them counts for the run's fingerprint where they are read (`jobs/run.py`).
    """

    dataset: str = field(default="", metadata=_place("folder of class folders, or a CSV or Parquet manifest"))
    out: str = field(default="runs", metadata=_place("folder that receives the run folder"))
    name: str | None = field(
        default=None, metadata=_place("name of the run folder; default: the dataset's and a fingerprint")
    )
    predict: Predict = field(
        default="probe", metadata=_about("where the probabilities come from: direct, probe, train or probs")
    )
    model: str | None = field(
        default=None, metadata=_about("torchvision:NAME, FILE.pt2, FILE.py:function or package.module:function")
    )
    weights: str | None = field(
        default=None, metadata=_place("file of weights, safetensors or a state dict; default: the model's own")
    )
    classes: str | None = field(
        default=None, metadata=_place("file of class names in the model's order; default: the dataset's")
    )
    probs: str | None = field(
        default=None, metadata=_place("Parquet or CSV of image_id and probabilities, for predict = probs")
    )
    reviewed: str | None = field(
        default=None,
        metadata=_place("CSV or Parquet of image_id and verdict, right or wrong: what people said"),
    )
    folds: int = field(
        default=5,
        metadata=_about("parts of probe and train; each image is judged by the one that never saw it", low=2),
    )
    seed: int = field(default=0, metadata=_about("seed of folds and training", low=0))
    epochs: int | None = field(
        default=None, metadata=_about("passes over the data in train; default: from the dataset's size", low=1)
    )
    size: int | None = field(
        default=None, metadata=_about("side of the network's input, pixels; default: the model's own", low=8)
    )
    resize: int | None = field(
        default=None,
        metadata=_about("short side before the centre is cropped, pixels; default: the model's own", low=8),
    )
    fit: Fit | None = field(
        default=None, metadata=_about("crop the centre, or squash the whole image; default: the model's own")
    )
    mean: Numbers | None = field(
        default=None, metadata=_about("mean of red, green, blue, of values in [0, 1]; default: the model's own")
    )
    std: Numbers | None = field(
        default=None, metadata=_about("deviation of red, green, blue, of values in [0, 1]; default: the model's own")
    )
    drift: bool = field(
        default=True, metadata=_about("also judge a smoothed copy of each image, for adversarial drift")
    )
    finer: bool = field(
        default=True,
        metadata=_about("evidence from a finer map where the network's last one has few places"),
    )
    shard_size: int | None = field(
        default=None, metadata=_about("images per evidence file; default: 256, fewer where there are few images", low=1)
    )
    batch_size: int = field(default=16, metadata=_about("images per forward pass", changes_result=False, low=1))
    engine: EngineName = field(
        default="auto",
        metadata=_place(
            f"ray for workers, inprocess for this process alone; auto: ray from {FEW_IMAGES + 1} images on"
        ),
    )
    workers: int | None = field(
        default=None,
        metadata=_about(
            "networks at work at once; default: one per GPU, or one per core as memory allows",
            changes_result=False,
            low=1,
        ),
    )
    device: Device = field(default="auto", metadata=_place("where networks run: auto, cpu or cuda"))
    fail_on: str | None = field(
        default=None,
        metadata=_place('end with code 1 where findings exceed this: "mislabeled > 2%; flagged in any class > 20%"'),
    )
    junit: str | None = field(default=None, metadata=_place("also write what --fail-on found as JUnit XML, for a CI"))
    overwrite: bool = field(default=False, metadata=_place("replace a complete run of the same name"))

    def fingerprint(self) -> str:
        """Hex digest of the settings that change the result."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["changes_result"]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def input_for(self, own: InputSpec) -> InputSpec:
        """Return the model's own input with this configuration's overrides.

        Raises ConfigError for a `resize` below the size: there is nothing to crop.
        """
        told = {name: getattr(self, name) for name in ("size", "resize", "fit", "mean", "std")}
        changed = {name: value for name, value in told.items() if value is not None}
        if "size" in changed and "resize" not in changed and own.resize is not None:
            changed["resize"] = round(own.resize * changed["size"] / own.size)  # keeps the share of the image seen
        seen = replace(own, **changed)
        if self.resize is not None and self.resize < seen.size and seen.fit == "crop":
            raise ConfigError(
                f"resize is {self.resize}, but the network's input is {seen.size} pixels wide, cropped from that; "
                "give as much or more, or a smaller size"
            )
        return seen


def resolve_config(toml: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> RunConfig:
    """Return the settings: defaults, overruled by the TOML file, by FIXAUDIT_* variables, by flags that are not None.

    Flags and variables may be text for any kind of value; an empty variable counts as not set.

    Raises ConfigError, in one line, for an unknown key (naming the nearest), for a value that is not allowed (naming
    the key, who said it, and what is allowed), and for settings that do not fit each other.
    """
    told: dict[str, Any] = {}
    for key, value in (_read_toml(toml) if toml else {}).items():
        _require_known(key, key, str(toml))
        told[key] = _checked(key, value, f"{key} in {toml}")
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and text:
            key = variable.removeprefix(PREFIX).lower()
            _require_known(key, variable, "the environment")
            told[key] = _checked(key, _parsed(key, text), variable)
    for key, value in flags.items():
        if value is not None:
            _require_known(key, key, "the flags")
            told[key] = _checked(key, _parsed(key, value), f"--{key.replace('_', '-')}")
    if "probs" in told:
        told.setdefault("predict", "probs")  # there is nothing else to do with them
    config = RunConfig(**told)
    if config.predict == "probe" and config.model is None:
        config = replace(config, model=DEFAULT_BACKBONE)
    _check_together(config)
    return config


def _check_together(config: RunConfig) -> None:
    for key, told in ((one.name, getattr(config, one.name)) for one in fields(config)):
        if isinstance(told, str) and told.encode(errors="replace") != told.encode(errors="surrogateescape"):
            raise ConfigError(f"{key} is {told!a}, which is no text in UTF-8; rename the file or folder")
    if not config.dataset:
        raise ConfigError("no dataset: name a folder of class folders, or a CSV or Parquet manifest")
    if config.predict == "direct" and config.model is None:
        raise ConfigError("predict = direct needs the model that knows the classes: give --model")
    if config.predict == "probs" and config.probs is None:
        raise ConfigError("predict = probs needs the probabilities: give --probs FILE")
    if config.predict != "probs" and config.probs is not None:
        raise ConfigError(f"--probs is for --predict probs, not for {config.predict}; leave out one of the two")
    if config.weights is not None and config.model is None:
        raise ConfigError("--weights needs the network that they fit: give --model")
    if config.name is not None and (config.name in ("", ".", "..") or Path(config.name).name != config.name):
        raise ConfigError(f"name is {config.name!r}; it must be the name of one folder, inside of --out")
    from pipeline.gate import parse_gates  # pyarrow; the command's help must not wait for it

    parse_gates(config.fail_on or "")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _require_known(key: str, said: str, where: str) -> None:
    names = [f.name for f in fields(RunConfig)]
    if key in names:
        return
    (near,) = difflib.get_close_matches(key, names, n=1, cutoff=0)
    near = f"{PREFIX}{near.upper()}" if said.startswith(PREFIX) else near
    raise ConfigError(f"unknown key {said} in {where}; did you mean {near}?")


def _kind(key: str) -> Any:
    """Return a key's type without None."""
    kind = typing.get_type_hints(RunConfig)[key]
    return typing.get_args(kind)[0] if typing.get_origin(kind) in (types.UnionType, typing.Union) else kind


def _parsed(key: str, value: Any) -> Any:
    """Read text as the key's kind; what is not of that kind stays text, and is refused later by name."""
    kind = _kind(key)
    if not isinstance(value, str):
        return value
    if kind is bool and value.lower() in (*_TRUE, *_FALSE):
        return value.lower() in _TRUE
    try:
        if kind is int:
            return int(value)
        if kind == Numbers:
            return [float(part) for part in value.split(",")]
    except ValueError:
        return value
    return value


def _checked(key: str, value: Any, said: str) -> Any:
    kind, setting = _kind(key), _field(key)
    if typing.get_origin(kind) is Literal:
        if isinstance(value, str) and value in typing.get_args(kind):
            return value
        raise ConfigError(f"{said} is {value!r}; choose from {', '.join(typing.get_args(kind))}")
    if kind == Numbers:
        if not _are_three_numbers(value):
            raise ConfigError(f"{said} is {value!r}; give three numbers")
        if key == "std" and min(value) <= 0:
            raise ConfigError(f"{said} is {value!r}; deviations are above 0")
        return tuple(float(number) for number in value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{said} is {value!r}; give {_WORDS[kind]}")
    if setting.metadata["low"] is not None and value < setting.metadata["low"]:
        raise ConfigError(f"{said} is {value}; it must be {setting.metadata['low']} or more")
    return value


def _are_three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    )


def _field(key: str) -> Field[Any]:
    return next(f for f in fields(RunConfig) if f.name == key)
