"""Which images there are: folders, manifests, and everything that people get wrong about them."""

import json
import os
import pickle
import socket
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import schema
from pipeline.dataset.imagefolder import image_endings
from pipeline.dataset.manifest import read_class_names, read_manifest
from pipeline.errors import DatasetError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not looked at")
    return root


def rows(manifest):
    return {row["image_id"]: row for row in manifest.table.to_pylist()}


def labels(manifest):
    return {row["image_id"]: row["label_name"] for row in manifest.table.to_pylist()}


def problems(manifest):
    pairs = zip(manifest.table["image_id"].to_pylist(), manifest.problem.to_pylist(), strict=True)
    return {image_id: problem for image_id, problem in pairs if problem is not None}


# folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path):
    touch(tmp_path, "dog/b.png", "dog/a.JPG", "cat/deep/er/x.jpeg", "cat/y.webp", "dog.x/z.bmp", "dog/.hidden.png")
    touch(tmp_path, ".cache/x.png", "cat/.thumbs/x.png")
    manifest = read_manifest(tmp_path)
    assert manifest.table.schema.equals(schema.MANIFEST, check_metadata=True)
    assert manifest.table.to_pylist() == [
        {
            "image_id": image_id,
            "uri": str(tmp_path / image_id),
            "label": manifest.class_names.index(name),
            "label_name": name,
            "split": "",
            "shard": 0,
        }
        for image_id, name in [
            ("cat/deep/er/x.jpeg", "cat"),
            ("cat/y.webp", "cat"),
            ("dog.x/z.bmp", "dog.x"),
            ("dog/a.JPG", "dog"),
            ("dog/b.png", "dog"),
        ]
    ]
    assert manifest.class_names == ("cat", "dog", "dog.x")
    assert manifest.problem.null_count == len(manifest) == 5
    assert manifest.warnings == ()


def test_classes_stand_in_the_order_of_torchvision(tmp_path):
    touch(tmp_path, *(f"{name}/x.png" for name in ("10", "2", "1", "b", "B", "é")))
    from torchvision.datasets import ImageFolder

    assert read_manifest(tmp_path).class_names == ("1", "10", "2", "B", "b", "é")
    assert tuple(ImageFolder(tmp_path).classes) == ("1", "10", "2", "B", "b", "é")


def test_split_folders(tmp_path):
    touch(tmp_path, "train/cat/1.png", "Val/dog/1.png", "test/cat/sub/1.png", "annotations/all.json", "test/9.png")
    manifest = read_manifest(tmp_path)
    assert manifest.class_names == ("cat", "dog")
    assert {name: (row["split"], row["label"]) for name, row in rows(manifest).items()} == {
        "Val/dog/1.png": ("Val", 1),
        "test/cat/sub/1.png": ("test", 0),
        "train/cat/1.png": ("train", 0),
    }
    assert manifest.warnings == (
        "left out 1 image in no class folder (first: test/9.png)",
        "left alone 1 other file: 1 .json",
    )


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/1.png", "car/1.png", "bus/old/1.png")
    manifest = read_manifest(tmp_path)
    assert manifest.class_names == ("bus", "car", "train")
    assert set(manifest.table["split"].to_pylist()) == {""}


def test_what_is_left_out_is_said(tmp_path):
    touch(tmp_path, "cat/1.png", "cat/notes.txt", "dog/2.png", "cat/a.TXT", "README", "x.json", "overview.png")
    (tmp_path / "empty").mkdir()
    assert read_manifest(tmp_path).warnings == (
        "left out 1 image in no class folder (first: overview.png)",
        "left out 1 class folder without images: empty",
        "left alone 4 other files: 2 .txt, 1 without ending, 1 .json",
    )


def test_names_with_spaces_and_other_alphabets(tmp_path):
    names = ["red fox/a  b.png", "лиса/фото 1.png", "狐/写真.png", "a'b\"c/new\nline.png", "per%20cent/#?&.png"]
    touch(tmp_path, *names)
    manifest = read_manifest(tmp_path)
    assert set(rows(manifest)) == set(names)
    assert manifest.problem.null_count == 5
    for row in rows(manifest).values():
        assert Path(row["uri"]).stat().st_size == 13


