"""Masks as COCO run-length codes: the `counts` string; the size is the image's height and width.

A mask is read column by column as runs of False, True, False, ... Each run from the fourth on is written as the
difference to the run two before it, in groups of five bits from the lowest up, one group per character from "0" on;
32 marks that more groups follow, 16 in the last group is the sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

_LONGEST = 7
"""Characters of the longest number that pycocotools writes: 32 bits in groups of five."""


def encode(mask: NDArray[np.bool_]) -> str:
    """Return the COCO RLE counts of a mask, bool (H, W), compressed to ASCII."""
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def decode(counts: str, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask, bool (height, width), of COCO RLE counts.

    Read here and not by pycocotools, which leaves memory as it finds it where the counts end too early, and which
    warns with NumPy 2.

    Raises ValueError for counts that do not describe a mask of that size.
    """
    runs = _runs(counts)
    if runs is None or runs.min(initial=0) < 0 or int(runs.sum()) != height * width:
        raise ValueError(f"these RLE counts are no mask of {width} x {height} pixels")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _runs(counts: str) -> NDArray[np.int64] | None:
    """Return the lengths of the runs, or None where the text is no such code."""
    code = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((code & 32) == 0)
    if len(ends) == 0 or ends[-1] != len(code) - 1 or code.min() < 0 or code.max() >= 64:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return None
    position = np.arange(len(code)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((code & 31) << (5 * position), starts)
    numbers[(code[ends] & 16) != 0] -= (1 << (5 * lengths))[(code[ends] & 16) != 0]
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
