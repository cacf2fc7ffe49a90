import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OtherVersionError, RunFolderError
from pipeline.files import write_json
from pipeline.geometry import MAP_SIDE
from pipeline.pages.findings import (
    ClassEvidence,
    dataset_name,
    findings_of,
    read_evidence,
    read_one,
    similar_ids,
    top_findings,
    twins_of,
)
from pipeline.pages.report import write_report
from pipeline.runfolder import RunFolder
from tests.pipeline.synthetic_run import SHARD, Drawn, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("findings"))


def test_the_top_is_the_best_ranks_of_the_issue(run):
    issues = pq.read_table(run.issues).to_pandas()
    expected = issues[issues["issue"] == "mislabeled"].nsmallest(4, "rank")["image_id"].tolist()
    top = top_findings(run, "mislabeled", 4)
    assert [finding.image_id for finding in top] == expected
    assert {finding.issue for finding in top} == {"mislabeled"}
    assert len(top_findings(run, "ambiguous", 1000)) == (issues["issue"] == "ambiguous").sum()


def test_the_top_does_not_rely_on_the_files_order(run, tmp_path):
    table = pq.read_table(run.issues)
    backwards = RunFolder(tmp_path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), backwards.issues)
    assert top_findings(backwards, "mislabeled", 4) == top_findings(run, "mislabeled", 4)


def test_all_findings_of_an_image(run):
    found = findings_of(run, ["dog/two-objects.png", "plain/0016.jpg"])
    assert list(found) == ["dog/two-objects.png"]
    assert [finding.issue for finding in found["dog/two-objects.png"]] == ["mislabeled", "ambiguous"]


def test_evidence_reads_back_as_written(run):
    image = read_one(run, "cat/one object.png")
    assert (image.width, image.height, image.fold, image.error) == (320, 240, 0, None)
    assert (image.label_name, image.pred_name, image.agrees) == ("cat", "dog", False)
    assert image.pred_probability == pytest.approx(0.97, abs=1e-3)
    assert image.label_probability == pytest.approx(0.006, abs=1e-3)
    assert image.overlap == pytest.approx(0.12)
    row = pq.read_table(run.evidence_part(0)).to_pandas().set_index("image_id").loc["cat/one object.png"]
    np.testing.assert_array_equal(image.given.x, row["label_fix_x"])
    np.testing.assert_array_equal(image.prediction.mass, row["pred_fix_mass"])
    assert image.given.box == tuple(row["label_box"])
    assert image.given.map.tobytes() == row["label_map"] != row["pred_map"]
    assert image.without_points().prediction is None
    assert image.without_points().uri == image.uri


def test_an_unreadable_image_has_its_reason(run):
    image = read_one(run, "dog/zero bytes.png")
    assert image.error == "the file is empty"
    assert image.prediction is None
    assert image.width is None


def test_a_label_that_is_no_class_has_no_probability(run, tmp_path):
    strange = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 1)])
    table = pq.read_table(strange.evidence_part(0))
    position = table.schema.get_field_index("label")
    pq.write_table(
        table.set_column(position, table.schema.field(position), pa.array([-1], pa.int32())), strange.evidence_part(0)
    )
    image = read_one(strange, "cat/a.png")
    assert image.label_probability is None
    assert image.pred_probability == pytest.approx(0.9, abs=1e-3)


def test_a_box_of_nan_is_no_box(tmp_path):
    strange = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0)])
    table = pq.read_table(strange.evidence_part(0))
    position = table.schema.get_field_index("pred_box")
    nothing = pa.array([[float("nan")] * 4], table.schema.field(position).type)
    pq.write_table(table.set_column(position, table.schema.field(position), nothing), strange.evidence_part(0))
    assert read_one(strange, "cat/a.png").prediction.box is None


def test_only_the_parts_that_hold_the_images_are_opened(run, tmp_path):
    images = [Drawn(f"cat/{number:03d}.png", (20, 20), 0, 1, ("mislabeled",)) for number in range(3 * SHARD)]
    broken = make_run(tmp_path, images)
    broken.evidence_part(0).write_bytes(b"not parquet")
    broken.evidence_part(2).unlink()
    wanted = [f"cat/{SHARD + 3:03d}.png", f"cat/{SHARD:03d}.png"]
    assert [image.image_id for image in read_evidence(broken, wanted)] == sorted(wanted)
    with pytest.raises(RunFolderError, match=r"part-00002\.parquet is missing; finish the run"):
        read_one(broken, f"cat/{2 * SHARD:03d}.png")
    with pytest.raises(RunFolderError, match=r"cannot read .*part-00000\.parquet") as error:
        read_one(broken, "cat/000.png")
    assert "\n" not in str(error.value)


def test_an_unknown_id_names_the_nearest(run):
    with pytest.raises(RunFolderError, match=r"no image cat/one objct\.png in run .*; nearest: cat/one object\.png"):
        read_one(run, "cat/one objct.png")


def test_a_bare_file_name_finds_its_folder(run):
    assert similar_ids(run, "copy.png")[:2] == ["cat/copy.png", "dog/copy.png"]
    assert similar_ids(run, "C:\\data\\copy.png")[:2] == ["cat/copy.png", "dog/copy.png"]


def test_of_an_id_like_no_other_is_told_where_ids_are(run):
    with pytest.raises(RunFolderError, match=r"no image §§ in run [^;]*; ids are in the column image_id of audit"):
        read_one(run, "§§")


def test_twins_are_the_files_with_the_same_bytes(run):
    digest = read_one(run, "cat/copy.png").sha256
    assert twins_of(run, [digest], 9) == {digest: [("cat/copy.png", "cat"), ("dog/copy.png", "dog")]}
    assert twins_of(run, [digest], 1) == {digest: [("cat/copy.png", "cat")]}
    assert twins_of(run, [], 9) == {}


def test_the_dataset_is_named_by_its_folder(run):
    assert dataset_name(run) == dataset_name(run, "some/folder.v2") == "dataset"


def test_a_dataset_that_a_file_lists_is_named_by_both(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0)])
    assert dataset_name(run, "lists/m_typo.CSV") == "dataset · m_typo"  # run.json is not there yet
    write_json({"config": {"dataset": "lists/clean.parquet"}}, run.run_json)
    assert dataset_name(run) == "dataset · clean"
    assert "<title>dataset · clean ·" in write_report(run).read_text(encoding="utf-8")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"manifest\.parquet is missing: .* is not a run folder"):
        read_one(RunFolder(tmp_path), "cat/a.png")


def test_strongest_breaks_ties_by_row_then_column():
    evidence = ClassEvidence(
        np.array([4, 1, 2, 3], np.int32),
        np.array([0, 1, 0, 0], np.int32),
        np.array([0.2, 0.4, 0.2, 0.2], np.float32),
        None,
        None,
        np.zeros((MAP_SIDE, MAP_SIDE), np.uint8),
    )
    kept = evidence.strongest(3)
    assert list(zip(kept.x.tolist(), kept.y.tolist(), strict=True)) == [(1, 1), (2, 0), (3, 0)]


@pytest.mark.parametrize("version", [b"4", b"", None])
def test_evidence_of_another_version_is_refused_in_one_line(tmp_path, version):
    run = make_run(tmp_path)
    table = pq.read_table(run.evidence_part(0))
    told = {b"fixaudit.table": b"evidence"} | ({} if version is None else {b"fixaudit.schema": version})
    pq.write_table(table.replace_schema_metadata(told), run.evidence_part(0))
    with pytest.raises(OtherVersionError, match="was written by another version of fixaudit; run the audit again"):
        read_one(run, "cat/one object.png")