def test_names_that_are_not_utf8_are_rows(tmp_path):
    touch(tmp_path, "cat/1.png", r"cat/b\xff.png")
    for name in (b"cat/b\xff.png", b"d\xe9g/x.png"):
        touch(tmp_path, os.fsdecode(name))
    manifest = read_manifest(tmp_path)
    assert list(rows(manifest)) == ["cat/1.png", r"cat/b\xff.png", r"cat/b\xff.png~", r"d\xe9g/x.png"]
    assert manifest.class_names == ("cat", r"d\xe9g")
    told = "the path is not valid UTF-8; rename the file or its folder"
    assert problems(manifest) == {r"cat/b\xff.png~": told, r"d\xe9g/x.png": told}


def test_a_dataset_below_a_name_that_is_not_utf8(tmp_path):
    dataset = touch(tmp_path / os.fsdecode(b"d\xff"), "cat/1.png", "m.csv")
    (dataset / "m.csv").write_text("image,label\ncat/1.png,cat\n")
    for path in (dataset, dataset / "m.csv"):
        with pytest.raises(DatasetError, match="is not valid UTF-8; rename the folder"):
            read_manifest(path)


def test_symbolic_links_are_followed_and_loops_are_left_out(tmp_path):
    data = touch(tmp_path / "data", "cat/1.png", "dog/1.png")
    touch(tmp_path / "elsewhere", "2.png", "sub/3.png")
    (data / "bird").symlink_to(tmp_path / "elsewhere")
    (data / "dog" / "link.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (data / "cat" / "up").symlink_to(data)
    (data / "cat" / "around").symlink_to(tmp_path)
    (data / "dog" / "self").symlink_to(data / "dog" / "self")
    (data / "dog" / "gone.png").symlink_to(tmp_path / "nothing.png")
    manifest = read_manifest(data)
    assert labels(manifest) == {
        "bird/2.png": "bird",
        "bird/sub/3.png": "bird",
        "cat/1.png": "cat",
        "cat/around/elsewhere/2.png": "cat",
        "cat/around/elsewhere/sub/3.png": "cat",
        "dog/1.png": "dog",
        "dog/gone.png": "dog",
        "dog/link.png": "dog",
    }
    assert manifest.warnings[:2] == (
        f"left out the link cat/around/data: it loops back to {data}",
        f"left out the link cat/up: it loops back to {data}",
    )
    assert problems(manifest) == {"dog/gone.png": "a link that leads nowhere: No such file or directory"}


def test_pipes_and_sockets_are_rows_that_nobody_opens(tmp_path):
    touch(tmp_path, "cat/1.png")
    os.mkfifo(tmp_path / "cat" / "2.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "cat" / "3.png"))
        assert problems(read_manifest(tmp_path)) == {
            "cat/2.png": "not a regular file",
            "cat/3.png": "not a regular file",
        }


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    touch(tmp_path, "cat/1.png", "dog/1.png")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    manifest = read_manifest(tmp_path)
    assert manifest.class_names == ("cat",)
    assert manifest.warnings == ("left out dog: Permission denied",)


def test_a_very_deep_folder(tmp_path):
    path = touch(tmp_path, "cat/1.png") / "cat"
    for _ in range(1500):
        path = path / "d"
        path.mkdir()
    touch(path, "2.png")
    try:
        assert len(read_manifest(tmp_path)) == 2
    finally:  # the tools that tidy up afterwards walk a tree by recursion
        (path / "2.png").unlink()
        while path.name == "d":
            path.rmdir()
            path = path.parent


def test_image_endings_are_what_pillow_opens():
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"} <= image_endings()
    assert not {".pdf", ".txt", ".mp4", ".npy", ".h5", ".eps"} & image_endings()
    assert all(ending in Image.registered_extensions() for ending in image_endings())


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "no image found under {}: it is empty; an ImageFolder holds one folder per class"),
        (["a/notes.txt"], "no image found under {}: it holds 1 other file"),
        (["1.png", "2.png"], "the images of {} lie directly in it, without class folders; .* or give a CSV manifest"),
        (["train/1.png", "test/2.png"], r"the split folders of {} \(test, train\) hold images but no class folders"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, names, told):
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=told.format(tmp_path)) as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=r"there is no .*/nothing; give a folder of class folders, or a .csv"):
        read_manifest(tmp_path / "nothing")
    touch(tmp_path, "notes.txt", "archive.zip")
    for name in ("notes.txt", "archive.zip"):
        with pytest.raises(DatasetError, match=r"is neither a folder of class folders nor a .csv, .tsv or .parquet"):
            read_manifest(tmp_path / name)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("gone", "pipe"):
        with pytest.raises(DatasetError, match="is neither a folder nor a file that can be read"):
            read_manifest(tmp_path / name)


