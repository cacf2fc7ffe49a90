import hashlib
import os
from math import ceil, floor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from pipeline import schema
from pipeline.dataset.images import DecodedShard, ImageError, decode_image, decode_shard, load_original
from pipeline.dataset.manifest import Shard
from pipeline.geometry import InputSpec, Region, original_box, original_mask, original_points, seen_region
from tests.pipeline.pictures import FILES, block, encoded, rotated, with_broken_exif

SPEC = InputSpec(size=32, resize=36)


def check_inside(places: np.ndarray, start: int, stop: int, step: float, length: int) -> None:
    """Points lie in the block; at the image's border, where the filter is cut off, within half a network pixel."""
    slack = floor(step / 2 + 1)
    assert places.min() >= start - (slack if start < 2 * step else 0)
    assert places.max() < stop + (slack if stop > length - 2 * step else 0)


def check_block(data: bytes, width: int, height: int, box: tuple[int, int, int, int], spec: InputSpec) -> None:
    """Find a bright block in what the network sees, map it back, and hit the block: points inside it, edges close."""
    image = decode_image(data, spec)
    assert (image.width, image.height) == (width, height)
    assert image.pixels.shape == (spec.size, spec.size, 3)
    assert image.pixels.dtype == np.uint8
    region = seen_region(width, height, spec)
    bright = image.pixels.min(2) >= 133  # over one half: the resampled edge of a block is at one half
    row, col = bright.nonzero()
    assert len(row) > 0
    points = original_points(region, row, col, np.full(len(row), 1 / len(row)))
    x0, y0, x1, y1 = box
    check_inside(points.x, x0, x1, region.step_x, width)
    check_inside(points.y, y0, y1, region.step_y, height)
    found = original_box(region, (col.min(), row.min(), col.max() + 1, row.max() + 1))
    seen = np.clip(box, [region.left, region.top] * 2, [region.right, region.bottom] * 2)
    step = max(region.step_x, region.step_y)
    assert np.abs(np.array(found) - seen).max() <= step + 0.05 * max(1, step)  # 133 is 0.02 of a ramp above one half
    mask = original_mask(region, bright)
    ys, xs = mask.nonzero()
    assert mask.shape == (height, width)
    assert xs.min() >= x0 - region.step_x - 1
    assert xs.max() + 1 <= x1 + region.step_x + 1
    assert ys.min() >= y0 - region.step_y - 1
    assert ys.max() + 1 <= y1 + region.step_y + 1


def block_in(region: Region, draw: st.DataObject) -> tuple[int, int, int, int]:
    """A block around a pixel that the network sees, four network pixels wide and high where the image allows."""

    def side(start: float, stop: float, step: float, length: int) -> tuple[int, int]:
        middle = draw.draw(st.integers(floor(start), ceil(stop) - 1))
        half = 2 * ceil(step) + draw.draw(st.integers(0, 10))
        return max(0, middle - half), min(length, middle + half + 1)

    x0, x1 = side(region.left, region.right, region.step_x, region.width)
    y0, y1 = side(region.top, region.bottom, region.step_y, region.height)
    return x0, y0, x1, y1


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.builds(
        InputSpec,
        size=st.integers(4, 48),
        fit=st.sampled_from(["crop", "squash"]),
        resize=st.one_of(st.none(), st.integers(4, 64)),
    ),
    st.data(),
)
def test_a_bright_block_is_found_where_it_was_painted(
    width: int, height: int, spec: InputSpec, data: st.DataObject
) -> None:
    box = block_in(seen_region(width, height, spec), data)
    check_block(encoded(Image.fromarray(block(width, height, box))), width, height, box, spec)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (101, 67, (40, 20, 59, 41)),
        (67, 101, (20, 45, 41, 59)),
        (1, 1, (0, 0, 1, 1)),
        (2, 1, (1, 0, 2, 1)),
        (3, 5, (1, 2, 2, 3)),
        (10_000, 3, (5_000, 0, 10_000, 3)),
        (3, 10_000, (0, 0, 3, 5_000)),
        (10_000, 1, (0, 0, 10_000, 1)),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_odd_and_extreme_shapes(width: int, height: int, box: tuple[int, int, int, int], fit: str) -> None:
    spec = InputSpec(size=224, resize=256, fit=fit)
    check_block(encoded(Image.fromarray(block(width, height, box))), width, height, box, spec)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("width", "height"), [(97, 64), (64, 97)])
