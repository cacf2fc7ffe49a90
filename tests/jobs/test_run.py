"""Whole audits in every way of judging; the same with Ray and without, and after being stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

import fixcore
from jobs.claim import held
from jobs.inprocess import InProcess
from jobs.local import LocalRay
from jobs.machine import usable_cores, usable_device
from jobs.progress import Reporter
from jobs.result import RunResult
from jobs.review import review_run
from jobs.run import _engine_for, run_audit
from pipeline import schema
from pipeline.config import RunConfig, resolve_config
from pipeline.errors import AuditError, RunFolderError, VerdictsError
from pipeline.geometry import InputSpec
from pipeline.models.loading import load_model
from pipeline.runfolder import RunFolder
from tests.users_networks import bright, scrambled

COUNT = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark pictures, two under the wrong label and one that nobody can read."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name, level in (("bright", 150), ("dark", 0)):
        (root / name).mkdir()
        for number in range(COUNT):
            shown = 150 - level if number == 0 else level
            pixels = draw.integers(shown, shown + 100, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    (root / "dark" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise under random labels: who judges better than chance has seen the answer."""
    root = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(1)
    for name in ("heads", "tails"):
        (root / name).mkdir()
        for number in range(60):
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def audited(dataset: Path, out: Path, engine: Any = None, **settings: Any) -> RunResult:
    told = {"dataset": str(dataset), "out": str(out), "name": "r", "folds": 2, **settings}
    config = resolve_config(None, {}, {name: str(value) for name, value in told.items() if value is not None})
    return run_audit(config, Reporter(quiet=True, console=Console(file=io.StringIO())), engine or InProcess())


def evidence_of(folder: RunFolder) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in folder.evidence_parts()]).set_index("image_id")


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    assert list(one.index) == list(other.index)
    for name in one.columns:
        for left, right in zip(one[name], other[name], strict=True):
            np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=name)


def test_direct_finds_what_is_mislabeled(dataset: Path, tmp_path: Path) -> None:
    result = audited(dataset, tmp_path, predict="direct", model="tests.users_networks:bright")
    assert result.counts["images"] == 2 * COUNT + 1
    assert result.counts["error"] == 1
    audit = pd.read_parquet(result.folder.audit).set_index("image_id")
    assert set(audit.index[audit.is_mislabeled]) == {"bright/00.png", "dark/00.png"}
    assert audit.suggested_name["bright/00.png"] == "dark"
    evidence = evidence_of(result.folder)
    assert evidence.runner_up_swing.notna().sum() == evidence.runner_up_distance.notna().sum() > 0  # all, of so few
    assert not result.folder.work.exists()