def test_a_relative_path_gives_absolute_uris(tmp_path, monkeypatch):
    touch(tmp_path, "data/cat/1.png")
    monkeypatch.chdir(tmp_path / "data")
    assert read_manifest(Path()).table["uri"].to_pylist() == [str(tmp_path / "data/cat/1.png")]
    assert read_manifest(Path("../data/")).table["uri"].to_pylist() == [str(tmp_path / "data/cat/1.png")]


# labels --------------------------------------------------------------------------------------------------------------


def test_given_class_names_order_the_labels_and_others_are_problems(tmp_path):
    touch(tmp_path, "dog/1.png", "cat/1.png", "catt/1.png", "zzz/1.png")
    manifest = read_manifest(tmp_path, class_names=["dog", "bird", "cat"])
    assert manifest.class_names == ("dog", "bird", "cat")
    assert {name: (row["label"], row["label_name"]) for name, row in rows(manifest).items()} == {
        "cat/1.png": (2, "cat"),
        "catt/1.png": (-1, "catt"),
        "dog/1.png": (0, "dog"),
        "zzz/1.png": (-1, "zzz"),
    }
    assert problems(manifest) == {
        "catt/1.png": "label 'catt' is not one of the 3 classes; the nearest is 'cat'",
        "zzz/1.png": "label 'zzz' is not one of the 3 classes",
    }


def test_numbers_are_positions_unless_they_are_names(tmp_path):
    touch(tmp_path, "2/a.png", "0/a.png", "7/a.png", "x/a.png")
    manifest = read_manifest(tmp_path, class_names=["cat", "dog", "bird"])
    assert {name: (row["label"], row["label_name"]) for name, row in rows(manifest).items()} == {
        "0/a.png": (0, "cat"),
        "2/a.png": (2, "bird"),
        "7/a.png": (-1, "7"),
        "x/a.png": (-1, "x"),
    }
    by_name = read_manifest(tmp_path, class_names=["7", "2", "0"])
    assert {name: row["label"] for name, row in rows(by_name).items()} == {
        "0/a.png": 2, "2/a.png": 1, "7/a.png": 0, "x/a.png": -1,
    }  # fmt: skip


def test_a_name_of_two_classes_is_a_problem(tmp_path):
    touch(tmp_path, "crane/1.png", "cat/1.png")
    manifest = read_manifest(tmp_path, class_names=["crane", "cat", "crane"])
    assert problems(manifest) == {"crane/1.png": "class 'crane' stands for outputs 0, 2; give the label as a number"}


def test_no_known_label_at_all_is_an_error(tmp_path):
    touch(tmp_path, *(f"n{i}/1.png" for i in range(5)))
    with pytest.raises(DatasetError, match=r"no label of .* \(n0, n1, n2, ...\) is one of the 2 classes \(cat, dog\)"):
        read_manifest(tmp_path, class_names=["cat", "dog"])


def test_reading_again_with_its_own_classes_changes_nothing(tmp_path):
    touch(tmp_path, *(f"{i}/1.png" for i in (1, 2, 3, 10)))
    write_csv(tmp_path / "m.csv", "image,label", *(f"{i}/1.png,{i}" for i in (1, 2, 3, 10)))
    for dataset in (tmp_path, tmp_path / "m.csv"):
        first = read_manifest(dataset)
        again = read_manifest(dataset, class_names=first.class_names)
        assert again.table.equals(first.table)
        assert again.fingerprint == first.fingerprint
    assert read_manifest(tmp_path).class_names == ("1", "10", "2", "3")
    assert first.class_names == ("1", "2", "3", "10")


