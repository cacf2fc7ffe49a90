"""Variations of an image that leave its label as it is, and a test whether mirroring is one of them.

B images of a batch, S x S pixels, n images of a validation set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SIGNIFICANT = 2.5  # standard errors; low enough that a real loss is rarely missed, and a needless refusal costs little


def vary(pixels: npt.NDArray[np.uint8], rng: np.random.Generator, *, mirror: bool) -> npt.NDArray[np.uint8]:
    """Return a copy of (B, S, S, 3), each image moved by up to an eighth of S, the border repeated.

    With `mirror`, left and right of every second image, by chance, change places.
    """
    count, size = pixels.shape[:2]
    reach = size // 8
    line = np.arange(size)
    rows = np.clip(line + rng.integers(-reach, reach + 1, (count, 1)), 0, size - 1)
    columns = np.clip(line + rng.integers(-reach, reach + 1, (count, 1)), 0, size - 1)
    if mirror:
        turned = rng.random(count) < 0.5
        columns[turned] = columns[turned, ::-1]
    moved: npt.NDArray[np.uint8] = pixels[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved


def mirroring_is_harmless(
    labels: npt.NDArray[np.integer], plain: npt.NDArray[np.integer], mirrored: npt.NDArray[np.integer]
) -> bool:
    """Tell whether mirror images keep their label, from a network that has never seen a mirror image.

    Digits and text lose theirs, most photographs do not. The network must know more than the most frequent class, or
    nothing can be said. Then mirroring is harmless if it turns no more right answers wrong than wrong ones right,
    within chance: over all images, and in every class, since a few classes (b and d) may be mirror images of each
    other while all others do not care.

    Args:
        labels: (n,) class of images that the network has not seen.
        plain: (n,) what the network says of them.
        mirrored: (n,) what it says of their mirror images.

    """
    was_right, is_right = plain == labels, mirrored == labels
    most_frequent = np.bincount(labels).max(initial=0)
    if was_right.sum() <= most_frequent + _SIGNIFICANT * np.sqrt(most_frequent):
        return False
    lost, won = was_right & ~is_right, ~was_right & is_right
    if _significant(lost.sum(), won.sum()):
        return False
    classes = int(labels.max()) + 1
    lost_by_class = np.bincount(labels[lost], minlength=classes)
    won_by_class = np.bincount(labels[won], minlength=classes)
    return not _significant(lost_by_class, won_by_class).any()


def _significant(lost: npt.NDArray[np.integer], won: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Sign test: without an effect, lost - won has the standard error sqrt(lost + won)."""
    return np.asarray(lost - won > _SIGNIFICANT * np.sqrt(lost + won))
