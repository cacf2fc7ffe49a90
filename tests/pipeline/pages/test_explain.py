import ast
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.pages.explain
from pipeline import rle, schema
from pipeline.errors import RunFolderError
from pipeline.files import write_json
from pipeline.pages.explain import explain
from tests.pipeline.synthetic_run import Drawn, make_run

GIVEN, PREDICTION = (0x1F, 0x9B, 0xFF), (0xFF, 0x8B, 0x1F)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explain"))


def change(run, **values):
    """Rewrite the run's only evidence row with other values."""
    (row,) = pq.read_table(run.evidence_part(0)).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | values], schema.EVIDENCE), run.evidence_part(0))


def painted(path, colour):
    """Count the pixels of about this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=2) <= 12).sum())


def test_the_words_hold_the_numbers(run, tmp_path):
    found = explain(run, "cat/one object.png", tmp_path / "out.png")
    row = pq.read_table(run.evidence).to_pandas().set_index("image_id").loc["cat/one object.png"]
    lines = found.words.replace("\u202f", " ").splitlines()
    assert lines[0] == "cat/one object.png: 320 × 240 px, judged by held-out fold 0, which never saw it"
    for line, which, prefix, chance in zip(
        lines[1:3],
        ("Given label “cat”", "Prediction “dog”"),
        ("label", "pred"),
        ("0.6 %", "97.0 %"),
        strict=True,
    ):
        mass = sorted(row[f"{prefix}_fix_mass"], reverse=True)
        half = next(n for n in range(1, len(mass) + 1) if sum(map(float, mass[:n])) >= 0.5)
        left, top, right, bottom = row[f"{prefix}_box"]
        assert line.startswith(
            f"{which}, probability {chance}: {len(mass)} fixations, half of the weight in the strongest {half}; "
            f"box x {left:.0f}–{right:.0f}, y {top:.0f}–{bottom:.0f} "
            f"({100 * (right - left) * (bottom - top) / (320 * 240):.1f} % of the image); mask "
        )
    assert lines[3] == "Overlap of the two evidences: 12.0 % (0 % lie in different places, 100 % coincide)"
    assert lines[4].startswith("Mislabeled (rank 2, score 0.030): the network reads dog (97%)")
    assert lines[5:] == ["Suggested label: dog"]


def test_it_says_who_judged(run, tmp_path):
    alone = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 0)])
    change(alone, fold=-1)

    def judge(predict):
        write_json({"config": {"predict": predict}}, alone.run_json)
        return explain(alone, "cat/a.png", tmp_path / "out.png").words.splitlines()[0].partition(", ")[2]

    assert judge("direct") == "judged by a model that never saw this dataset"
    assert judge("probs") == "judged by the probabilities that were given"


def test_the_picture_shows_both_evidences(run, tmp_path):
    found = explain(run, "cat/one object.png", tmp_path / "out.png")
    assert found.path == tmp_path / "out.png"
    with Image.open(found.path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    # At least the two boxes: 2 points wide at 110 dots an inch, 96 pixels of the image a side.
    assert painted(found.path, GIVEN) > 800
    assert painted(found.path, PREDICTION) > 800


def test_one_row_where_the_prediction_is_the_label(run, tmp_path):
    one = explain(run, "plain/0016.jpg", tmp_path / "one.png")
    assert painted(one.path, GIVEN) == 0
    assert painted(one.path, PREDICTION) > 800
    assert "Given label = prediction “cat”" in one.words
    assert one.words.splitlines()[-1] == "Not flagged."
    assert "Overlap" not in one.words


@pytest.mark.parametrize(
    ("image_id", "says"),
    [
        ("cat/1x1.png", "1 × 1 px"),
        ("cat/8x8.png", "8 × 8 px"),
        ("dog/wide.png", "the image is 3,333 times as wide as high"),
        ("dog/tall.png", "the image is 30 times as high as wide"),
        ("han/猫 1.png", "猫と犬 $x^{2$"),
        ("cat/' onclick='alert(3) \"&amp;.png", "<script>alert(1)</script>"),
    ],
)
def test_any_size_and_any_name(run, tmp_path, image_id, says):
    found = explain(run, image_id, tmp_path / "out.png")
    assert says in found.words
    with Image.open(found.path) as image:
        assert 800 < image.width < 2500
        assert 250 < image.height < 2500


def test_a_direction_override_is_spelt_out(run, tmp_path):
    assert explain(run, "rtl/\u202egnp.شفاه.png", tmp_path / "out.png").words.startswith("rtl/‹U+202E›gnp.")


def test_a_mask_of_one_pixel_is_not_lost_in_a_long_image(run, tmp_path):
    narrow = make_run(tmp_path, [Drawn("cat/wide.png", (9001, 4), 0, 0)])
    lit = [Image.open(explain(narrow, "cat/wide.png", tmp_path / "with.png").path).convert("L")]
    change(narrow, pred_mask=rle.encode(np.zeros((4, 9001), bool)))
    lit.append(Image.open(explain(narrow, "cat/wide.png", tmp_path / "without.png").path).convert("L"))
    with_mask, without = (np.asarray(image)[:230].astype(int) for image in lit)
    assert (with_mask - without).max() > 60


def test_no_evidence_is_said_in_words_and_picture(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (40, 30), 0, 1)])
    lists = ("fix_x", "fix_y", "fix_mass")
    change(
        run,
        **{f"label_{name}": [] for name in lists},
        **{f"pred_{name}": None for name in lists},
        **dict.fromkeys(
            ("label_box", "label_mask", "label_map", "pred_box", "pred_mask", "pred_map", "evidence_overlap")
        ),
    )
    found = explain(run, "cat/a.png", tmp_path / "out.png")
    assert "Given label “cat”, probability 2.0 %: nothing in the image speaks for it" in found.words.replace(
        "\u202f", " "
    )
    assert "Prediction “dog”, probability 90.0 %: no evidence was traced" in found.words.replace("\u202f", " ")
    assert painted(found.path, GIVEN) == painted(found.path, PREDICTION) == 0


def test_an_unreadable_image_says_why(run, tmp_path):
    found = explain(run, "dog/zero bytes.png", tmp_path / "out.png")
    assert found.words == "dog/zero bytes.png could not be audited: the file is empty"
    with Image.open(found.path) as image:
        assert np.asarray(image.convert("L")).min() < 100  # the words are on it


def test_a_model_that_never_saw_the_dataset(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (40, 30), 0, 1)])
    change(run, fold=-1)
    assert "judged by a model that never saw this dataset" in explain(run, "cat/a.png", tmp_path / "o.png").words


def test_an_unknown_id_names_the_nearest_and_writes_nothing(run, tmp_path):
    with pytest.raises(RunFolderError, match=r"no image cat/1x2\.png in run .*nearest: cat/1x1\.png"):
        explain(run, "cat/1x2.png", tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_is_one_clear_line(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 1, ("mislabeled",))])
    source = tmp_path / "dataset" / "cat" / "a.png"
    source.unlink()
    with pytest.raises(RunFolderError, match=r"cannot draw cat/a\.png: the file is gone") as error:
        explain(run, "cat/a.png", tmp_path / "out.png")
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.png").exists()


def test_a_file_that_has_changed_is_said_to(tmp_path):
    run = make_run(tmp_path, [Drawn("cat/a.png", (20, 20), 0, 1)])
    Image.new("RGB", (31, 17)).save(tmp_path / "dataset" / "cat" / "a.png")
    found = explain(run, "cat/a.png", tmp_path / "out.png")
    assert "The file has changed since the run: it now has 31 × 17 px." in found.words


def test_an_output_that_cannot_be_written(run, tmp_path):
    (tmp_path / "out.png").mkdir()
    with pytest.raises(RunFolderError, match="cannot write"):
        explain(run, "cat/8x8.png", tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_folders_on_the_way_are_made(run, tmp_path):
    assert explain(run, "cat/8x8.png", tmp_path / "new" / "out.png").path.is_file()


def test_pyplot_and_its_global_state_are_not_used():
    tree = ast.parse(Path(pipeline.pages.explain.__file__).read_text(encoding="utf-8"))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not [name for name in imported if "pyplot" in name]
    assert "matplotlib.figure.Figure" in imported