def test_a_block_in_every_kind_of_file(name: str, width: int, height: int) -> None:
    box = (32, 24, 48, 48)
    check_block(FILES[name](block(width, height, box)), width, height, box, SPEC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_block_under_every_exif_rotation(orientation: int, kind: str) -> None:
    box = (40, 16, 64, 32)
    check_block(rotated(block(96, 64, box), orientation, kind), 96, 64, box, SPEC)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(0, 24), st.integers(0, 2**32 - 1))
def test_pixels_are_torchvisions(width: int, height: int, size: int, more: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    expected = np.asarray(Compose([Resize(size + more), CenterCrop(size)])(picture)).astype(int)
    found = decode_image(encoded(picture), InputSpec(size=size, resize=size + more)).pixels.astype(int)
    assert np.abs(found - expected).max() <= 2  # each of Pillow's two passes rounds its weights


def test_squashed_pixels_are_torchvisions() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 140, 3), dtype=np.uint8)
    expected = np.asarray(Resize((48, 48))(Image.fromarray(noise)))
    found = decode_image(encoded(Image.fromarray(noise)), InputSpec(size=48, fit="squash"))
    assert np.array_equal(found.pixels, expected)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(noise)), InputSpec(size=32)).pixels, noise)


def shard_of(paths: list[Path], problems: list[str | None] | None = None) -> Shard:
    count = len(paths)
    values = {
        "image_id": [path.name for path in paths],
        "uri": [str(path) for path in paths],
        "label": [0] * count,
        "label_name": ["cat"] * count,
        "split": [""] * count,
        "shard": [7] * count,
    }
    rows = pa.table(values, schema=schema.MANIFEST)
    rows = rows.append_column("problem", pa.array(problems or [None] * count, pa.string()))
    return Shard(7, rows.append_column("fold", pa.array([2] * count, pa.int16())))


def rows_of(decoded: DecodedShard) -> dict[str, dict[str, object]]:
    return {row["image_id"]: row for row in decoded.rows.to_pylist()}