def test_an_exported_program_judges_as_its_network(dataset: Path, tmp_path: Path) -> None:
    program = torch.export.export(
        bright().eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    notes = '{"mean": [0, 0, 0], "std": [1, 1, 1], "resize": 80, "categories": ["bright", "dark"]}'
    torch.export.save(program, tmp_path / "bright.pt2", extra_files={"fixaudit.json": notes})
    exported = audited(dataset, tmp_path / "a", predict="direct", model=tmp_path / "bright.pt2")
    built = audited(dataset, tmp_path / "b", predict="direct", model="tests.users_networks:bright")
    assert_same(evidence_of(exported.folder), evidence_of(built.folder))


@pytest.mark.parametrize(
    "settings", [{"predict": "probe", "model": "tests.users_networks:bright"}, {"predict": "train", "epochs": 30}]
)
def test_learning_out_of_sample_finds_what_is_mislabeled(
    dataset: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    result = audited(dataset, tmp_path, **settings)
    audit = pd.read_parquet(result.folder.audit).set_index("image_id")
    assert {"bright/00.png", "dark/00.png"} <= set(audit.index[audit.is_mislabeled])
    assert audit.is_mislabeled.sum() <= 4
    evidence = evidence_of(result.folder)
    assert set(evidence.fold[evidence.status == "ok"]) == {0, 1}


def test_a_leak_would_show(noise: Path, tmp_path: Path) -> None:
    """The features can learn all of these labels by heart; out of sample they are a coin's."""
    result = audited(noise, tmp_path, predict="probe", model="tests.users_networks:scrambled")
    evidence = evidence_of(result.folder)
    right = (evidence.pred == evidence.label).mean()
    assert abs(right - 0.5) < 4 * np.sqrt(0.25 / len(evidence))
    # and by heart they can be learned: a head fitted to all of them knows nearly all
    network = scrambled().eval()
    pixels = np.array([np.array(Image.open(noise / name)) for name in evidence.index])
    with torch.no_grad():
        features = network.features((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    solution = torch.linalg.lstsq(
        features, torch.tensor(evidence.label.tolist()).float()[:, None] - 0.5, driver="gelsd"
    ).solution
    assert ((features @ solution > 0)[:, 0].numpy() == (evidence.label == 1)).mean() > 0.95


@pytest.mark.parametrize(
    "settings", [{"predict": "probe", "model": "tests.users_networks:scrambled"}, {"predict": "train", "epochs": 2}]
)
def test_pictures_saved_anew_share_a_fold(noise: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Other bytes, the same picture: in another fold, it would show the judge the label it is to judge."""
    for path in noise.rglob("1*.png"):
        own = tmp_path / "data" / path.relative_to(noise)
        own.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(path)
        picture.save(own)
        picture.point(lambda level: level * 0.9).save(own.with_stem(f"{own.stem}-darker"))
    evidence = evidence_of(audited(tmp_path / "data", tmp_path, folds=3, **settings).folder)
    original = evidence.index.str.replace("-darker", "")
    assert evidence.groupby(original).fold.agg(["nunique", "size"]).eq([1, 2]).all(axis=None)
    assert evidence.fold.value_counts().sort_index().tolist() == [16, 14, 14]


@pytest.mark.parametrize("model", [None, "tests.users_networks:bright"])
def test_probabilities_brought_decide(dataset: Path, tmp_path: Path, model: str | None) -> None:
    rows = []
    for path in sorted(dataset.rglob("*.png")):
        is_bright = path.parent.name == "bright"
        rows.append((path.relative_to(dataset).as_posix(), 0.9 if is_bright else 0.1, 0.1 if is_bright else 0.9))
    probs = pd.DataFrame(rows, columns=["image_id", "bright", "dark"]).set_index("image_id")
    probs.loc["bright/07.png"] = (0.05, 0.95)
    probs.drop("dark/broken.png").reset_index().to_csv(tmp_path / "probs.csv", index=False)
    more = {} if model is None else {"model": model}
    result = audited(dataset, tmp_path, predict="probs", probs=tmp_path / "probs.csv", **more)
    audit = pd.read_parquet(result.folder.audit).set_index("image_id")
    assert set(audit.index[audit.is_mislabeled]) == {"bright/07.png"}
    evidence = evidence_of(result.folder)
    assert evidence.loc["bright/07.png", "pred_name"] == "dark"
    assert evidence.pred_fix_x.notna().any() == (model is not None)


def test_run_json_says_what_ran(
    dataset: Path, tmp_path: Path, local_ray: LocalRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.judging.train._epochs", lambda images, plan: 2)
    monkeypatch.chdir(tmp_path)

    def facts(result: RunResult) -> Any:
        return json.loads(result.folder.run_json.read_text(encoding="utf-8"))

    here = facts(audited(dataset, tmp_path / "here", predict="train", epochs=None, seed=1))
    cores = usable_cores()
    resolved = {"engine": "inprocess", "workers": 1, "threads": max(1, cores // 2), "device": usable_device("auto")}
    assert here["resolved"] == resolved | {"shard_size": 14, "epochs": [2, 2], "junit": None}  # 41 images, three shards
    assert (here["config"]["engine"], here["config"]["epochs"], here["config"]["shard_size"]) == ("auto", None, None)
    assert here["probs"] is None

    ids = [path.relative_to(dataset).as_posix() for path in sorted(dataset.rglob("*.png"))]
    probs = tmp_path / "probs.csv"
    probs.write_text("\n".join(["image_id,bright,dark", *(f"{one},0.5,0.5" for one in ids)]), encoding="utf-8")
    told = {"predict": "probs", "probs": probs, "shard_size": 30, "junit": "j.xml"}
    by_ray = facts(audited(dataset, tmp_path / "ray", local_ray, **told))
    of_ray = {"engine": "ray", "workers": 2, "shard_size": 21, "epochs": None, "junit": str(tmp_path / "j.xml")}
    assert by_ray["resolved"] == resolved | of_ray
    assert by_ray["probs"] == {"path": str(probs), "sha256": hashlib.sha256(probs.read_bytes()).hexdigest()}


def test_classes_smaller_than_the_folds_are_said_and_audited(dataset: Path, tmp_path: Path) -> None:
    small = tmp_path / "data"
    for name in (
        "bright/01.png",
        "bright/02.png",
        "bright/03.png",
        "bright/04.png",
        "bright/05.png",
        "dark/01.png",
        "dark/02.png",
    ):
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).write_bytes((dataset / name).read_bytes())
    result = audited(small, tmp_path, predict="train", epochs=2, folds=5)
    assert any("dark" in line and "fold" in line for line in result.warnings), result.warnings
    assert result.counts["ok"] == 7
    assert evidence_of(result.folder).pred.notna().all()


def test_weights_that_do_not_fit_are_named(dataset: Path, tmp_path: Path) -> None:
    torch.save({"look.weight": torch.zeros(1, 3, 4, 4), "look.bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(AuditError, match=r"w\.pt do not fit: judge\.weight is missing"):
        audited(dataset, tmp_path, predict="direct", model="tests.users_networks:bright", weights=tmp_path / "w.pt")


class Stopped(InProcess):
    """A person presses Ctrl-C after two shards."""

    def map_shards(self, *arguments: Any) -> Iterator[Any]:
        for number, result in enumerate(super().map_shards(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield result


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not(dataset: Path, tmp_path: Path) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "shard_size": 6}
    whole = audited(dataset, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        audited(dataset, tmp_path / "cut", Stopped(), **settings)
    folder = RunFolder(tmp_path / "cut" / "r")
    assert not folder.is_complete
    done = {part: part.stat().st_mtime_ns for part in folder.evidence_parts()}
    assert 2 <= len(done) < 7
    again = audited(dataset, tmp_path / "cut", **settings)
    assert sum(part.stat().st_mtime_ns == done.get(part) for part in folder.evidence_parts()) >= 2
    assert_same(evidence_of(again.folder), evidence_of(whole.folder))
    assert pd.read_parquet(again.folder.audit).equals(pd.read_parquet(whole.folder.audit))


def test_what_a_version_with_other_columns_left_is_judged_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "shard_size": 6}
    monkeypatch.setattr(schema, "VERSION", schema.VERSION - 1)
    with pytest.raises(KeyboardInterrupt):
        audited(dataset, tmp_path, Stopped(), **settings)
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "r")
    done = {part: part.stat().st_mtime_ns for part in folder.evidence_parts()}
    audited(dataset, tmp_path, **settings)
    assert not any(part.stat().st_mtime_ns == done.get(part) for part in folder.evidence_parts())


def test_a_run_that_replaces_another_leaves_no_old_page_and_no_verdict_lost(dataset: Path, tmp_path: Path) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "shard_size": 6}
    folder = audited(dataset, tmp_path, **settings).folder
    said = folder.review.read_text(encoding="utf-8").replace(",,", ",wrong,")
    folder.review.write_text(said, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        audited(dataset, tmp_path, Stopped(), overwrite=True, **settings)
    assert not folder.report.exists()
    assert not folder.review_page.exists()
    assert folder.review.read_text(encoding="utf-8") == said
    again = audited(dataset, tmp_path, **settings)
    assert again.summary["reviewed_wrong"] == said.count(",wrong,") > 0
    assert audited(dataset, tmp_path, overwrite=True, **settings).summary == again.summary


def test_verdicts_that_cannot_be_kept_stop_a_run_before_it_replaces_anything(dataset: Path, tmp_path: Path) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "shard_size": 6}
    folder = audited(dataset, tmp_path, **settings).folder

    def others() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in folder.path.rglob("*") if path != folder.review)

    before = others()
    for said, why in (("image_id,verdict\nelsewhere.png,wrong\n", "another dataset"), ("verdict\n", "no column")):
        folder.review.write_text(said, encoding="utf-8")
        with pytest.raises(VerdictsError, match=f"{why}.*; mend it, move it away, or choose another --name"):
            audited(dataset, tmp_path, overwrite=True, **settings)
        assert folder.review.read_text(encoding="utf-8") == said
        assert others() == before


def test_a_complete_run_is_named_whatever_its_verdicts(dataset: Path, tmp_path: Path) -> None:
    settings = {"name": None, "predict": "direct", "model": "tests.users_networks:bright"}
    audited(dataset, tmp_path, **settings).folder.review.write_text("nothing", encoding="utf-8")
    with pytest.raises(RunFolderError, match="holds a complete run already"):
        audited(dataset, tmp_path, **settings)


def test_a_damaged_shard_is_judged_again(dataset: Path, tmp_path: Path) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "shard_size": 6}
    with pytest.raises(KeyboardInterrupt):
        audited(dataset, tmp_path, Stopped(), **settings)
    folder = RunFolder(tmp_path / "r")
    folder.evidence_parts()[0].write_bytes(b"cut off")
    assert len(evidence_of(audited(dataset, tmp_path, **settings).folder)) == 2 * COUNT + 1


class Elsewhere(InProcess):
    """As workers of a cluster: in another working directory."""

    def map_shards(self, *given: Any) -> Iterator[Any]:
        with contextlib.chdir("/"):
            yield from super().map_shards(*given)


def test_workers_find_a_model_that_is_named_from_here(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("from tests.users_networks import bright")
    monkeypatch.chdir(tmp_path)
    assert audited(dataset, tmp_path, Elsewhere(), predict="direct", model="own.py:bright").counts["ok"] == 2 * COUNT


@pytest.mark.parametrize("predict", ["direct", "train"])
def test_a_folder_of_class_folders_too_high_up_is_pointed_at(dataset: Path, tmp_path: Path, predict: str) -> None:
    shutil.copytree(dataset, tmp_path / "deep" / "images")
    model = "tests.users_networks:bright" if predict == "direct" else None
    with pytest.raises(AuditError) as caught:
        audited(tmp_path / "deep", tmp_path, predict=predict, model=model)
    told = f"if the folders in images are the classes, audit {tmp_path / 'deep' / 'images'}"
    assert str(caught.value).endswith(f"; {told}")
    shutil.copy(dataset / "dark" / "01.png", tmp_path / "deep" / "images")  # one beside the folders
    with pytest.raises(AuditError) as caught:
        audited(tmp_path / "deep", tmp_path, predict=predict, model=model)
    assert told not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "images", "address", "expected"),
    [
        ({}, 256, "", InProcess),
        ({}, 257, "", LocalRay),
        ({}, 2, "auto", LocalRay),
        ({"workers": 3}, 2, "", LocalRay),
        ({"engine": "ray"}, 2, "", LocalRay),
        ({"engine": "inprocess", "workers": 3}, 257, "auto", InProcess),
    ],
)
def test_few_images_need_no_ray(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], images: int, address: str, expected: type
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert type(_engine_for(RunConfig(**settings), images, "cpu")) is expected


@pytest.mark.parametrize(
    "settings", [{"predict": "direct", "model": "tests.users_networks:bright"}, {"predict": "train", "epochs": 2}]
)
def test_ray_and_this_process_find_the_same(
    dataset: Path, tmp_path: Path, local_ray: LocalRay, settings: dict[str, Any]
) -> None:
    by_ray = audited(dataset, tmp_path / "ray", local_ray, shard_size=11, **settings)
    here = audited(dataset, tmp_path / "here", shard_size=11, **settings)
    assert by_ray.counts == here.counts
    if settings["predict"] == "direct":
        assert_same(evidence_of(by_ray.folder), evidence_of(here.folder))


def test_a_review_of_evidence_that_is_not_whole_changes_nothing(dataset: Path, tmp_path: Path) -> None:
    folder = audited(dataset, tmp_path, predict="direct", model="tests.users_networks:bright", shard_size=10).folder
    (folder.path / "said.csv").write_text("image_id,verdict\nbright/00.png,wrong\n")
    before, part = folder.audit.read_bytes(), folder.evidence_part(1)

    def review() -> RunResult:
        return review_run(folder, folder.path / "said.csv", Reporter(quiet=True, console=Console(file=io.StringIO())))

    kept = part.read_bytes()
    part.unlink()
    with pytest.raises(RunFolderError, match=r"is not whole: part-00001\.parquet is missing; run the audit again"):
        review()
    part.write_bytes(folder.evidence_part(4).read_bytes())
    with pytest.raises(RunFolderError, match=r"part-00001\.parquet is not this run's"):
        review()
    part.write_bytes(kept)
    folder.evidence_part(5).write_bytes(kept)
    with pytest.raises(RunFolderError, match=r"part-00005\.parquet is not this run's"):
        review()
    assert folder.audit.read_bytes() == before
    folder.evidence_part(5).unlink()
    assert review().counts["images"] == 2 * COUNT + 1


def test_two_processes_do_not_write_one_folder(dataset: Path, tmp_path: Path) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright"}
    with held(RunFolder(tmp_path / "r")), pytest.raises(RunFolderError, match="is being written by another process"):
        audited(dataset, tmp_path, **settings)
    folder = audited(dataset, tmp_path, **settings).folder
    with held(folder), pytest.raises(RunFolderError, match="is being written by another process"):
        review_run(folder, None, Reporter(quiet=True, console=Console(file=io.StringIO())))


def test_a_complete_run_stays_where_the_new_probabilities_do_not_serve(dataset: Path, tmp_path: Path) -> None:
    folder = audited(dataset, tmp_path, predict="direct", model="tests.users_networks:bright").folder
    (tmp_path / "probs.csv").write_text("image_id,bright,dark\nbright/00.png,0.5,0.5\n")
    with pytest.raises(AuditError, match="images have no row"):
        audited(dataset, tmp_path, predict="probs", probs=tmp_path / "probs.csv", overwrite=True)
    assert folder.is_complete
    assert folder.report.is_file()


@pytest.mark.parametrize("at", range(6))
def test_a_run_that_is_killed_while_it_replaces_another_can_be_given_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    settings = {"predict": "direct", "model": "tests.users_networks:bright", "overwrite": True}
    folder = audited(dataset, tmp_path, **settings).folder
    left = [at]

    def until_killed(before: Any) -> Any:
        def one(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return before(*arguments, **more)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", until_killed(Path.unlink))
        patch.setattr(shutil, "rmtree", until_killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            audited(dataset, tmp_path, **settings)
    assert audited(dataset, tmp_path, **settings).folder.is_complete
    assert folder.review.is_file()


def test_code_of_the_network_counts_for_going_on(dataset: Path, tmp_path: Path) -> None:
    """A stopped run of the same weights in another network, or shown otherwise, is not gone on with."""
    source = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), {}, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
    prints = []
    for number, act in enumerate(("nn.ReLU()", "nn.GELU()", "nn.ReLU()")):
        path = tmp_path / f"mine{number}.py"
        path.write_text(source.format(act))
        loaded = load_model(f"{path}:network")
        prints.append(loaded.fingerprint)
        assert dataclasses.replace(loaded, input=InputSpec(size=20)).fingerprint != loaded.fingerprint
    assert prints[0] == prints[2] != prints[1]


def test_an_image_without_finite_logits_is_a_row_with_a_reason(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("bright", "dark"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    Image.new("RGB", (24, 24)).save(tmp_path / "data" / "dark" / "black.png")
    result = audited(tmp_path / "data", tmp_path, predict="direct", model="tests.users_networks:normed")
    evidence = evidence_of(result.folder)
    assert evidence.index[evidence.status == "error"].tolist() == ["dark/black.png"]
    assert "not finite" in evidence.loc["dark/black.png", "error"]
    assert evidence.loc["dark/black.png", ["pred", "probs", "pred_box"]].isna().all()
    assert evidence[evidence.status == "ok"].pred_fix_x.notna().all()
    for path in (tmp_path / "data").rglob("*.png"):
        Image.new("RGB", (24, 24)).save(path)
    with pytest.raises(fixcore.InputError, match="NaN or infinity"):  # of all: the network is broken
        audited(tmp_path / "data", tmp_path / "all", predict="direct", model="tests.users_networks:normed")
