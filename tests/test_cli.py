"""The command from a folder of pictures to a report, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from pipeline import schema
from pipeline.runfolder import RunFolder

runner = CliRunner()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Red and blue squares at random places, with every kind of broken file among them."""
    root = tmp_path_factory.mktemp("data") / "ímages with spaces"
    draw = np.random.default_rng(0)
    for name, channel in (("rot", 0), ("blå", 2)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            top, left = draw.integers(0, 10, 2)
            pixels[top : top + 8, left : left + 8, channel] = 250
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    (root / "rot" / "empty.jpg").touch()
    (root / "rot" / "text.jpg").write_text("this is no picture")
    whole = (root / "blå" / "00.png").read_bytes()
    (root / "blå" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1), (200, 0, 0)).save(root / "rot" / "one.png")
    Image.new("RGB", (10_000, 3), (0, 0, 200)).save(root / "blå" / "wide.png")
    (root / "rot" / "loop").symlink_to(root)
    (root / "rot" / "notes.txt").write_text("left alone")
    return root


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> RunFolder:
    out = tmp_path_factory.mktemp("out")
    toml = out / "quick.toml"
    toml.write_text('predict = "train"\nepochs = 2\nfolds = 2\nengine = "inprocess"\nshard_size = 10\n')
    result = runner.invoke(cli.app, ["run", str(dataset), "--config", str(toml), "--out", str(out), "--name", "r"])
    assert result.exit_code == 0, result.output
    assert "report:" in result.stdout
    return RunFolder(out / "r")


def test_every_file_of_a_run_is_there_under_its_schema(run):
    assert pq.read_schema(run.manifest).equals(schema.MANIFEST, check_metadata=True)
    assert len(run.evidence_parts()) == 3
    for part in run.evidence_parts():
        assert pq.read_schema(part).equals(schema.EVIDENCE)
        assert pq.read_schema(part).metadata[b"fixaudit.schema"] == str(schema.VERSION).encode()
    assert pq.read_schema(run.audit).equals(schema.AUDIT)
    assert pq.read_schema(run.issues).equals(schema.ISSUES_TABLE)
    facts = json.loads(run.run_json.read_text())
    assert facts["counts"]["images"] == 29
    assert facts["dataset"]["classes"] == ["blå", "rot"]
    assert {"python", "torch", "ray"} <= facts["versions"].keys()
    assert json.loads(run.summary.read_text())["error"] == 3
    assert run.report.stat().st_size > 1000


def test_no_image_is_lost_and_bad_ones_say_why(run):
    evidence = pd.concat([pd.read_parquet(part) for part in run.evidence_parts()]).set_index("image_id")
    assert len(evidence) == 29
    bad = evidence[evidence.status == "error"]
    assert set(bad.index) == {"rot/empty.jpg", "rot/text.jpg", "blå/cut.png"}
    assert bad.error.str.len().min() > 5
    good = evidence[evidence.status == "ok"]
    assert good.pred.notna().all()
    assert all(abs(sum(mass) - 1) < 1e-4 for mass in good.pred_fix_mass)
    assert set(good.fold) == {0, 1}
    for row in good.itertuples():
        assert max(row.pred_fix_x) < row.width
        assert max(row.pred_fix_y) < row.height
        x0, y0, x1, y1 = row.pred_box
        assert 0 <= x0 < x1 <= row.width
        assert 0 <= y0 < y1 <= row.height
    assert (good.label_fix_x.isna() == (good.pred == good.label)).all()


def test_pandas_reads_the_flags(run):
    flagged = pd.read_parquet(run.audit).query("is_mislabeled")
    assert flagged.suggested_name.notna().all()


