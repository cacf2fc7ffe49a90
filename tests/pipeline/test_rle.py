import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from pipeline import rle


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Noise, blocks (long runs), or all of one kind."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(bits).reshape(height, width)
    return np.kron(mask, np.ones((draw(st.integers(1, 40)), draw(st.integers(1, 40))), dtype=bool))


def naive_counts(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of False, True, False, ... column by column."""
    runs, value = [0], False
    for bit in [bool(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])]:
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    return runs


def naive_text(runs: list[int]) -> str:
    """COCO's compression of the runs, character by character."""
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        while True:
            group, number = number & 31, number >> 5
            done = number == (-1 if group & 16 else 0)
            text += chr(48 + (group if done else group | 32))
            if done:
                break
    return text


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, from NumPy 2 on
@settings(deadline=None)
@given(masks())
def test_round_trip_and_the_oracle(mask: np.ndarray) -> None:
    counts = rle.encode(mask)
    assert counts == naive_text(naive_counts(mask))
    found = rle.decode(counts, *mask.shape)
    assert found.dtype == np.bool_
    assert np.array_equal(found, mask)
    assert np.array_equal(found, coco.decode({"size": list(mask.shape), "counts": counts.encode()}))


def test_known_code() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    assert rle.encode(mask) == "231"  # 2 off, 3 on, 1 off
    assert rle.decode("231", 2, 3).tolist() == mask.tolist()
    assert rle.encode(np.zeros((3, 2), dtype=bool)) == "6"
    assert rle.encode(np.ones((3, 2), dtype=bool)) == "06"


@pytest.mark.parametrize(
    ("counts", "height", "width"),
    [
        ("231", 2, 2),
        ("231", 3, 3),
        ("", 1, 1),
        ("2", 0, 1),
        ("23Q", 2, 3),
        ("né", 2, 3),
        ("o" * 50, 2, 3),
        ("2O5", 2, 3),
        ("~", 1, 1),
        ("\n", 1, 1),
        ("PPPPPPPPP0", 1, 1),
    ],
)
def test_damaged_counts_raise(counts: str, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"no mask of {width} x {height} pixels"):
        rle.decode(counts, height, width)
