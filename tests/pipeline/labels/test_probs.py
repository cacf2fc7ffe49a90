"""The user's own probabilities: every layout is understood, every fault is named in one line."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ProbabilitiesError
from pipeline.labels import probs
from pipeline.labels.probs import read_probabilities, stream_probabilities

NAMES = ["St. Bernard", "cat, black", "löwe"]
IDS = [f"folder {i % 3}/бild {i}.png" for i in range(40)]
PROBS = np.random.default_rng(0).dirichlet(np.ones(3), 40)
ORDER = np.random.default_rng(1).permutation(40)  # the file's rows come in another order than the manifest's


def frame(columns, order=ORDER):
    return pd.DataFrame({"image_id": [IDS[i] for i in order], "extra": 1.5, **columns})


def listed(values=PROBS, order=ORDER):
    return frame({"probs": [list(values[i]) for i in order]}, order)


def as_json(values=PROBS):
    return frame({"probs": [json.dumps(list(values[i])) for i in ORDER]})


def by_column(names):
    return frame({name: PROBS[ORDER, k] for k, name in reversed(list(enumerate(names)))})


def write(table, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


def refused(path, ids=IDS, names=NAMES):
    with pytest.raises(ProbabilitiesError) as caught:
        read_probabilities(path, ids, names)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


LAYOUTS = {
    "list.parquet": listed(),
    "json.csv": as_json(),
    "json.parquet": as_json(),
    **{f"{columns[0]}.{kind}": by_column(columns)
       for columns in (NAMES, ["p_0", "p_1", "p_2"], ["prob_0", "prob_1", "prob_2"]) for kind in ("csv", "parquet")},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_comes_out_in_manifest_and_class_order(tmp_path, name):
    found = read_probabilities(write(LAYOUTS[name], tmp_path / name), IDS, NAMES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, PROBS, atol=1e-7)


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.list_(pa.float32(), 3), pa.large_list(pa.float64())])
def test_all_kinds_of_lists(tmp_path, kind):
    values = pa.array([[np.float16(p) for p in row] for row in PROBS] if "half" in str(kind) else PROBS.tolist(), kind)
    pq.write_table(pa.table({"image_id": IDS, "probs": values}), tmp_path / "probs.parquet")
    np.testing.assert_allclose(read_probabilities(tmp_path / "probs.parquet", IDS, NAMES), PROBS, atol=5e-4)


def test_ids_may_be_dictionary_encoded_and_files_have_any_ending(tmp_path):
    table = pa.table({"image_id": pa.array(IDS).dictionary_encode(), "probs": PROBS.tolist()})
    pq.write_table(table, tmp_path / "no ending")
    np.testing.assert_allclose(read_probabilities(tmp_path / "no ending", IDS, NAMES), PROBS, atol=1e-7)


def test_csv_with_byte_order_mark_and_ids_that_look_like_numbers(tmp_path):
    path = tmp_path / "probs.csv"
    path.write_text("image_id,p_0,p_1\n007,1,0\nNA,0.25,0.75\n", encoding="utf-8-sig")
    assert read_probabilities(path, ["NA", "007"], ["a", "b"]).tolist() == [[0.25, 0.75], [1, 0]]


def test_many_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(probs, "_BATCH_ROWS", 7)
    path = write(listed(), tmp_path / "probs.parquet")
    np.testing.assert_allclose(read_probabilities(path, IDS, NAMES), PROBS, atol=1e-7)
    twice = pd.concat([listed(), listed(order=ORDER[:1])])  # the copy is in another batch than its original
    assert "is there more than once" in refused(write(twice, tmp_path / "twice.parquet"))


def test_a_class_may_be_called_probs(tmp_path):
    path = tmp_path / "probs.csv"
    path.write_text("image_id,probs,rest\na,0.25,0.75\n")
    assert read_probabilities(path, ["a"], ["probs", "rest"]).tolist() == [[0.25, 0.75]]
    path.write_text("image_id,probs\na,1\n")
    assert read_probabilities(path, ["a"], ["probs"]).tolist() == [[1]]
    single = write(pd.DataFrame({"image_id": ["a"], "probs": [[1.0]]}), tmp_path / "one.parquet")
    assert read_probabilities(single, ["a"], ["only"]).tolist() == [[1]]


def test_rounded_numbers_are_taken_as_they_stand(tmp_path):
    path = tmp_path / "probs.csv"
    path.write_text("image_id,p_0,p_1,p_2\na,0.333,0.333,0.333\nb,1.0004,0,0\n")
    found = read_probabilities(path, ["a", "b"], NAMES)
    np.testing.assert_array_equal(found, np.array([[0.333] * 3, [1, 0, 0]], np.float32))


def test_unreadable_images_may_be_left_out(tmp_path):
    path = write(listed(order=ORDER[2:]), tmp_path / "probs.parquet")
    lost = [IDS[i] for i in ORDER[:2]]
    asked: list[list[str]] = []
    found = read_probabilities(path, IDS, NAMES, excuse=lambda absent: asked.append(absent) or lost)
    assert asked == [sorted(lost, key=IDS.index)]
    assert np.isnan(found[ORDER[:2]]).all()
    np.testing.assert_allclose(found[ORDER[2:]], PROBS[ORDER[2:]], atol=1e-7)
    with pytest.raises(ProbabilitiesError, match=rf"1 of 40 images have no row: {lost[1]} \("):
        read_probabilities(path, IDS, NAMES, excuse=lambda absent: lost[:1])


FAULTS = {
    "logits": (np.log(PROBS) - 1, "that sum to -.*: these look like logits; apply softmax first"),
    "large logits": (PROBS * 20 + 3, "these look like logits"),
    "percentages": (PROBS * 100, "these are percentages; divide them by 100"),
    "negative": (PROBS + [[0.5, 0.5, -1]] * (np.arange(40) == 9)[:, None], "outside \\[0, 1\\]"),
    "not a number": (np.where(np.arange(40)[:, None] == 9, np.nan, PROBS), "missing or not finite"),
    "infinite": (np.where(np.arange(40)[:, None] == 9, np.inf, PROBS), "missing or not finite"),
    "sum": (np.where(np.arange(40)[:, None] == 9, PROBS * 0.98, PROBS), "sums to 0.98, not 1"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_are_no_distributions(tmp_path, fault, kind):
    values, expected = FAULTS[fault]
    table = as_json(values) if kind == "csv" else listed(values)
    message = refused(write(table, tmp_path / f"probs.{kind}"))
    assert re.search(expected, message), message
    if fault in ("negative", "not a number", "infinite", "sum"):
        assert f"{IDS[9]} " in message


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_of_the_wrong_width(tmp_path, kind):
    table = as_json(PROBS) if kind == "csv" else listed()
    message = refused(write(table, tmp_path / f"probs.{kind}"), names=["a", "b"])
    assert message.endswith(f"{IDS[ORDER[0]]} has 3 probabilities, the dataset has 2 classes")


def test_columns_that_do_not_fit_the_classes(tmp_path):
    numbered = write(by_column(["p_0", "p_1", "p_2"]), tmp_path / "numbered.csv")
    message = refused(numbered, names=["a", "b", "c", "d"])
    assert "3 columns p_0 ... do not fit the dataset's 4 classes (expected p_0 to p_3)" in message
    named = write(by_column(NAMES), tmp_path / "named.parquet")
    assert "no column for 1 of 4 classes: dog" in refused(named, names=[*NAMES, "dog"])
    assert "no probabilities; expected a list column probs" in refused(named, names=["dog", "eel"])
    nameless = write(by_column(NAMES).rename(columns={"image_id": "file"}), tmp_path / "nameless.csv")
    assert "no column image_id; it has file, extra, löwe and 2 more" in refused(nameless)


def test_ids_that_do_not_match(tmp_path):
    path = write(listed(), tmp_path / "probs.parquet")
    message = refused(path, ids=[*IDS[:-5], "new 1", "new 2", "new 3", "new 4"])
    unknown = [IDS[i] for i in ORDER if i >= 35][:3]
    assert "4 of 39 images have no row: new 1, new 2, new 3 and 1 more; " in message
    assert f"5 rows name no image of the dataset: {', '.join(unknown)} and 2 more (image_id is the path" in message


def test_same_image_twice(tmp_path):
    path = write(pd.concat([listed(), listed(order=[7])]), tmp_path / "probs.parquet")
    assert refused(path).endswith(f"{IDS[7]} is there more than once")


def test_holes(tmp_path):
    without_id, without_list = listed(), listed()
    without_id.loc[3, "image_id"] = None
    without_list.at[3, "probs"] = None
    assert "a row has no image_id" in refused(write(without_id, tmp_path / "a.parquet"))
    assert f"{IDS[ORDER[3]]} has 0 probabilities" in refused(write(without_list, tmp_path / "b.parquet"))
    (tmp_path / "c.csv").write_text("image_id,p_0,p_1\na,0.5,\n")
    assert "a has a missing or not finite probability" in refused(tmp_path / "c.csv", ["a"], ["x", "y"])


def test_lists_that_are_no_numbers(tmp_path):
    printed = frame({"probs": [str(PROBS[i]) for i in ORDER]})
    assert "not a JSON list such as [0.1, 0.9]" in refused(write(printed, tmp_path / "printed.csv"))
    words = frame({"probs": [["a", "b", "c"] for _ in ORDER]})
    assert "Failed to parse string" in refused(write(words, tmp_path / "words.parquet"))
    single = frame({"probs": PROBS[ORDER, 0]})
    assert "column probs holds double, not lists of numbers" in refused(write(single, tmp_path / "single.parquet"))


@pytest.mark.parametrize(
    "text",
    ['{"0": 0.9, "1": 0.1}', '"01"', "[true, false]", '["0.9", "0.1"]', f"[{'9' * 400}, 0]", "[" * 100_000, "0.5"],
)
def test_only_a_json_list_of_numbers_is_probabilities(tmp_path, text):
    path = write(pd.DataFrame({"image_id": ["a"], "probs": [text]}), tmp_path / "probs.csv")
    message = refused(path, ["a"], ["x", "y"])
    assert message.endswith("not a JSON list such as [0.1, 0.9]")
    assert "probs of a is" in message


def test_a_column_that_is_there_twice_is_no_guess(tmp_path):
    path = tmp_path / "probs.csv"
    path.write_text("image_id,x,y,y\na,1,0,0.5\n")
    assert refused(path, ["a"], ["x", "y"]).endswith("has 2 columns y; keep one")
    path.write_text("image_id,x,y,more,more\na,1,0,3,4\n")  # nobody reads these
    assert read_probabilities(path, ["a"], ["x", "y"]).tolist() == [[1, 0]]
    columns = [pa.array(["a"]), pa.array([1.0]), pa.array([0.0]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["image_id", "x", "y", "image_id"]), tmp_path / "probs.parquet")
    assert refused(tmp_path / "probs.parquet", ["a"], ["x", "y"]).endswith("has 2 columns image_id; keep one")


@pytest.mark.parametrize("blank", ["\n\n", "   \n", "\r\n \r\n", ",,\n\n"])
def test_blank_lines_above_the_header_are_skipped(tmp_path, blank):
    path = tmp_path / "probs.csv"
    path.write_text(f"{blank}image_id,x,y\na,1,0\n", encoding="utf-8-sig", newline="")
    assert read_probabilities(path, ["a"], ["x", "y"]).tolist() == [[1, 0]]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "wide.csv").write_text(f"image_id,{'x' * 200_000}\n")
    assert "field larger than field limit" in refused(tmp_path / "wide.csv")
    assert "No such file" in refused(tmp_path / "absent.csv")
    assert "Is a directory" in refused(tmp_path)
    (tmp_path / "empty.csv").write_bytes(b"")
    assert "no column image_id; it has no columns" in refused(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    assert "cannot read" in refused(tmp_path / "binary.csv")
    whole = write(listed(), tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cannot read" in refused(tmp_path / "half.parquet")
    (tmp_path / "ragged.csv").write_text("image_id,p_0,p_1\na,0.5,0.5\nb,1\n")
    assert "cannot read" in refused(tmp_path / "ragged.csv", ["a", "b"], ["x", "y"])
    (tmp_path / "words.csv").write_text("image_id,p_0,p_1\na,half,half\n")
    assert "cannot read" in refused(tmp_path / "words.csv", ["a"], ["x", "y"])


def test_several_rows_at_fault_are_named_three_of_them(tmp_path):
    values = PROBS.copy()
    values[ORDER[5:12]] = 0.5
    message = refused(write(listed(values), tmp_path / "p.parquet"))
    assert "sums to 1.5, not 1" in message
    named = [IDS[at] for at in ORDER[5:12]]
    assert f"{named[0]} sums to" in message
    assert message.endswith(f"; wrong too: {', '.join(named[1:4])} and 3 more")
    twice = pd.concat([listed(), listed().iloc[:2]])
    assert "is there more than once" in refused(write(twice, tmp_path / "twice.parquet"))


def test_a_large_file_is_never_whole_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(probs, "_BATCH_VALUES", 1 << 16)
    path, count, width = tmp_path / "large.parquet", 4000, 500
    ids = [f"{at:05}" for at in range(count)]
    with pq.ParquetWriter(path, pa.schema({"image_id": pa.string(), "probs": pa.list_(pa.float32())})) as writer:
        rng = np.random.default_rng(0)
        for start in range(0, count, 250):
            rows = rng.dirichlet(np.ones(width), 250).astype(np.float32)
            writer.write_table(pa.table([ids[start : start + 250], list(rows)], schema=writer.schema))
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    for place, values in stream_probabilities(path, ids, [f"c{at}" for at in range(width)]):
        most, seen = max(most, pa.total_allocated_bytes() - before), seen + len(place)
        assert values.shape == (len(place), width)
    assert seen == count
    assert most < count * width * 4 / 2