def test_a_complete_run_is_not_overwritten(run, dataset):
    arguments = ["run", str(dataset), "--predict", "train", "--out", str(run.path.parent), "--name", "r"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "--overwrite" in only_line(result)


def test_explain_draws_and_says(run, tmp_path):
    result = runner.invoke(cli.app, ["explain", str(run.path), "rot/03.png", "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 300
    assert "rot" in result.stdout
    unknown = runner.invoke(cli.app, ["explain", str(run.path), "rot/99.png"])
    assert unknown.exit_code == 2
    assert "rot/9" in only_line(unknown) or "rot/0" in only_line(unknown)


@pytest.mark.parametrize("where", ["resolve_config", "app"])
def test_ctrl_c_ends_with_its_code_and_no_traceback(where, monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, where, stopped)
    assert cli.main(["run", "."]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_pictures_of_two_runs_lie_beside_each_other(run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    for folder in (run.path, tmp_path / "copy"):
        assert runner.invoke(cli.app, ["explain", str(folder), "rot/03.png"]).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "copy-rot_03-explained.png",
        "r-rot_03-explained.png",
    ]


def only_line(result) -> str:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0]


def wrong(arguments: list[str]) -> str:
    result = runner.invoke(cli.app, ["run", *arguments, "--engine", "inprocess"])
    assert result.exit_code == 2, result.output
    return only_line(result)


def test_bad_input_is_one_line(dataset, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    train = ["--predict", "train", *out]
    assert "there is no" in wrong([str(tmp_path / "nowhere"), *train])
    (tmp_path / "empty").mkdir()
    wrong([str(tmp_path / "empty"), *train])
    (tmp_path / "single" / "only").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "single" / "only" / "1.png")
    assert "one class only" in wrong([str(tmp_path / "single"), *train])
    (tmp_path / "file").write_text("")
    assert "cannot write" in wrong([str(dataset), "--predict", "train", "--out", str(tmp_path / "file" / "runs")])
    assert "did you mean torchvision:resnet50" in wrong([str(dataset), "--model", "torchvision:resnet5", *out])
    assert "guess" in wrong([str(dataset), "--predict", "guess", *out])
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    assert "bad.pt" in wrong(
        [str(dataset), "--model", "torchvision:resnet18", "--weights", str(tmp_path / "bad.pt"), *out]
    )
    assert "is there and is no" in wrong(
        [str(dataset), "--predict", "train", "--out", str(dataset.parent), "--name", dataset.name]
    )


def test_help_and_version():
    assert "Audit a dataset" in runner.invoke(cli.app, ["--help"]).stdout
    assert runner.invoke(cli.app, ["--version"]).stdout.startswith("fixaudit ")
    assert runner.invoke(cli.app, ["doctor"]).exit_code == 0


BRIGHT = "tests.users_networks:bright"


@pytest.fixture(scope="module")
def annotated(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("annotated")
    lines = ["image,label,x0,y0,x1,y1"]
    for number in range(3):
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels[8 : 40 + number, 16:48] = 255
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,0,16,8,48,{40 + number}")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def test_evaluate_prints_a_table_or_json_and_a_picture(annotated, tmp_path):
    asked = [
        "evaluate",
        "localization",
        str(annotated),
        "--model",
        BRIGHT,
        "--methods",
        "fixations,cam",
    ]
    found = runner.invoke(cli.app, [*asked, "--quiet", "--plot", str(tmp_path / "bars.png")])
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith(f"Localization: {BRIGHT}\n\nmethod ")
    assert "moments (default)" in found.stdout
    assert f"picture: {tmp_path / 'bars.png'}" in found.stdout
    assert (tmp_path / "bars.png").stat().st_size > 1000
    found = runner.invoke(cli.app, [*asked, "--quiet", "--json", "--limit", "2"])
    told = json.loads(found.stdout)
    assert told["protocol"] == "localization"
    assert told["images"] == 2
    ours = next(row for row in told["tables"][0]["rows"] if row["box rule"] == "moments (default)")
    assert ours["GT-known"] == 1
    sheet = [
        "evaluate",
        "gallery",
        str(annotated),
        "--model",
        BRIGHT,
        "-o",
        str(tmp_path / "g.png"),
    ]
    assert runner.invoke(cli.app, [*sheet, "--quiet", "--methods", "cam"]).exit_code == 0
    assert (tmp_path / "g.png").is_file()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "localisation"}, "did you mean localization"),
        ({"--methods": "gradcam"}, "did you mean grad-cam"),
        ({"--device": "tpu"}, "must be auto, cpu or cuda"),
        ({"--format": "yolo"}, "no format 'yolo'"),
        ({"--classes": "nowhere.txt"}, "cannot read the class names in nowhere.txt"),
        ({"data": "nowhere"}, "nowhere is not there"),
        ({"protocol": "saliency"}, "saliency needs masks"),
    ],
)
def test_what_evaluate_cannot_do_is_one_line(annotated, change, words):
    told = {"protocol": "localization", "data": str(annotated), "--model": BRIGHT, **change}
    arguments = [
        "evaluate",
        told.pop("protocol"),
        told.pop("data"),
        "--quiet",
        *(word for pair in told.items() for word in pair),
    ]
    found = runner.invoke(cli.app, arguments)
    assert found.exit_code == 2
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("limits", "code"),
    [("unreadable > 0", 1), ("unreadable > 50%; mislabeled > 99%", 0), ("flagged in rot >= 0", 1)],
)
def test_findings_beyond_the_limits_end_with_code_1_and_a_run_folder(dataset, tmp_path, limits, code):
    ids = sorted(str(path.relative_to(dataset)).replace("\\", "/") for path in dataset.glob("*/*.*"))
    rows = ["image_id,rot,blå", *(f"{one},0.9,0.1" if one.startswith("rot") else f"{one},0.2,0.8" for one in ids)]
    probs = tmp_path / "probs.csv"
    probs.write_text("\n".join(row for row in rows if not row.startswith("rot/notes")), encoding="utf-8")
    told = ["--probs", str(probs), "--engine", "inprocess", "--out", str(tmp_path), "--name", "r", "--quiet"]
    junit = tmp_path / "ci" / "audit.xml"
    result = runner.invoke(cli.app, ["run", str(dataset), *told, "--fail-on", limits, "--junit", str(junit)])
    assert result.exit_code == code, result.output
    assert ("over the limit: " in result.stderr) == bool(code)
    assert RunFolder(tmp_path / "r").is_complete
    assert f'failures="{code}"' in junit.read_text(encoding="utf-8")


