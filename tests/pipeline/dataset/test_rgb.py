import io
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.rgb import ImageError, read_rgb
from tests.pipeline.pictures import FILES, block, encoded, png_that_claims, rotated, with_broken_exif

TEXTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def read(data: bytes) -> np.ndarray:
    picture = read_rgb(data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_shows_the_same_picture(name: str) -> None:
    grey = block(33, 21, (8, 8, 24, 16))  # on JPEG's 8 x 8 blocks, so that it is stored without ringing
    found = read(FILES[name](grey)).astype(int)
    assert found.shape == (21, 33, 3)
    assert np.abs(found - grey[..., None]).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_followed(kind: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:8, :16, 0] = 255
    upright[16:, :8, 1] = 255
    assert np.abs(read(rotated(upright, orientation, kind)).astype(int) - upright).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(ramp / 257)
    for data in (encoded(Image.fromarray(ramp)), encoded(Image.fromarray(ramp), "TIFF")):
        assert np.array_equal(read(data)[..., 0], expected)


def test_a_large_grey_picture_is_scaled_a_strip_at_a_time() -> None:
    """Numbers of all pixels at once would take ten times what the picture does."""
    ramp = np.tile(np.arange(0, 65536, 16, dtype=np.uint16), (1024, 1))
    data = encoded(Image.fromarray(ramp))
    tracemalloc.start()
    try:
        found = read(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(found[..., 2], np.rint(ramp / 257))
    assert most < 6 * ramp.nbytes  # stored, its levels, RGB and what reading takes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([0.0, 32767.5, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),  # no known scale: the picture's own range
        ([0.0, 4e5, 1e6], [0, 102, 255]),
        ([float("nan"), 0.5, float("inf")], [0, 128, 0]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([7e9] * 3, [0, 0, 0]),
    ],
)
def test_fractions_find_their_scale(values: list[float], expected: list[int]) -> None:
    found = read(encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    assert found[0, :, 1].tolist() == expected


def test_integers_find_their_scale() -> None:
    for values, expected in (([0, 9, 255], [0, 9, 255]), ([0, 257, 65535], [0, 1, 255]), ([-50, 0, 50], [0, 128, 255])):
        found = read(encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF"))
        assert found[0, :, 2].tolist() == expected


def test_half_transparent_lies_over_white() -> None:
    image = Image.new("RGBA", (1, 1), (100, 0, 255, 128))
    assert read(encoded(image))[0, 0] == pytest.approx([100 + 155 * 127 / 255, 127, 255], abs=1)


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        found = read(data)
        assert found.shape == (7, 9, 3)
        assert (found == (255, 0, 0)).all()


def test_the_picture_itself_is_exact() -> None:
    assert np.array_equal(read(encoded(Image.fromarray(TEXTURE))), TEXTURE)


JPEG = encoded(Image.fromarray(TEXTURE), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"cat\n", "not an image: the file holds text, beginning with 'cat'"),
        ("<html>Größe".encode(), "not an image: the file holds text, beginning with '<html>Größe'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: the file holds text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC/HEIF"),
        (b"\x01\x02\xff\x00abcdefgh", "not an image in a known format; the file begins with the bytes 01 02 ff 00"),
        (b"\0" * 99, "not an image in a known format"),
        (JPEG[:3], r"damaged or truncated JPEG: its header cannot be read \(3 bytes\)"),
        (png_that_claims(50_000, 50_000), "too large: more than 178,956,970 pixels"),
        (png_that_claims(40, 30), "truncated PNG|damaged PNG"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=rf"^[^\n]*{reason}"):
        read_rgb(data)


@pytest.mark.parametrize(
    ("kind", "options", "wording"),
    [
        ("JPEG", {"quality": 95}, r"truncated JPEG: it ends after {} bytes, with about (\d+) of 60 rows readable$"),
        ("PNG", {}, r"truncated PNG: it ends after {} bytes, with about (\d+) of 60 rows readable$"),
        ("BMP", {}, r"truncated BMP: it ends after {} bytes, with about (\d+) of 60 rows readable$"),
        ("TIFF", {}, r"truncated TIFF: it ends after {} bytes, with about (\d+) of 60 rows readable$"),
        ("GIF", {}, r"truncated GIF: it ends after {} bytes$"),
        ("WEBP", {"lossless": True}, r"truncated WebP: it ends after {} of [\d,]+ bytes$"),
    ],
)
def test_a_truncated_file_says_how_far_it_goes(kind: str, options: dict[str, int], wording: str) -> None:
    data = encoded(Image.fromarray(TEXTURE), kind, **options)
    half = data[: len(data) // 2]
    with pytest.raises(ImageError, match=wording.format(f"{len(half):,}")) as caught:
        read_rgb(half)
    if "rows" in wording:
        rows = int(str(caught.value).split("about ")[1].split()[0])
        assert 10 <= rows <= 40
    with pytest.raises(ImageError):
        read_rgb(data[:40])


def test_no_damage_gets_out_as_anything_else() -> None:
    generator = np.random.default_rng(1)
    reasons: list[str] = []
    for make in FILES.values():
        data = make(block(33, 21, (8, 8, 24, 16)))
        for _ in range(8):
            broken = bytearray(data)
            for place in generator.integers(0, len(data), 12):
                broken[place] = generator.integers(256)
            try:
                assert read_rgb(bytes(broken)).mode == "RGB"
            except ImageError as error:
                reasons.append(str(error))
    assert len(reasons) > 50
    assert all(reason and "\n" not in reason and " at 0x" not in reason for reason in reasons)


def test_broken_metadata_neither_stops_nor_warns() -> None:
    data = with_broken_exif(Image.fromarray(np.full((16, 16), 200, dtype=np.uint8)))
    with pytest.warns(UserWarning, match="Corrupt EXIF"):  # what would get out
        Image.open(io.BytesIO(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.abs(read(data).astype(int) - 200).max() <= 1
    assert caught == []


def test_many_pixels_are_no_bomb_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow warns above it, and refuses above twice as many
    assert read(encoded(Image.fromarray(TEXTURE))).shape == (60, 80, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ImageError, match="more than 4,000 pixels"):
        read_rgb(encoded(Image.fromarray(TEXTURE)))


def test_out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(TEXTURE))

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    for step in ("pipeline.dataset.rgb._rgb", "PIL.Image.open"):
        with monkeypatch.context() as patch:
            patch.setattr(step, full)
            with pytest.raises(MemoryError):
                read_rgb(data)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    bad, good = with_broken_exif(Image.fromarray(TEXTURE)), encoded(Image.fromarray(TEXTURE))
    before = list(warnings.filters)
    problems: list[BaseException] = []

    def work(data: bytes) -> None:
        try:
            for _ in range(40):
                read_rgb(data)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in (bad, good) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(io.BytesIO(bad))
