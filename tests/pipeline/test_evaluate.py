"""Protocols over small annotated datasets, on a network whose evidence is known: it looks for red or for blue."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fixcore
from fixcore.methods import METHODS, find_methods
from pipeline.annotated import read_annotated
from pipeline.errors import ConfigError, DatasetError
from pipeline.evaluate import PROTOCOLS, Request, Table, evaluate
from pipeline.evaluate.batches import Problems, batches, halves
from pipeline.evaluate.gallery import draw_gallery, last_layers
from pipeline.evaluate.localize import coarse_max_sum_boxes
from pipeline.evaluate.subject import Subject
from pipeline.geometry import InputSpec

SIDE = 32


class Colours(nn.Module):
    """Red or blue: a class map of each, averaged. Its evidence is where the colour is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.seen.weight.fill_(-0.05)
            self.seen.weight[0, 0] = self.seen.weight[1, 2] = 0.2
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.seen(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def subject() -> Subject:
    spec = InputSpec(size=SIDE, fit="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    module = Colours()
    graph = fixcore.capture(module, torch.zeros(2, 3, SIDE, SIDE))
    return Subject("colours", graph, module, spec, ("red", "blue"), torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures 64 x 48, each with a red and a smaller blue square, boxes in a table; one is broken."""
    root = tmp_path_factory.mktemp("annotated")
    draw = np.random.default_rng(0)
    rows = []
    (root / "masks").mkdir()
    (root / "images").mkdir()
    for number in range(12):
        pixels = np.zeros((48, 64, 3), dtype=np.uint8)
        left, top = int(draw.integers(2, 20)), int(draw.integers(2, 16))
        pixels[top : top + 24, left : left + 24, 0] = 255
        pixels[40:46, 52:60, 2] = 255
        Image.fromarray(pixels).save(root / "images" / f"{number:02d}.png")
        Image.fromarray(pixels[:, :, 0]).save(root / "masks" / f"{number:02d}.png")
        rows += [(f"images/{number:02d}.png", "red", left, top, left + 24, top + 24)]
    (root / "images" / "12.png").write_bytes(b"no picture")
    (root / "masks" / "12.png").write_bytes(b"no picture")
    with (root / "boxes.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows(
            [("image", "label", "x0", "y0", "x1", "y1"), *rows, ("images/12.png", "red", 0, 0, 1, 1)]
        )
    return root


def ask(subject: Subject, path: Path, methods: str = "fixations,gradient,cam", **how) -> Request:
    return Request(subject, read_annotated(path, **how), find_methods(methods.split(",")), batch_size=5)


def by_name(table: Table) -> dict[str, dict[str, object]]:
    names = [" ".join(str(cell) for cell in row[:2] if isinstance(cell, str)) for row in table.rows]
    return {name: dict(zip(table.columns, row, strict=True)) for name, row in zip(names, table.rows, strict=True)}


def test_boxes_of_a_squashed_picture_come_along(subject: Subject, data: Path) -> None:
    request = ask(subject, data / "boxes.csv")
    problems = Problems()
    found = list(batches(subject, request.dataset, 5, problems))
    assert [len(batch.shown) for batch in found] == [5, 5, 2]
    assert problems.reasons == ["images/12.png: not an image (text)"] or "12.png" in problems.reasons[0]
    for batch in found:
        for image, truth, pixels in zip(batch.shown, batch.truths, batch.pixels, strict=True):
            x0, y0, x1, y1 = image.objects[0].box
            assert truth[0].tolist() == pytest.approx([x0 / 2, y0 / 1.5, x1 / 2, y1 / 1.5])
            red = np.argwhere(pixels[:, :, 0] > 127)
            assert abs(red[:, 1].min() - x0 / 2) <= 1
            assert abs(red[:, 0].max() + 1 - y1 / 1.5) <= 1


def test_localization_finds_what_can_be_found(subject: Subject, data: Path) -> None:
    request = ask(subject, data / "boxes.csv")
    done: list[float] = []
    table, less, times = evaluate("localization", replace(request, advance=done.append))
    assert sum(done) == 12
    rows = by_name(table)
    assert rows["fixations moments (default)"]["GT-known"] == 1
    assert rows["fixations moments (default)"]["top-1 error"] == 0
    assert rows["cam threshold"]["GT-known"] == 1
    assert rows["cam published threshold"]["setting"] == "0.2"
    assert rows["whole image -"]["GT-known"] == 0
    assert {"centred 75 % -", "gradient max-sum"} <= rows.keys()
    assert any("12.png" in note for note in table.notes)
    assert less.title == "Less fixations, moments (default)"
    assert {row[0]: row[2:] for row in less.rows}["whole image"] == (-1, 0)
    assert {row[0]: row[2:] for row in less.rows}["cam"] == (0, 0)
    assert [row[0] for row in times.rows] == ["fixations", "gradient", "cam"]


def test_without_classes_the_predicted_class_is_to_hit_the_main_object(
    subject: Subject, data: Path, tmp_path: Path
) -> None:
    table, less, _ = evaluate("localization", ask(subject, data, "cam,fixations", form="masks"))
    rows = by_name(table)
    assert rows["fixations moments (default)"]["GT-known"] == rows["cam max-sum"]["GT-known"] == 1
    assert rows["whole image -"]["GT-known"] == 0
    assert rows["whole image -"]["top-1 error"] is rows["cam moments"]["if correct"] is None
    assert "predicted class" in table.notes[0]
    assert less.title == "Less cam, moments"

    Image.open(data / "images" / "00.png").save(tmp_path / "0.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    box = read_annotated(data / "boxes.csv").images[0].objects[0].box
    large = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    told = {
        "images": [{"id": at, "file_name": f"{at}.png"} for at in range(2)],
        "annotations": [
            {"image_id": 0, "category_id": 7, "bbox": [52, 40, 8, 6]},
            {"image_id": 0, "category_id": 7, "bbox": large},
        ],
        "categories": [{"id": 7, "name": "square"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(told))
    table, *_ = evaluate("localization", ask(subject, tmp_path, "fixations"))
    assert by_name(table)["fixations moments (default)"]["GT-known"] == 1  # of one image: the other holds nothing
    assert "1 images have no object to hit; they are left out" in table.notes
    (found,) = batches(subject, read_annotated(tmp_path), 5, Problems())
    objects = found.main_objects(subject.input)
    assert objects[0, 0].tolist() == pytest.approx([box[0] / 2, box[1] / 1.5, box[2] / 2, box[3] / 1.5])
    assert bool(objects[1].isnan().all())

    (table,) = evaluate("tune", ask(subject, data, form="masks"))
    assert by_name(table)["default"]["hits"] == 1


def test_the_box_around_a_mask_holds_all_of_it(subject: Subject, data: Path) -> None:
    for batch in batches(subject, read_annotated(data, form="masks"), 5, Problems()):
        for box, mask in zip(batch.main_objects(subject.input)[:, 0], batch.masks(subject.input), strict=True):
            rows, cols = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1]


def test_settings_are_chosen_on_the_other_half_of_every_split() -> None:
    from pipeline.evaluate.localize import _chosen

    half = torch.tensor([[True, True, False, False], [True, False, True, False]])
    iou = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    told, taken = _chosen(iou, half, (0.2, 0.4))
    assert taken[0].tolist() == pytest.approx([0.1] * 4)  # what is best on one half is worst on the other
    assert taken[1].tolist() == pytest.approx([0.9, 0.9, 0.1, 0.1])  # equally good: the first
    assert told == "0.2, 0.4"


def test_halves_do_not_depend_on_the_other_images(data: Path) -> None:
    images = read_annotated(data / "boxes.csv").images
    found = halves(images, 64)
    assert found.shape == (64, len(images))
    assert found[:, 3:].tolist() == halves(images[3:], 64).tolist()
    assert len({tuple(split) for split in found.tolist()}) > 60
    assert 0.4 < found.float().mean() < 0.6


def test_pointing_asks_for_each_class_or_for_the_prediction(subject: Subject, data: Path, tmp_path: Path) -> None:
    (table,) = evaluate("pointing", ask(subject, data / "boxes.csv"))
    rows = {row[0]: row for row in table.rows}
    assert rows["fixations"][1:] == (12, 1.0, 1.0)
    strange = replace(subject, classes=("n01", "n02"))
    (table,) = evaluate("pointing", ask(strange, data / "boxes.csv"))
    assert any("predicted class" in note for note in table.notes)
    assert {row[0]: row for row in table.rows}["fixations"][1:] == (12, 1.0, 1.0)


def test_proposals_against_all_objects_of_a_coco_file(subject: Subject, data: Path) -> None:
    told = {
        "images": [{"id": 1, "file_name": "images/00.png"}, {"id": 2, "file_name": "images/01.png"}],
        "annotations": [],
        "categories": [{"id": 7, "name": "square"}, {"id": 8, "name": "dot"}],
    }
    for number, image in enumerate(read_annotated(data / "boxes.csv").images[:2], 1):
        x0, y0, x1, y1 = image.objects[0].box
        told["annotations"].append({"image_id": number, "category_id": 7, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    told["annotations"].append({"image_id": 1, "category_id": 8, "bbox": [52, 40, 8, 6]})
    told["annotations"].append({"image_id": 2, "category_id": 8, "bbox": [0, 0, 64, 48], "iscrowd": 1})
    path = data / "instances.json"
    path.write_text(json.dumps(told))
    (table,) = evaluate("proposals", ask(subject, path))
    rows = by_name(table)
    assert (rows["fixations"]["mean recall"], rows["fixations"]["mean precision"]) == (0.5, 0.5)
    assert rows["whole image"]["mean recall"] == 0


def test_saliency_against_masks(subject: Subject, data: Path) -> None:
    (table,) = evaluate("saliency", ask(subject, data, form="masks"))
    rows = by_name(table)
    assert float(rows["cam"]["max-F"]) > 0.9
    assert float(rows["fixations"]["max-F"]) > float(rows["centre of the image"]["max-F"])
    assert "gradient, blurred" in rows
    assert {"cam, along edges", "gradient, blurred, along edges"} <= set(rows)
    assert float(rows["fixations, along edges"]["IoU"]) > float(rows["fixations"]["IoU"])


def test_the_object_is_cut_out_of_the_picture_on_request(subject: Subject, data: Path) -> None:
    (table,) = evaluate("saliency", replace(ask(subject, data, "fixations,cam", form="masks"), cut=True))
    rows = by_name(table)
    assert float(rows["fixations, cut out"]["IoU"]) > 0.98 > float(rows["fixations"]["IoU"])
    table, *_ = evaluate("localization", replace(ask(subject, data / "boxes.csv", "fixations,cam"), cut=True))
    rows = by_name(table)
    assert rows["fixations graph cut"]["GT-known"] == rows["cam graph cut"]["GT-known"] == 1


def test_what_two_methods_differ_by_is_counted_image_by_image(subject: Subject, data: Path) -> None:
    request = ask(subject, data / "boxes.csv", "cam,gradient")
    single = [
        by_name(evaluate("faithfulness", replace(request, dataset=replace(request.dataset, images=(image,))))[0])
        for image in request.dataset.images[:4]
    ]
    request = replace(request, dataset=replace(request.dataset, images=request.dataset.images[:4]))
    _, table = evaluate("faithfulness", request)
    assert table.title == "Less cam"
    assert {row[0] for row in table.rows} == {"gradient", "occlusion", "nothing (the centre)"}
    for method, measure, mean, error in table.rows:
        differences = [float(rows[method][measure]) - float(rows["cam"][measure]) for rows in single]
        assert mean == pytest.approx(statistics.mean(differences), abs=1e-6)
        assert error == pytest.approx(statistics.stdev(differences) / 2, abs=1e-6)


@pytest.mark.parametrize("protocol", ["faithfulness", "sanity", "sensitivity", "tune"])
def test_the_other_protocols_give_numbers(subject: Subject, data: Path, protocol: str) -> None:
    request = ask(subject, data / "boxes.csv", "fixations,cam")
    request = replace(request, dataset=replace(request.dataset, images=request.dataset.images[:4]))
    table, *others = evaluate(protocol, request)
    numbers = [cell for row in table.rows for cell in row if isinstance(cell, float)]
    assert numbers
    assert all(-1 <= number <= 1 for number in numbers if number == number)
    assert len(others) == (protocol == "faithfulness")
    if protocol == "sanity":
        assert table.rows[0][:2] == ("cascading", 1)
        assert float(table.rows[-2][2]) < 1
    if protocol == "sensitivity":
        assert by_name(table)["fixations"]["runner-up"] < 0.5
    if protocol == "tune":
        assert table.rows[0][0] == "default"
        assert by_name(table)["default"]["hits"] == 1
    assert json.loads(json.dumps(table.facts(), allow_nan=False))["rows"]


def test_the_gallery_is_a_picture(subject: Subject, data: Path, tmp_path: Path) -> None:
    request = ask(subject, data / "boxes.csv", "fixations,cam,gradient")
    draw_gallery(request, tmp_path / "methods.png", rows=3)
    draw_gallery(request, tmp_path / "layers.png", rows=2, layers=last_layers(subject.graph))
    draw_gallery(replace(request, cut=True), tmp_path / "cut.png", rows=2)
    layers = len(last_layers(subject.graph))
    for name, columns, rows in (("methods.png", 6, 3), ("layers.png", 2 + layers, 2), ("cut.png", 9, 2)):
        with Image.open(tmp_path / name) as picture:
            width, height = picture.size
        assert width == pytest.approx(175 * columns, rel=0.02)
        assert height == pytest.approx(189 * rows + 30, rel=0.02)
    broken = replace(request, dataset=replace(request.dataset, images=request.dataset.images[-1:]))
    with pytest.raises(DatasetError, match="none of the first 1"):
        draw_gallery(broken, tmp_path / "none.png", rows=1)


def test_what_does_not_serve_says_what_would(subject: Subject, data: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean localization"):
        evaluate("localisation", ask(subject, data / "boxes.csv"))
    with pytest.raises(DatasetError, match="1 of 1 labels are no outputs of colours, the first is 'red'"):
        evaluate("localization", ask(replace(subject, classes=("rad", "blau")), data / "boxes.csv"))
    request = ask(subject, data / "boxes.csv")
    first, *others = request.dataset.images
    half_told = replace(request.dataset, images=(replace(first, label=None), *others))
    for protocol in ("localization", "tune"):
        with pytest.raises(DatasetError, match="a class for each image, or for none: 1 of 13 have none"):
            evaluate(protocol, replace(request, dataset=half_told))

    def never(images: float) -> None:
        pytest.fail("a batch was computed before it was asked what is marked")

    marked = {"boxes": ask(subject, data / "boxes.csv"), "masks": ask(subject, data, form="masks")}
    hidden = tuple(replace(one, objects=(replace(one.objects[0], difficult=True),)) for one in request.dataset.images)
    marked["nothing"] = replace(request, dataset=replace(request.dataset, images=hidden))
    for protocol, has, needs in (
        ("saliency", "boxes", "saliency needs masks"),
        ("pointing", "masks", "pointing needs objects with boxes"),
        ("proposals", "masks", "proposals need objects with boxes"),
        ("localization", "nothing", "localization needs boxes or masks"),
        ("tune", "nothing", "tune needs boxes or masks"),
    ):
        with pytest.raises(DatasetError, match=f"{needs}.*; no image of the dataset has one"):
            evaluate(protocol, replace(marked[has], advance=never))
    with pytest.raises(DatasetError, match="exported program"):
        evaluate("sanity", ask(replace(subject, module=None), data / "boxes.csv"))


def test_a_table_reads_well_and_plots(tmp_path: Path) -> None:
    table = Table("Title", ("method", "n", "share"), (("fixations", 3, 0.5), ("b", None, float("nan"))), ("a note",))
    assert table.text().splitlines() == [
        "Title",
        "",
        "method     n  share",
        "---------  -  -----",
        "fixations  3  0.500",
        "b          -      -",
        "",
        "a note",
    ]
    assert table.facts()["rows"][1] == {"method": "b", "n": None, "share": None}
    table.plot(tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.format == "PNG"


def test_a_wide_table_comes_in_blocks_that_name_their_rows() -> None:
    table = Table(
        "Title", ("method", "rule", "n", "share", "+-"), (("fixations", "moments", 3, 0.5, 0.25),), ("a note",)
    )
    assert table.text(room=30).splitlines() == [
        "Title",
        "",
        "method     rule     n  share",
        "---------  -------  -  -----",
        "fixations  moments  3  0.500",
        "",
        "method     rule        +-",
        "---------  -------  -----",
        "fixations  moments  0.250",
        "",
        "a note",
    ]
    assert table.text(room=35) == table.text()
    assert table.text(room=34) != table.text()
    assert table.text(room=1).count("fixations") == 3  # a column at a time is the least
    assert table.text(room=1, width=30).splitlines()[-1] == "a note"


def test_the_coarse_box_is_near_the_fine_one() -> None:
    maps = torch.zeros(1, 112, 112)
    maps[0, 20:60, 30:80] = 1
    assert coarse_max_sum_boxes(maps, 0.7)[0].tolist() == [30, 20, 80, 60]


def test_every_protocol_and_method_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    assert [name for name in (*PROTOCOLS, "gallery") if f"`{name}`" not in page] == []
    assert [name for name in METHODS if f"`{name}`" not in page] == []