# manifest files ------------------------------------------------------------------------------------------------------


def write_csv(path, *lines, encoding="utf-8"):
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_a_csv_manifest(tmp_path):
    touch(tmp_path, "img/b.png", "img/a b.png", "img/ü,x.png", "img/c.png", "img/d.png")
    path = write_csv(
        tmp_path / "m.csv",
        "Split, LABEL ,width,Image",
        "train, dog ,3,img/b.png",
        'val,"cat, wild",3,"img/ü,x.png"',
        ",NA,3,./img/a b.png",
        f"train,dog,3,{tmp_path}/img/c.png",
        "train,,3,img//d.png",
    )
    manifest = read_manifest(path)
    assert manifest.class_names == ("NA", "cat, wild", "dog")
    assert {name: (row["label"], row["label_name"], row["split"]) for name, row in rows(manifest).items()} == {
        "img/a b.png": (0, "NA", ""),
        "img/b.png": (2, "dog", "train"),
        "img/c.png": (2, "dog", "train"),
        "img/d.png": (-1, "", "train"),
        "img/ü,x.png": (1, "cat, wild", "val"),
    }
    assert problems(manifest) == {"img/d.png": "the manifest gives this image no label"}
    assert manifest.table["uri"].to_pylist() == [str(tmp_path / name) for name in rows(manifest)]
    assert manifest.table.schema.equals(schema.MANIFEST)


@pytest.mark.parametrize("image", ["image", "path", "file", "filename", "image_id", "uri"])
@pytest.mark.parametrize("label", ["label", "class", "label_name"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "semicolon", "bom", "parquet"])
def test_columns_and_dialects(tmp_path, image, label, ending):
    touch(tmp_path, "a.png", "b.png")
    path = tmp_path / f"m.{ending if ending in ('csv', 'tsv', 'parquet') else 'csv'}"
    if ending == "parquet":
        pq.write_table(pa.table({image: ["a.png", "b.png"], label: ["dog", "cat"], "more": [1, 2]}), path)
    else:
        mark = {"tsv": "\t", "semicolon": ";"}.get(ending, ",")
        lines = [mark.join(line) for line in ((image, label), ("a.png", "dog"), ("b.png", "cat"))]
        write_csv(path, *lines, encoding="utf-8-sig" if ending == "bom" else "utf-8")
    assert labels(read_manifest(path)) == {"a.png": "dog", "b.png": "cat"}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2, 0, None], pa.int64()),
        pa.array([2, 0, None], pa.uint8()),
        pa.array([2.0, 0.0, None], pa.float64()),
        pa.array(["2", "0", None]),
        pa.array([" 2", "0 ", ""], pa.large_string()),
        pa.array(["2", "0", None]).dictionary_encode(),
        pa.array(["2", "0", None], pa.string_view()),
    ],
)
def test_label_types_of_parquet(tmp_path, column):
    touch(tmp_path, "a.png", "b.png", "c.png")
    pq.write_table(pa.table({"image": ["a.png", "b.png", "c.png"], "label": column}), tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet", class_names=["x", "y", "z"])
    assert manifest.table["label"].to_pylist() == [2, 0, -1]
    assert manifest.table["label_name"].to_pylist() == ["z", "x", ""]
    assert read_manifest(tmp_path / "m.parquet").class_names == ("0", "2")


def test_labels_of_manifests_that_are_no_class(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(5)))
    path = write_csv(tmp_path / "m.csv", "image,label", "0.png,0", "1.png,1", "2.png,2", "3.png,-1", "4.png,dgo")
    manifest = read_manifest(path, class_names=["cat", "dog"])
    assert manifest.table["label"].to_pylist() == [0, 1, -1, -1, -1]
    assert manifest.table["label_name"].to_pylist() == ["cat", "dog", "2", "-1", "dgo"]
    assert problems(manifest) == {
        "2.png": "label '2' is not one of the 2 classes",
        "3.png": "label '-1' is not one of the 2 classes",
        "4.png": "label 'dgo' is not one of the 2 classes; the nearest is 'dog'",
    }
    alone = read_manifest(write_csv(tmp_path / "n.csv", "image,label", "0.png,3", "1.png,11", "3.png,-1"))
    assert alone.class_names == ("3", "11")
    assert alone.table["label"].to_pylist() == [0, 1, -1]