@pytest.mark.parametrize("limits", ["mislabeled > 2% in cat", "mislabeled in hund > 2"])
def test_limits_that_make_no_sense_are_told_before_the_work(dataset, tmp_path, limits):
    result = runner.invoke(
        cli.app, ["run", str(dataset), "--predict", "train", "--out", str(tmp_path), "--fail-on", limits]
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --fail-on")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("junit", "why"), [("file/j.xml", "Not a directory"), ("folder", "Is a directory")])
def test_a_junit_file_that_cannot_be_written_is_told_before_the_work(dataset, tmp_path, junit, why):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    told = ["--predict", "train", "--out", str(tmp_path / "runs"), "--junit", str(tmp_path / junit)]
    assert wrong([str(dataset), *told]) == f"error: cannot write {tmp_path / junit}: {why}; choose another --junit"
    assert not list((tmp_path / "runs").iterdir())


def test_verdicts_are_weighed_without_judging_again(dataset, tmp_path):
    ids = sorted(str(path.relative_to(dataset)).replace("\\", "/") for path in dataset.glob("*/[0-9]*.png"))
    rows = ["image_id,rot,blå", *(f"{one},{0.9 if one < 'rot' else 0.3},{0.1 if one < 'rot' else 0.7}" for one in ids)]
    for name in ("empty.jpg", "text.jpg", "cut.png", "one.png", "wide.png"):
        folder = "rot" if (dataset / "rot" / name).exists() else "blå"
        rows.append(f"{folder}/{name},0.5,0.5")
    probs = tmp_path / "probs.csv"
    probs.write_text("\n".join(rows), encoding="utf-8")
    told = ["--probs", str(probs), "--engine", "inprocess", "--out", str(tmp_path), "--quiet"]
    junit = tmp_path / "ci" / "audit.xml"
    gate = ["--fail-on", "mislabeled > 50%", "--junit", str(junit)]
    first = runner.invoke(cli.app, ["run", str(dataset), *told, *gate, "--name", "r"])
    assert first.exit_code == 1, first.output
    assert "review.html" in first.stdout
    assert 'failures="1"' in junit.read_text(encoding="utf-8")
    run = RunFolder(tmp_path / "r")
    evidence = [part.stat().st_mtime_ns for part in run.evidence_parts()]
    refused = runner.invoke(cli.app, ["review", str(run.path)])
    assert refused.exit_code == 2
    assert only_line(refused).startswith("error: there is no verdict in ")
    assert str(run.review_page) in refused.stderr

    asked = pd.read_csv(run.review)
    assert len(asked) == 24
    asked["verdict"] = np.where(asked.label_name == "rot", "wrong", "right")
    asked.to_csv(run.review, index=False)
    reviewed = runner.invoke(cli.app, ["review", str(run.path), "--json"])
    assert reviewed.exit_code == 0, reviewed.output
    assert 'failures="0"' in junit.read_text(encoding="utf-8")
    facts = json.loads(reviewed.stdout)
    assert (facts["reviewed"], facts["reviewed_wrong"], facts["counts"]["mislabeled"]) == (24, 12, 12)
    audit = pd.read_parquet(run.audit).set_index("image_id")
    assert sorted(audit.index[audit.is_mislabeled]) == [one for one in ids if one.startswith("rot")]
    assert json.loads(run.run_json.read_text(encoding="utf-8"))["counts"]["mislabeled"] == 12
    assert [part.stat().st_mtime_ns for part in run.evidence_parts()] == evidence

    # The next audit takes them from the start, from the list that the review left behind, and says which do not fit.
    kept = tmp_path / "kept.csv"
    kept.write_text(run.review.read_text(encoding="utf-8") + "gone/away.png,rot,blå,wrong,\n", encoding="utf-8")
    second = runner.invoke(cli.app, ["run", str(dataset), *told, "--reviewed", str(kept), "--name", "next"])
    assert second.exit_code == 0, second.output
    assert "looked at:         24, of which 12 are wrong" in second.stdout
    assert " a second)\n" in second.stdout.splitlines(keepends=True)[0]
    assert "\nflags that are right: about 100% (100% to 100%)\n" in second.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "next" / "audit.parquet").set_index("image_id"), audit)
    noted = json.loads((tmp_path / "next" / "run.json").read_text(encoding="utf-8"))["warnings"]
    assert [line for line in noted if "gone/away.png" in line]

    # A verdict may be taken back by saying the opposite; what the file is silent on stays.
    shutil.rmtree(junit.parent)
    kept.write_text(f"image_id,verdict\n{ids[-1]},right\n", encoding="utf-8")
    third = runner.invoke(cli.app, ["review", str(run.path), str(kept)])
    assert "looked at:         24, of which 11 are wrong" in third.stdout
    assert third.stdout.splitlines()[0].endswith(" s, weighed anew")
    assert f"note: cannot write {junit}: its folder is gone; a JUnit file of this run says" in third.stderr
    assert not junit.parent.exists()

    facts = json.loads(run.run_json.read_text(encoding="utf-8"))
    run.run_json.write_text(json.dumps(facts | {"schema": 1}), encoding="utf-8")
    before = run.audit.read_bytes()
    for command in (["review", str(run.path), str(kept)], ["report", str(run.path)]):
        old = runner.invoke(cli.app, command)
        assert old.exit_code == 2
        assert old.stderr == f"error: {run.path} was written by another version of fixaudit; run the audit again\n"
    assert run.audit.read_bytes() == before


