"""Small files of each format as their authors ship them, and what can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.annotated import Annotated, read_annotated
from pipeline.errors import ConfigError, DatasetError


def picture(path: Path, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def xml(path: Path, *objects: tuple[str, tuple[int, int, int, int], int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1), hard in objects
    )
    path.write_text(f"<annotation><filename>ignored/../../{path.stem}</filename>{text}</annotation>")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit"
    for name in ("000001", "000002", "000003"):
        picture(root / "VOC2007" / "JPEGImages" / f"{name}.jpg")
        xml(root / "VOC2007" / "Annotations" / f"{name}.xml", ("dog", (1, 1, 20, 10), 0), ("cat", (5, 5, 6, 6), 1))
    lists = root / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "test.txt").write_text("000001\n000003\n")
    (lists / "dog_test.txt").write_text("000001  1\n")
    (lists / "train.txt").write_text("000002\n")
    return root


def test_voc_counts_from_one_and_keeps_to_its_list(voc: Path) -> None:
    found = read_annotated(voc)
    assert found.form == "voc"
    assert [image.image_id for image in found.images] == ["JPEGImages/000001.jpg", "JPEGImages/000003.jpg"]
    assert found.images[0].objects == (Annotated("dog", (0, 0, 20, 10)), Annotated("cat", (4, 4, 6, 6), True))
    assert found.images[0].label is None
    assert found.labels == ["cat", "dog"]
    assert [image.image_id for image in read_annotated(voc / "VOC2007", split="train").images] == [
        "JPEGImages/000002.jpg"
    ]
    with pytest.raises(DatasetError, match=r"no list val2.txt; there are test, train"):
        read_annotated(voc, split="val2")


def test_ilsvrc_counts_from_zero_and_names_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.JPEG")
    xml(tmp_path / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000001.xml", ("n01440764", (0, 2, 9, 9), 0))
    xml(tmp_path / "Annotations" / "CLS-LOC" / "val" / "ILSVRC2012_val_00000002.xml", ("n01440764", (0, 2, 9, 9), 0))
    found = read_annotated(tmp_path)
    assert found.form == "ilsvrc"
    assert found.images[0].objects == (Annotated("n01440764", (0, 2, 10, 10)),)
    assert found.images[0].label == "n01440764"
    assert found.warnings == ("1 annotated images are not there (first: ILSVRC2012_val_00000002); they are left out",)


def test_kaggles_solution_and_our_own_table(tmp_path: Path) -> None:
    picture(tmp_path / "val" / "a.JPEG")
    picture(tmp_path / "val" / "b.JPEG")
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("ImageId,PredictionString\na,n1 1 2 3 4 n1 5 6 7 8 \nb,n2 0 0 19 9 \n")
    found = read_annotated(tmp_path)
    assert found.images[0].objects == (Annotated("n1", (1, 2, 4, 5)), Annotated("n1", (5, 6, 8, 9)))
    assert [image.label for image in found.images] == ["n1", "n2"]
    solution.write_text("ImageId,PredictionString\na,n1 1 2 3\n")
    with pytest.raises(DatasetError, match="line 2: 4 words"):
        read_annotated(tmp_path)
    solution.unlink()
    own = tmp_path / "boxes.csv"
    own.write_text("image,label,x0,y0,x1,y1\nval/a.JPEG,7,0,0,2.5,3\nval/a.JPEG,8,1,1,2,2\nb,9,,,,\n")
    found = read_annotated(own)
    assert found.images[0].objects == (Annotated("7", (0, 0, 2.5, 3)), Annotated("8", (1, 1, 2, 2)))
    assert (found.images[0].label, found.images[1].label, found.images[1].objects) == ("7", "9", ())
    own.write_text("image,label,x0,y0,x1,y1\na,7,zero,0,2,3\n")
    with pytest.raises(DatasetError, match="line 2: could not convert"):
        read_annotated(tmp_path)


def test_coco_turns_sizes_into_edges_and_marks_crowds(tmp_path: Path) -> None:
    picture(tmp_path / "val2017" / "000000000009.jpg")
    told = {
        "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 10, "file_name": "gone.jpg"}],
        "annotations": [
            {"image_id": 9, "category_id": 3, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
            {"image_id": 9, "category_id": 5, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "person"}],
    }
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(told))
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    found = read_annotated(tmp_path)
    assert found.images[0].objects == (Annotated("car", (1.5, 2, 4.5, 6)), Annotated("person", (0, 0, 9, 9), True))
    assert "gone.jpg" in found.warnings[0]
    path.write_text(json.dumps({**told, "categories": []}))
    with pytest.raises(DatasetError, match="no COCO file: 3 is missing"):
        read_annotated(tmp_path)
    path.write_text("{")
    with pytest.raises(DatasetError, match="no COCO file"):
        read_annotated(tmp_path)


def test_masks_beside_images_among_them_and_one_per_object(tmp_path: Path) -> None:
    for root, images, masks in (("ecssd", "images", "masks"), ("msra", "Imgs", "Imgs")):
        picture(tmp_path / root / images / "0001.jpg")
        picture(tmp_path / root / masks / "0001.png")
        picture(tmp_path / root / images / "0002.jpg")
        found = read_annotated(tmp_path / root)
        assert found.form == "masks"
        assert [Path(image.uri).name for image in found.images] == ["0001.jpg"]
        assert [Path(mask).name for mask in found.images[0].masks] == ["0001.png"]
        assert "0002.jpg" in found.warnings[0]
    for name in ("bike_001.image.png", "bike_001.mask.0.png", "bike_001.mask.1.png", "bike_002.image.png"):
        picture(tmp_path / "ig02" / "bike" / name)
    found = read_annotated(tmp_path / "ig02")
    assert found.form == "graz02"
    assert [len(image.masks) for image in found.images] == [2, 0]
    assert {image.label for image in found.images} == {"bike"}


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(DatasetError, match=r"no annotations that are known .* docs/reproduce.md"):
        read_annotated(tmp_path)
    with pytest.raises(DatasetError, match="is not there"):
        read_annotated(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no format 'yolo'"):
        read_annotated(tmp_path, form="yolo")
    with pytest.raises(DatasetError, match="neither a COCO file"):
        read_annotated(tmp_path / "images" / "a.jpg")


HEAD = "image,label,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "a.jpg,7,1\n", "line 2: there are 6 columns, but not as many cells"),
        (HEAD + "a.jpg,7,1,1,2,2,2\n", "line 2: there are 6 columns, but not as many cells"),
        ("ImageId,PredictionString\na\n", "line 2: there are 2 columns, but not as many cells"),
        (HEAD + "a.jpg,7,1,1,2,2\n" * 5000 + "a.jpg,caf\xe9,1,1,2,2\n", "is not UTF-8 text"),
        (HEAD + f"a.jpg,{'x' * 200_000},1,1,2,2\n", "is not valid CSV: field larger than field limit"),
        ("image,label,x0,y0,x1,y1,label\na.jpg,7,1,1,2,2,8\n", "has several columns label; keep one"),
        (f"{'x' * 200_000},{HEAD}", "neither a COCO file nor a CSV of boxes"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "boxes.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=rf"boxes\.csv.*{expected}") as caught:
        read_annotated(tmp_path / "boxes.csv")
    assert "\n" not in str(caught.value)


def test_what_is_no_annotation_is_one_line(voc: Path) -> None:
    path = voc / "VOC2007" / "Annotations" / "000001.xml"
    good = path.read_text()
    path.write_text(f'<?xml version="1.0" encoding="foo"?>{good}')
    with pytest.raises(DatasetError, match=r"000001\.xml is no annotation: unknown encoding"):
        read_annotated(voc)
    path.unlink()
    path.symlink_to(voc / "nowhere.xml")
    with pytest.raises(DatasetError, match=r"000001\.xml is not a file, or a link that leads nowhere"):
        read_annotated(voc)
    path.unlink()
    path.mkdir()
    with pytest.raises(DatasetError, match=r"000001\.xml is not a file"):
        read_annotated(voc)
    (voc / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_bytes(b"000001\n\xff\n")
    with pytest.raises(DatasetError, match=r"test\.txt is not UTF-8 text"):
        read_annotated(voc)


def test_what_is_no_coco_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"instances\.json is no COCO file: cannot convert float infinity"):
        read_annotated(coco(tmp_path, image_id=float("inf")))
    with pytest.raises(DatasetError, match=r"instances\.json is no COCO file: its lists are nested too deep"):
        read_annotated(coco(tmp_path, "[" * 200_000))


def test_names_in_files_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    picture(tmp_path / "data" / "a.jpg")
    table = tmp_path / "data" / "boxes.csv"
    table.write_text(
        f"image,label,x0,y0,x1,y1\n../secret.jpg,1,0,0,1,1\n{tmp_path}/secret.jpg,1,0,0,1,1\na.jpg,1,0,0,1,1\n"
    )
    found = read_annotated(table)
    assert [image.image_id for image in found.images] == ["a.jpg"]
    assert found.warnings[0].startswith("2 annotated images are not there")


def test_two_files_of_one_name_are_no_guess(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.jpg")
    picture(tmp_path / "two" / "a.jpg")
    table = tmp_path / "boxes.csv"
    table.write_text("image,label,x0,y0,x1,y1\na.jpg,1,0,0,1,1\n")
    with pytest.raises(DatasetError, match=r"2 files .* are called a.jpg"):
        read_annotated(table)
    table.write_text("image,label,x0,y0,x1,y1\ntwo/a.jpg,1,0,0,1,1\n")
    assert read_annotated(table).images[0].image_id == "two/a.jpg"


BOXES = {
    "nan": ("nan", 2, 9, 9),
    "infinite": (1, "1e999", 9, 9),
    "reversed": (9, 2, 3, 9),
    "upside down": (1, 9, 9, 3),
}


@pytest.mark.parametrize("fault", BOXES)
def test_a_box_that_no_object_has_is_refused_and_the_image_named(voc: Path, tmp_path: Path, fault: str) -> None:
    x0, y0, x1, y1 = BOXES[fault]
    expected = "is not four finite numbers" if fault in ("nan", "infinite") else "ends before it begins"
    xml(voc / "VOC2007" / "Annotations" / "000001.xml", ("dog", (x0, y0, x1, y1), 0))
    with pytest.raises(DatasetError, match=rf"000001\.xml is no annotation: the box .* {expected}"):
        read_annotated(voc)
    picture(tmp_path / "csv" / "a.jpg")
    table = tmp_path / "csv" / "boxes.csv"
    table.write_text(f"image,label,x0,y0,x1,y1\na.jpg,7,{x0},{y0},{x1},{y1}\n")
    with pytest.raises(DatasetError, match=rf"boxes\.csv, line 2: the box .* {expected} .*\(image a\.jpg\)"):
        read_annotated(table)
    table.write_text(f"ImageId,PredictionString\na,n1 {x0} {y0} {x1} {y1}\n")
    with pytest.raises(DatasetError, match=rf"boxes\.csv, line 2: the box .* {expected} .*\(image a\)"):
        read_annotated(table)


def coco(root: Path, text: str = "", **changes: object) -> Path:
    """Write a COCO file of one image and one box, with some entries of the box changed, or any other text."""
    picture(root / "a.jpg")
    told = {
        "images": [{"id": 9, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], **changes}],
        "categories": [{"id": 3, "name": "car"}],
    }
    path = root / "instances.json"
    path.write_text(text or json.dumps(told))
    return path


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([float("nan"), 1, 5, 5], "is not four finite numbers"),
        ([1, 1, float("inf"), 5], "is not four finite numbers"),
        ([1, 1, -5, 5], "ends before it begins"),
        ([1, 1, 0, -5], "ends before it begins"),
        ([10**400, 1, 5, 5], "too large to convert"),
        ([1, 2, 3], "not enough values"),
        (None, "not iterable"),
    ],
)
def test_a_box_of_coco_that_no_object_has_is_refused_and_the_image_named(
    tmp_path: Path, box: object, expected: str
) -> None:
    with pytest.raises(DatasetError, match=rf"no COCO file: image 9: .*{expected}.*; a box is x, y, width, height$"):
        read_annotated(coco(tmp_path, bbox=box))


def test_boxes_without_an_area_are_in_coco_and_are_left_out_like_crowds(tmp_path: Path) -> None:
    found = read_annotated(coco(tmp_path, bbox=[1, 2, 0, 4]))
    assert found.images[0].objects == (Annotated("car", (1, 2, 1, 6), True),)
    (tmp_path / "boxes.csv").write_text("image,label,x0,y0,x1,y1\na.jpg,7,1,2,1,6\n")
    with pytest.raises(DatasetError, match="ends before it begins"):
        read_annotated(tmp_path / "boxes.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("told", ['b "bbbb"', 'b SYSTEM "file:///etc/hostname"', '% b SYSTEM "file:///etc/hostname"'])
def test_entities_are_refused_in_every_encoding(voc: Path, encoding: str, told: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY {told}>]><annotation></annotation>'
    (voc / "VOC2007" / "Annotations" / "000001.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DatasetError, match=r"000001\.xml is no annotation: it defines entities"):
        read_annotated(voc)


def test_xml_in_other_encodings_is_read(voc: Path) -> None:
    path = voc / "VOC2007" / "Annotations" / "000001.xml"
    before = read_annotated(voc).images[0].objects
    text = f'<?xml version="1.0" encoding="utf-16"?><!DOCTYPE annotation>{path.read_text()}'
    path.write_bytes(text.encode("utf-16"))
    assert read_annotated(voc).images[0].objects == before


def test_an_annotation_that_would_blow_up_is_refused(voc: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "' + "b" * 100 + '"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    (voc / "VOC2007" / "Annotations" / "000001.xml").write_text(bomb)
    with pytest.raises(DatasetError, match="entities"):
        read_annotated(voc)
    (voc / "VOC2007" / "Annotations" / "000001.xml").write_text("<annotation><object>")
    with pytest.raises(DatasetError, match="no annotation"):
        read_annotated(voc)