def test_paths_of_manifests_are_never_trusted(tmp_path):
    touch(tmp_path, "data/in.png", "data/sub/x.png", "secret.png", "data-not/x.png", "data/win/dows.png")
    os.mkfifo(tmp_path / "data" / "pipe.png")
    secret = tmp_path / "secret.png"
    outside = "an absolute path outside the manifest's folder"
    leads_out = "the path leads out of the manifest's folder"
    expected = {
        "in.png": None,
        "sub/../sub/./x.png": None,
        str(tmp_path / "data" / ".." / "data" / "sub" / "y.png"): leads_out,
        r"win\dows.png": None,
        "../secret.png": leads_out,
        "sub/../../secret2.png": leads_out,
        "..": leads_out,
        r"..\secret3.png": leads_out,
        str(secret): outside,
        str(tmp_path / "data-not/x.png"): outside,
        "/etc/passwd": outside,
        "http://example.com/x.png": "a web address; only files beside the manifest are read",
        "file:///etc/passwd": "a web address; only files beside the manifest are read",
        "gone.png": "no such file",
        "sub": "not a regular file",
        "pipe.png": "not a regular file",
        "in.png/x.png": "Not a directory",
        "a\0b.png": "the path holds a NUL character",
        "x" * 300 + ".png": "File name too long",
        "": "the manifest names no image here",
    }
    pq.write_table(pa.table({"image": list(expected), "label": ["x"] * len(expected)}), tmp_path / "data" / "m.parquet")
    manifest = read_manifest(tmp_path / "data" / "m.parquet")
    assert len(manifest) == len(expected)
    good = {image_id for image_id in rows(manifest) if image_id not in problems(manifest)}
    assert good == {"in.png", "sub/x.png", "win/dows.png"}
    assert all(rows(manifest)[image_id]["uri"] == str(tmp_path / "data" / image_id) for image_id in good)
    assert sorted(problems(manifest).values()) == sorted(filter(None, expected.values()))
    assert problems(manifest)[f"(row {len(expected)})"] == "the manifest names no image here"
    assert problems(manifest)["/etc/passwd"] == outside


def test_links_of_manifests_never_lead_out(tmp_path):
    touch(tmp_path, "data/in.png", "data/sub/x.png", "elsewhere/y.png", "data2/z.png")
    data = tmp_path / "data"
    (data / "out.png").symlink_to(tmp_path / "elsewhere" / "y.png")
    (data / "beside.png").symlink_to(tmp_path / "data2" / "z.png")
    (data / "folder").symlink_to(tmp_path / "elsewhere")
    (data / "gone.png").symlink_to(data / "nothing.png")
    (data / "within.png").symlink_to(data / "sub" / "x.png")
    (data / "inner").symlink_to(data / "sub")
    leads_out = "a link leads out of the manifest's folder; put the manifest above what it names"
    expected = {
        "in.png": None,
        "within.png": None,
        "inner/x.png": None,
        "out.png": leads_out,
        "beside.png": leads_out,
        "folder/y.png": leads_out,
        "folder/nothing.png": leads_out,  # what is there is told of nothing outside
        "gone.png": "no such file",
    }
    (tmp_path / "link").symlink_to(data)
    write_csv(data / "m.csv", "image,label", *(f"{name},x" for name in expected))
    for folder in ("data", "link"):
        manifest = read_manifest(tmp_path / folder / "m.csv")
        assert problems(manifest) == {name: problem for name, problem in expected.items() if problem}
        assert rows(manifest)["within.png"]["uri"] == str(tmp_path / folder / "within.png")