def test_a_reader_that_has_seen_enough_is_no_error(run: RunFolder) -> None:
    command = f'set -o pipefail; "{sys.executable}" "{cli.__file__}" report "{run.path}" --json | true'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_duplicate_conflicts_are_counted_and_said_where_there_are_any(dataset, tmp_path):
    data = tmp_path / "data"
    for name in ("rot", "blå"):
        (data / name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(dataset / name / f"{number:02d}.png", data / name)
    told = ["run", str(data), "--engine", "inprocess", "--quiet", "--overwrite", "--out", str(tmp_path), "--name", "r"]

    def audited(*more: str) -> str:
        ids = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*.png"))]
        rows = [f"{one},{'0.9,0.1' if one.startswith('rot') else '0.1,0.9'}" for one in ids]
        (tmp_path / "probs.csv").write_text("\n".join(["image_id,rot,blå", *rows]), encoding="utf-8")
        result = runner.invoke(cli.app, [*told, "--probs", str(tmp_path / "probs.csv"), *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "duplicates" not in audited()
    shutil.copy(data / "rot" / "00.png", data / "blå" / "twin.png")
    assert "\nduplicates:        2 (one picture under two labels, or in two splits)\n" in audited()
    counts = json.loads(audited("--json"))["counts"]
    assert counts == {"images": 7, "ok": 7, "error": 0, **dict.fromkeys(schema.ISSUES, 0), "duplicate_conflict": 2}
    assert json.loads(RunFolder(tmp_path / "r").run_json.read_text(encoding="utf-8"))["counts"] == counts


def test_what_is_not_there_is_told_with_what_to_do(run, tmp_path):
    def told(*arguments: str) -> str:
        result = runner.invoke(cli.app, list(arguments))
        assert result.exit_code == 2
        return only_line(result)

    nowhere = tmp_path / "nowhere"
    why = f"error: {nowhere} is not a complete run: there is no run.json in it; "
    assert told("report", str(nowhere)) == why + "name the folder that fixaudit run printed"
    (nowhere / "work").mkdir(parents=True)
    assert told("review", str(nowhere)) == why + "finish it with the command that began it"
    assert told("explain", str(run.path), "nope").endswith("; ids are in the column image_id of audit.parquet")
    absent = told("review", str(run.path), str(tmp_path / "absent.csv"))
    assert absent.endswith(
        "absent.csv: No such file or directory; name another file as FILE of fixaudit review, or with --reviewed"
    )
    assert wrong([str(run.path), "--classes", "absent.txt"]).endswith("; name another file with --classes")


def test_doctor_looks_at_every_library_that_is_needed():
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {told.split(">=")[0] for told in project["project"]["dependencies"]}
    found = json.loads(runner.invoke(cli.app, ["doctor", "--json"]).stdout)
    assert needed <= {one["what"] for one in found}


def test_a_pipe_that_breaks_elsewhere_is_an_error(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: RunFolder) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("jobs.result.read_facts", broken)
    result = runner.invoke(cli.app, ["report", str(run.path)])
    assert result.exit_code == 2
    assert "BrokenPipeError" in only_line(result)
