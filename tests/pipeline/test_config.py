from __future__ import annotations

import tomllib
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import DEFAULT_BACKBONE, RunConfig, resolve_config
from pipeline.errors import ConfigError
from pipeline.geometry import InputSpec

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
KEYS = [f.name for f in fields(RunConfig)]


def told(**flags: Any) -> RunConfig:
    return resolve_config(None, {}, {"dataset": "images", **flags})


def toml(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults() -> None:
    config = told()
    assert config.predict == "probe"
    assert config.model == DEFAULT_BACKBONE == "torchvision:resnet50"
    assert (config.out, config.folds, config.shard_size, config.batch_size) == ("runs", 5, None, 16)
    assert (config.drift, config.finer, config.overwrite) == (True, True, False)
    assert (config.engine, config.device) == ("auto", "auto")
    assert told(predict="train").model is None


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        told().folds = 3  # type: ignore[misc]


def test_flags_beat_the_environment_beats_the_file_beats_defaults(tmp_path: Path) -> None:
    path = toml(tmp_path, 'predict = "train"\nfolds = 3\nseed = 1\nbatch_size = 8\n')
    environ = {"FIXAUDIT_SEED": "2", "FIXAUDIT_BATCH_SIZE": "4", "PATH": "/bin"}
    config = resolve_config(path, environ, {"dataset": "images", "batch_size": 2, "out": None})
    assert (config.predict, config.folds, config.seed, config.batch_size, config.out) == ("train", 3, 2, 2, "runs")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("drift", "no", False),
        ("drift", "True", True),
        ("overwrite", "1", True),
        ("epochs", "12", 12),
        ("name", "123", "123"),
        ("mean", "0.5,0.25, 1", (0.5, 0.25, 1.0)),
        ("fit", "squash", "squash"),
    ],
)
def test_text_of_the_environment_and_of_flags_becomes_the_keys_kind(key: str, text: str, value: object) -> None:
    assert getattr(resolve_config(None, {f"FIXAUDIT_{key.upper()}": text}, {"dataset": "images"}), key) == value
    assert getattr(told(**{key: text}), key) == value