def test_absolute_paths_through_a_link_to_the_folder(tmp_path):
    touch(tmp_path, "real/a.png", "real/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = write_csv(tmp_path / "real/m.csv", "image,label", f"{tmp_path}/real/a.png,x", f"{tmp_path}/link/b.png,x")
    assert labels(read_manifest(tmp_path / "link" / "m.csv")) == {"a.png": "x", "b.png": "x"}
    assert list(problems(read_manifest(path))) == [f"{tmp_path}/link/b.png"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            ["picture,label", "a.png,x"],
            r"has no column of image paths; name one 'image' \(its columns: picture, label\)",
        ),
        (["image,kind", "a.png,x"], r"has no column of labels; name one 'label' \(its columns: image, kind\)"),
        ([""], r"has no column of image paths; name one 'image' \(its columns: none\)"),
        (["image,label,label", "a.png,x,y"], "has 2 columns 'label'; keep one"),
        (["image,Label,label", "a.png,x,y"], "has 2 columns 'Label'; keep one"),
        (["Image,label,image", "a.png,x,b.png"], "has 2 columns 'Image'; keep one"),
        (["image,label," + "x" * 200_000, "a.png,x,"], "is not valid CSV: field larger than field limit"),
        (["image,label"], "names no image; it needs one row per image"),
        (["image,label", "a.png,x", "b.png,x,y"], "is not valid CSV: .*Expected 2 columns, got 3"),
        (["image,label", "a.png,x", "b.png,x", "./a.png,y"], r"names images more than once \(1: a.png\); .*remove"),
        (["image,label", "a.png,", "b.png,"], "gives no image a label; fill its label column"),
        (["image,label", "a.png,-1", "b.png,-1"], "gives no image a label; fill its label column"),
        (
            ["image,label", "x/a.png,x", "x/b.png,x"],
            r"none of the 2 images in .* \(x/a.png: no such file\); paths start",
        ),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, lines, told):
    touch(tmp_path, "a.png", "b.png")
    with pytest.raises(DatasetError, match=told) as error:
        read_manifest(write_csv(tmp_path / "m.csv", *lines))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("blank", [[""], ["", "   "], ["\t"]])
def test_blank_lines_above_the_header_are_skipped(tmp_path, blank):
    touch(tmp_path, "a.png")
    for encoding in ("utf-8", "utf-8-sig"):
        path = write_csv(tmp_path / "m.csv", *blank, "image,label", "a.png,x", encoding=encoding)
        assert labels(read_manifest(path)) == {"a.png": "x"}


