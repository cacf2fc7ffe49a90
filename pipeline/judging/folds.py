"""Which part of the dataset each image is held out with, so that no image is judged by a model that saw it.

N images, K classes, F folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, DatasetError

_NAMES_SHOWN = 5


def assign_folds(
    labels: npt.NDArray[np.integer], groups: Sequence[str], folds: int, seed: int
) -> npt.NDArray[np.int16]:
    """Deal the images to `folds` folds of nearly equal size, each with nearly the same mix of labels.

    Images of one group (the same picture) share a fold, whatever their labels: a copy in another fold would show the
    judge the label it is to judge. The result depends on the images' groups and labels, `folds` and `seed` alone, not
    on the order of the rows. Where all groups are single images, the folds of one label differ by at most one image.

    Args:
        labels: (N,) class index; -1 is an unknown label, which is dealt too (such an image is judged, never learned).
        groups: (N,) a name for each image's picture, the sha256 of a file that holds it; for an image that could not
            be read, its id.
        folds: how many, F >= 2.
        seed: another seed deals anew.

    Returns:
        (N,) the fold that is held out when image i is judged, 0 <= fold < F.

    Raises:
        ConfigError: fewer than 2 folds, or more than int16 can number.
        DatasetError: fewer than 2 classes among the labels, so that there is nothing to learn.

    """
    if not 2 <= folds <= np.iinfo(np.int16).max:
        raise ConfigError(f"folds = {folds} is out of range; use 2 or more (5 is usual)")
    if labels.shape != (len(groups),):
        raise ValueError(f"{len(groups)} groups but labels of shape {labels.shape}")
    _need_two_classes(labels)

    names, group_of_image = _number_groups(groups)
    label = _group_labels(labels, group_of_image, len(names))
    size = np.bincount(group_of_image, minlength=len(names))
    order = _shuffled(names, seed)
    order = order[np.lexsort((-size[order], label[order]))]  # by label, large groups first, then by content

    fold_of_group = np.empty(len(names), dtype=np.int16)
    total = np.zeros(folds, dtype=np.int64)
    for stratum in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        copies = np.count_nonzero(size[stratum] > 1)
        load = np.zeros(folds, dtype=np.int64)
        for group in stratum[:copies]:
            fold = np.lexsort((total + load, load))[0]  # the lightest fold of this label, then of all
            fold_of_group[group] = fold
            load[fold] += size[group]
        singles = stratum[copies:]
        room = _fill(load, total + load, len(singles))
        fold_of_group[singles] = np.repeat(np.arange(folds, dtype=np.int16), room)
        total += load + room
    return fold_of_group[group_of_image]


def fold_warnings(
    labels: npt.NDArray[np.integer], folds: npt.NDArray[np.integer], class_names: Sequence[str]
) -> tuple[str, ...]:
    """Say in one line each which classes are too small for the folds; empty when all classes lie in every fold.

    The first line names classes that lie in one fold only: whoever judges them has never seen them, so all their images
    will look wrong. The second names classes that lie in more folds, but not in all.
    """
    count = int(folds.max(initial=-1)) + 1
    known = labels >= 0
    present = np.zeros((len(class_names), count), dtype=bool)
    present[labels[known], folds[known]] = True
    spread = present.sum(axis=1)
    images = np.bincount(labels[known], minlength=len(class_names))

    def line(which: npt.NDArray[np.intp], consequence: str) -> str:
        shown = ", ".join(f"{class_names[k]} ({images[k]})" for k in which[:_NAMES_SHOWN])
        more = f" and {len(which) - _NAMES_SHOWN} more" if len(which) > _NAMES_SHOWN else ""
        return f"fewer different images than folds ({count}): {shown}{more}; {consequence}"

    alone = np.flatnonzero(spread == 1)
    few = np.flatnonzero((spread > 1) & (spread < count))
    lines = []
    if len(alone):
        lines.append(line(alone, "no judge of these images has seen their class, so their labels cannot be confirmed"))
    if len(few):
        lines.append(line(few, "the judges of these classes saw only a few examples; lower --folds or add images"))
    return tuple(lines)


def _need_two_classes(labels: npt.NDArray[np.integer]) -> None:
    if len(np.unique(labels[labels >= 0])) < 2:
        raise DatasetError(
            "a label audit in probe or train mode needs images of at least two classes; "
            "use --predict direct with a model that knows more classes"
        )


def _number_groups(groups: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct groups and, for each image, the position of its group among them."""
    encoded: Any = pa.array(groups, type=pa.string()).dictionary_encode()
    if encoded.null_count:
        raise ValueError("a group is missing; give an image without bytes its id as group")
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _group_labels(
    labels: npt.NDArray[np.integer], group_of_image: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Return the most frequent known label of each group (ties: the lowest); -1 where all are unknown."""
    known = labels >= 0
    pairs, votes = np.unique(np.stack([group_of_image[known], labels[known]]), axis=1, return_counts=True)
    best_last = np.lexsort((-pairs[1], votes, pairs[0]))
    result = np.full(count, -1, dtype=np.int64)
    result[pairs[0, best_last]] = pairs[1, best_last]  # the last write per group is its winner
    return result


def _shuffled(names: Sequence[str], seed: int) -> npt.NDArray[np.intp]:
    """Return the order of the groups by a hash of name and seed: random to look at, the same for any row order."""
    key = str(seed).encode()[:64]
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names)
    high, low = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T
    return np.lexsort((low, high))


def _fill(load: npt.NDArray[np.int64], total: npt.NDArray[np.int64], images: int) -> npt.NDArray[np.int64]:
    """Return how many of `images` single images each fold takes so that `load` becomes as level as it can.

    Water filling: the lowest folds rise together. What does not divide goes to the folds with the smallest `total`
    (ties: the lowest number), so that the remainders of many small classes do not pile up in one fold.
    """
    rising = np.sort(load)
    cost = rising * np.arange(1, len(load) + 1) - np.cumsum(rising)  # images to lift the i lowest folds to the i-th
    lowest = int(np.searchsorted(cost, images, side="right"))  # how many folds get wet
    level, rest = divmod(images + int(rising[:lowest].sum()), lowest)
    room = np.maximum(level - load, 0)
    wet = np.flatnonzero(load <= level)
    room[wet[np.argsort(total[wet] + room[wet], kind="stable")[:rest]]] += 1
    return room