def test_an_empty_variable_is_not_set() -> None:
    assert resolve_config(None, {"FIXAUDIT_NAME": "", "FIXAUDIT_FOLDS": ""}, {"dataset": "images"}).name is None


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = toml(tmp_path, "batchsize = 3\n")
    with pytest.raises(ConfigError) as caught:
        resolve_config(path, {}, {})
    assert str(caught.value) == f"unknown key batchsize in {path}; did you mean batch_size?"
    with pytest.raises(ConfigError) as caught:
        resolve_config(None, {"FIXAUDIT_FOLD": "3"}, {})
    assert str(caught.value) == "unknown key FIXAUDIT_FOLD in the environment; did you mean FIXAUDIT_FOLDS?"
    with pytest.raises(ConfigError, match=r"unknown key zzz in the flags; did you mean \w+\?"):
        told(zzz=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("folds", "1", "is 1; it must be 2 or more"),
        ("folds", "many", "is 'many'; give a whole number"),
        ("seed", "-1", "is -1; it must be 0 or more"),
        ("batch_size", "0", "is 0; it must be 1 or more"),
        ("drift", "maybe", "is 'maybe'; give true or false"),
        ("predict", "guess", "is 'guess'; choose from direct, probe, train, probs"),
        ("fit", "stretch", "is 'stretch'; choose from crop, squash"),
        ("device", "tpu", "is 'tpu'; choose from auto, cpu, cuda"),
        ("mean", "0.5,0.5", "is [0.5, 0.5]; give three numbers"),
        ("mean", "0.5,0.5,nan", "is [0.5, 0.5, nan]; give three numbers"),
        ("mean", "grey", "is 'grey'; give three numbers"),
        ("std", "0.5,0,0.5", "is [0.5, 0.0, 0.5]; deviations are above 0"),
    ],
)
def test_a_wrong_value_names_key_source_value_and_what_is_allowed(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        told(**{key: value})
    assert str(caught.value) == f"--{key.replace('_', '-')} {message}"
    variable = f"FIXAUDIT_{key.upper()}"
    with pytest.raises(ConfigError) as caught:
        resolve_config(None, {variable: value}, {"dataset": "images"})
    assert str(caught.value) == f"{variable} {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("folds = 2.5", "folds in {path} is 2.5; give a whole number"),
        ("folds = true", "folds in {path} is True; give a whole number"),
        ('folds = "5"', "folds in {path} is '5'; give a whole number"),
        ("drift = 1", "drift in {path} is 1; give true or false"),
        ("model = 50", "model in {path} is 50; give text"),
        ("[model]", "model in {path} is {{}}; give text"),
        ("predict = 1", "predict in {path} is 1; choose from direct, probe, train, probs"),
        ("std = [1, 1, false]", "std in {path} is [1, 1, False]; give three numbers"),
    ],
)
def test_a_file_must_use_the_right_types(tmp_path: Path, line: str, message: str) -> None:
    path = toml(tmp_path, line)
    with pytest.raises(ConfigError) as caught:
        resolve_config(path, {}, {})
    assert str(caught.value) == message.format(path=path)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent.toml: No such file"):
        resolve_config(tmp_path / "absent.toml", {}, {})
    for broken in (b"folds == 3", b"\xff\xfe"):
        path = tmp_path / "broken.toml"
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match="is not TOML") as caught:
            resolve_config(path, {}, {})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": None}, "no dataset"),
        ({"predict": "direct"}, "give --model"),
        ({"predict": "probs"}, "give --probs FILE"),
        ({"predict": "train", "probs": "p.csv"}, "--probs is for --predict probs, not for train"),
        ({"predict": "train", "weights": "w.pt"}, "--weights needs the network"),
        ({"name": "../images"}, "must be the name of one folder, inside of --out"),
        ({"name": "/tmp/run"}, "must be the name of one folder"),
        ({"name": ".."}, "must be the name of one folder"),
        ({"out": "runs\udcff"}, r"out is 'runs\\udcff', which is no text"),
    ],
)
def test_settings_must_fit_each_other(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        told(**flags)


def test_the_fingerprint_changes_with_what_changes_the_result_only() -> None:
    base = told()
    other: dict[str, Any] = {
        "dataset": "x", "out": "x", "name": "x", "predict": "train", "model": "x", "weights": "x", "classes": "x",
        "probs": "x", "reviewed": "x", "folds": 9, "seed": 9, "epochs": 9, "size": 99, "resize": 99, "fit": "squash",
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "drift": False, "finer": False,
        "shard_size": 9, "batch_size": 9, "engine": "inprocess", "workers": 9, "device": "cpu", "overwrite": True,
        "fail_on": "mislabeled > 1", "junit": "x",
    }  # fmt: skip
    assert other.keys() == set(KEYS)
    changing = {
        key for key, value in other.items() if replace(base, **{key: value}).fingerprint() != base.fingerprint()
    }
    assert changing == {
        "predict", "model", "folds", "seed", "epochs", "size", "resize", "fit", "mean", "std", "drift", "finer",
        "shard_size",
    }  # fmt: skip
    assert told().fingerprint() == base.fingerprint()


def test_the_input_is_the_models_own_but_for_what_is_said() -> None:
    own = InputSpec(size=224, resize=256)
    assert told().input_for(own) == own
    assert told(size=112).input_for(own) == InputSpec(size=112, resize=128)
    assert told(size=112, resize=112).input_for(own) == InputSpec(size=112, resize=112)
    grey = told(fit="squash", mean="0.5,0.5,0.5", std="1,1,1").input_for(own)
    assert grey == InputSpec(size=224, resize=256, fit="squash", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))


def test_a_resize_that_leaves_nothing_to_crop_is_refused() -> None:
    own = InputSpec(size=32, resize=32)
    with pytest.raises(ConfigError, match=r"^resize is 8, but the network's input is 32 pixels wide"):
        told(resize=8).input_for(own)
    assert told(resize=8, size=8).input_for(own) == InputSpec(size=8, resize=8)
    assert told(resize=8, fit="squash").input_for(own).fit == "squash"  # nothing is cropped


def test_every_key_says_what_it_means() -> None:
    for setting in fields(RunConfig):
        assert len(setting.metadata["meaning"]) > 10, setting.name


def test_there_is_a_config_for_every_way_to_predict() -> None:
    assert [path.stem for path in CONFIGS] == ["direct", "probe", "probs", "train"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_loads_and_names_every_key(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    command, expected, *body = text.splitlines()
    assert command == f"# fixaudit run path/to/images --config configs/{path.name}"
    assert expected.startswith("# ")
    config = resolve_config(path, {}, {"dataset": "images"})
    assert config.predict == path.stem
    # Keys left at "the model's own" stand there as comments; with their # gone they must be right too.
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in body]
    everything = tomllib.loads("\n".join(lines))
    assert sorted(everything) == sorted(KEYS)
    for line in lines:
        if " = " in line:
            assert "  # " in line, f"{path.name}: {line} has no comment"
    for key, value in everything.items():
        if key != "probs" or config.predict == "probs":
            alone = {"model": "torchvision:resnet50", **tomllib.loads(text), "dataset": "images", key: value}
            assert resolve_config(None, {}, alone), f"{path.name}: {key}"