def test_files_that_are_no_manifests(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "latin.csv").write_bytes("image,label\na.png,é\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"UTF-?8"):
        read_manifest(tmp_path / "latin.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"UTF-?8"):
        read_manifest(tmp_path / "picture.csv")
    touch(tmp_path, "m.parquet")
    with pytest.raises(DatasetError, match="is not a readable Parquet file"):
        read_manifest(tmp_path / "m.parquet")
    images = pa.array([{"bytes": b"x", "path": "a.png"}])
    pq.write_table(pa.table({"image": images, "label": [1]}), tmp_path / "hub.parquet")
    with pytest.raises(DatasetError, match=r"column 'image' of .* holds struct<.*it must hold text or whole numbers"):
        read_manifest(tmp_path / "hub.parquet")
    pq.write_table(pa.table({"image": ["a.png"], "label": [0.5]}), tmp_path / "half.parquet")
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array(["é.png".encode("latin-1")]).buffers())
    for name, columns in (("image", [latin, pa.array(["x"])]), ("label", [pa.array(["a.png"]), latin])):
        for kind in ("plain", "dictionary"):
            held = [column.dictionary_encode() if kind == "dictionary" else column for column in columns]
            pq.write_table(pa.table(held, names=["image", "label"]), tmp_path / "latin.parquet")
            with pytest.raises(DatasetError, match=rf"column '{name}' of .*/latin\.parquet is not text .*UTF8"):
                read_manifest(tmp_path / "latin.parquet")
    twice = pa.table([pa.array(["a.png"]), pa.array(["x"]), pa.array(["y"])], names=["image", "label", "label"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DatasetError, match="has 2 columns 'label'; keep one"):
        read_manifest(tmp_path / "twice.parquet")
    with pytest.raises(DatasetError, match=r"column 'label' of .* is not text or whole numbers"):
        read_manifest(tmp_path / "half.parquet")


# shards and fingerprint ----------------------------------------------------------------------------------------------


@given(count=st.integers(1, 60), size=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_shards_are_even_and_hold_every_image_once(tmp_path_factory, count, size):
    root = tmp_path_factory.mktemp("shards")
    touch(root, *(f"c/{i}.png" for i in range(count)))
    manifest = read_manifest(root, shard_size=size)
    shards = manifest.shards()
    lengths = [shard.rows.num_rows for shard in shards]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(shards) == -(-count // size)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert pa.concat_tables([shard.rows for shard in shards]).select(schema.MANIFEST.names).equals(manifest.table)
    for shard in shards:
        assert set(shard.rows["shard"].to_pylist()) == {shard.index}
        assert set(shard.rows["fold"].to_pylist()) == {-1}


def test_shards_carry_problems_and_folds(tmp_path):
    touch(tmp_path, *(f"c/{i}.png" for i in range(5)))
    os.mkfifo(tmp_path / "c" / "5.png")
    first, second = read_manifest(tmp_path, shard_size=4).shards(np.array([2, 0, 1, 2, 0, 1]))
    assert first.rows.schema.names == [*schema.MANIFEST.names, "problem", "fold"]
    assert first.rows.schema.field("fold").type == pa.int16()
    assert first.rows["fold"].to_pylist() == [2, 0, 1]
    assert second.rows["fold"].to_pylist() == [2, 0, 1]
    assert second.rows["problem"].to_pylist() == [None, None, "not a regular file"]


def test_the_fingerprint_is_of_ids_labels_sizes_and_times(tmp_path):
    touch(tmp_path, "a/1.png", "b/1.png")
    for path in tmp_path.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    seen = [read_manifest(tmp_path).fingerprint]
    assert read_manifest(tmp_path, shard_size=1).fingerprint == seen[0]
    seen.append(read_manifest(tmp_path, class_names=["b", "a"]).fingerprint)
    (tmp_path / "a/1.png").write_bytes(b"longer than it was")
    os.utime(tmp_path / "a/1.png", ns=(10**18, 10**18))
    seen.append(read_manifest(tmp_path).fingerprint)
    os.utime(tmp_path / "a/1.png", ns=(10**18, 10**18 + 1))
    seen.append(read_manifest(tmp_path).fingerprint)
    (tmp_path / "a/1.png").rename(tmp_path / "a/2.png")
    seen.append(read_manifest(tmp_path).fingerprint)
    (tmp_path / "a/2.png").rename(tmp_path / "b/2.png")
    seen.append(read_manifest(tmp_path).fingerprint)
    assert len(set(seen)) == len(seen)
    assert all(len(fingerprint) == 64 for fingerprint in seen)


def test_a_shard_is_small_when_it_travels(tmp_path):
    """A slice of a table may drag the whole table along when it is pickled."""
    touch(tmp_path, *(f"c/{i:05d}.png" for i in range(2000)))
    shards = read_manifest(tmp_path, shard_size=100).shards()
    copy = pickle.loads(pickle.dumps(shards[3]))
    assert copy.rows.equals(shards[3].rows)
    assert len(pickle.dumps(shards[3])) < 5 * sum(len(pickle.dumps(shard)) for shard in shards) / len(shards)


@given(st.lists(st.tuples(st.integers(0, 3), st.text("ab/.", min_size=1, max_size=4)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_manifest_rows_against_a_slow_reader(tmp_path_factory, written):
    """Any mix of strange paths: each file that lies inside is found under its own name, and nothing else is."""
    root = tmp_path_factory.mktemp("paths")
    touch(root, "a", "b", "sub/aa", "sub/ab")
    expected = {}
    for label, text in written:
        path = os.path.normpath(text) if not text.startswith("/") else text
        if path in expected:
            continue
        inside = not text.startswith("/") and path.split("/")[0] != ".."
        expected[path] = (text, str(label), inside and (root / text).is_file())
    normal = {os.path.normpath(text) for text, _, _ in expected.values()}
    if len(normal) < len(expected) or not any(good for _, _, good in expected.values()):
        return
    table = {"image": [row[0] for row in expected.values()], "label": [row[1] for row in expected.values()]}
    pq.write_table(pa.table(table), root / "m.parquet")
    manifest = read_manifest(root / "m.parquet")
    bad = problems(manifest)
    good = {image_id: row["label_name"] for image_id, row in rows(manifest).items() if image_id not in bad}
    assert good == {path: label for path, (_, label, is_good) in expected.items() if is_good}
    assert len(manifest) == len(expected)


@pytest.mark.slow
def test_a_large_manifest_is_read_in_seconds(tmp_path):
    count = 200_000
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(0, count, 1000):
        (folder / f"{i:06d}.png").touch()
    lines = [f"images/{i:06d}.png,class{i % 1000},train" for i in range(count)]
    path = write_csv(tmp_path / "m.csv", "image,label,split", *lines)
    start = time.perf_counter()
    manifest = read_manifest(path)
    seconds = time.perf_counter() - start
    assert len(manifest) == count
    assert manifest.problem.null_count == count // 1000
    assert seconds < 10


# class names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.txt", "dog\ncat\n", ("dog", "cat")),
        ("c.txt", "\ufeffdog\r\n red fox \r\n\r\n\r\n", ("dog", "red fox")),
        ("c.names", "crane\ncat\ncrane", ("crane", "cat", "crane")),
        ("c.json", '["dog", "cat"]', ("dog", "cat")),
        ("c.txt", '["dog", "cat"]', ("dog", "cat")),
        ("c.json", json.dumps({"names": ["dog", "é"], "wnids": []}), ("dog", "é")),
    ],
)
def test_class_names(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("c.txt", b"", "holds no class name; write one per line"),
        ("c.txt", b"\n \n", "holds no class name"),
        ("c.txt", b"dog\n\ncat\n", "class name 2 in .* is empty"),
        ("c.txt", b"caf\xe9\n", "are not UTF-8 text"),
        ("c.json", b"[1, 2]", 'must hold a JSON list of names, or an object with "names"'),
        ("c.json", b'{"classes": []}', "must hold a JSON list of names"),
        ("c.json", b"[", "are not valid JSON"),
        ("c.json", b"[]", "holds no class name"),
    ],
)
def test_class_names_that_cannot_be_used(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=told) as error:
        read_class_names(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match=r"cannot read the class names in .*: No such file or directory"):
        read_class_names(tmp_path / "none.txt")


@pytest.mark.parametrize("sign", [";", "|", ",", " ", "; "])
def test_several_labels_in_a_cell_are_refused(tmp_path, sign):
    touch(tmp_path, *(f"{at}.png" for at in range(7)))
    cells = ["cat", "dog", "owl", f"cat{sign}dog", f"owl{sign}cat", f"dog{sign}owl{sign}cat", "cat"]
    pd.DataFrame({"image": [f"{at}.png" for at in range(7)], "label": cells}).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(
        DatasetError, match=r"holds several labels in one cell .*; several labels per image are not"
    ) as it:
        read_manifest(tmp_path / "m.csv")
    assert "\n" not in str(it.value)


def test_lists_of_labels_are_refused(tmp_path):
    touch(tmp_path, "a.png")
    pq.write_table(pa.table({"image": ["a.png"], "label": [["cat", "dog"]]}), tmp_path / "m.parquet")
    with pytest.raises(
        DatasetError, match=r"column 'label' of .* holds lists; several labels per image are not supported"
    ):
        read_manifest(tmp_path / "m.parquet")


def test_class_names_may_hold_commas_and_spaces(tmp_path):
    touch(tmp_path, *(f"{at}.png" for at in range(6)))
    cells = ["tench, Tinca tinca", "sea lion", "lion", "sea", "Cardigan, Welsh corgi", "hot dog"]
    pd.DataFrame({"image": [f"{at}.png" for at in range(6)], "label": cells}).to_csv(tmp_path / "m.csv", index=False)
    assert len(read_manifest(tmp_path / "m.csv").class_names) == 6