def test_bad_files_are_rows_and_good_ones_are_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    jpeg = encoded(Image.fromarray(noise), "JPEG")
    contents = {
        "good.jpg": jpeg,
        "größe 1.png": encoded(Image.fromarray(noise)),
        "empty.jpg": b"",
        "text.jpg": b"not a picture",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "odd exif.jpg": with_broken_exif(Image.fromarray(noise)),
        "outside.jpg": jpeg,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [*contents, "gone.jpg", "folder.jpg", "pipe.jpg", "a\0b.jpg"]
    problems = ["the path leaves the dataset" if name == "outside.jpg" else None for name in names]
    decoded = decode_shard(shard_of([tmp_path / name for name in names], problems), SPEC)

    assert decoded.index == 7
    for name in ("sha256", "width", "height", "status", "error"):
        assert decoded.rows.schema.field(name).type == schema.EVIDENCE.field(name).type
    assert decoded.rows.schema.names[:8] == [*schema.MANIFEST.names, "problem", "fold"]
    assert decoded.rows["image_id"].to_pylist() == names
    rows = rows_of(decoded)
    reasons = {
        "empty.jpg": "the file is empty (0 bytes)",
        "text.jpg": "not an image: the file holds text, beginning with 'not a picture'",
        "outside.jpg": "the path leaves the dataset",
        "gone.jpg": "the file is gone: it was there when the dataset was listed",
        "folder.jpg": "not a file: a folder",
        "pipe.jpg": "not a file: a device or pipe",
        "a\0b.jpg": "the path cannot be used: embedded null byte",
    }
    for name, reason in reasons.items():
        assert (rows[name]["status"], rows[name]["error"]) == ("error", reason)
    assert str(rows["cut.jpg"]["error"]).startswith(
        f"truncated JPEG: it ends after {len(jpeg) // 2:,} bytes, with about"
    )
    good = ["good.jpg", "größe 1.png", "odd exif.jpg"]
    for number, name in enumerate(names):
        row = rows[name]
        assert row["status"] == ("ok" if name in good else "error")
        assert (row["width"], row["height"], row["error"] is None) == (
            (64, 48, True) if name in good else (None, None, False)
        )
        read = name in contents and name != "outside.jpg"
        assert row["sha256"] == (hashlib.sha256(contents[name]).hexdigest() if read else None)
        expected = decode_image(contents[name], SPEC).pixels if name in good else np.zeros((32, 32, 3))
        assert np.array_equal(decoded.pixels[number], expected)


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(encoded(Image.fromarray(block(40, 40, (0, 0, 20, 20)))))
    opened: list[Path] = []
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: opened.append(self) or whole(self))
    assert rows_of(decode_shard(shard_of([path]), SPEC))["one.png"]["status"] == "ok"
    assert opened == [path]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no permission to read the file"),
        (OSError(5, "Input/output error"), "the file cannot be read: Input/output error"),
    ],
)
def test_unreadable_files_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:
    path = tmp_path / "locked.png"
    path.write_bytes(encoded(Image.fromarray(block(8, 8, (0, 0, 4, 4)))))

    def refuse(_: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", refuse)
    row = rows_of(decode_shard(shard_of([path]), SPEC))["locked.png"]
    assert (row["status"], row["error"], row["sha256"]) == ("error", reason, None)


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)  # holes take no disk
    row = rows_of(decode_shard(shard_of([path]), SPEC))["huge.jpg"]
    assert row["error"] == "too large: 1,073,741,825 bytes, and no image file may have over 1,073,741,824"


def test_a_strip_too_long_for_the_resampling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(block(1000, 2, (0, 0, 500, 2))))
    assert decode_image(data, SPEC).width == 1000
    monkeypatch.setattr("pipeline.dataset.images._LONGEST", 999)
    with pytest.raises(ImageError, match="too long: 1,000 x 2 pixels, and no side may have over 999"):
        decode_image(data, SPEC)


@pytest.mark.parametrize("size", [(1 << 22, 1), (1, 1 << 22)])
def test_the_longest_strips_are_read(size: tuple[int, int]) -> None:
    spec = InputSpec(size=224, resize=256)
    image = decode_image(encoded(Image.new("L", size, 77)), spec)
    assert (image.pixels == 77).all()


def test_threads_change_nothing(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    paths = []
    for number in range(24):
        path = tmp_path / f"{number:02}.jpg"
        noise = generator.integers(0, 256, (210, 220, 3), dtype=np.uint8)
        path.write_bytes(encoded(Image.fromarray(noise), "JPEG") if number % 5 else b"damaged")
        paths.append(path)
    alone = decode_shard(shard_of(paths), SPEC, threads=1)
    for threads in (2, 4):
        together = decode_shard(shard_of(paths), SPEC, threads=threads)
        assert together.rows.equals(alone.rows)
        assert np.array_equal(together.pixels, alone.pixels)
    assert alone.rows["status"].to_pylist().count("error") == 5


def test_an_empty_shard() -> None:
    decoded = decode_shard(shard_of([]), SPEC)
    assert decoded.rows.num_rows == 0
    assert decoded.pixels.shape == (0, 32, 32, 3)


def test_memory_runs_out_of_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(encoded(Image.fromarray(block(40, 40, (0, 0, 20, 20)))))

    def full(_: bytes) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr("pipeline.dataset.images.read_rgb", full)
    with pytest.raises(MemoryError):
        decode_shard(shard_of([path]), SPEC)


def test_load_original_is_upright_and_full_size(tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    path = tmp_path / "turned.png"
    path.write_bytes(rotated(upright, 6, "PNG"))
    picture = load_original(str(path))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), upright)
    with pytest.raises(ImageError, match="gone"):
        load_original(str(tmp_path / "other.png"))
