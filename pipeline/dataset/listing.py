"""What a folder and a manifest file both come down to: N images, sorted by id, before their labels are looked up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no single ==
class Listing:
    """The images found; parallel columns of N rows, sorted by `image_id`, which is unique."""

    image_id: pa.Array
    """string: path relative to the dataset's root, `/` separators."""
    uri: pa.Array
    """string: absolute path."""
    label: pa.DictionaryArray
    """string: the given label as written; null where there is none."""
    split: pa.Array
    """string: train, val, test, ...; empty where the dataset has no splits."""
    problem: pa.Array
    """string: why the image cannot be read; null = nothing known against it."""
    size: npt.NDArray[np.int64]
    """Bytes; 0 where the file could not be looked at."""
    mtime_ns: npt.NDArray[np.int64]
    """Time of the last change, in nanoseconds since 1970; 0 where the file could not be looked at."""
    warnings: tuple[str, ...]
    """What was left out, one line each."""
    numbers_in_order: bool
    """True: labels that are all integers make classes in number order; False: in the order of their names."""

    def __len__(self) -> int:
        """Return N."""
        return len(self.image_id)


def in_id_order(listing: Listing) -> Listing:
    """Sort the rows by `image_id` (UTF-8 byte order, which is code point order)."""
    order = pc.sort_indices(listing.image_id)
    rows = order.to_numpy()
    return Listing(
        image_id=listing.image_id.take(order),
        uri=listing.uri.take(order),
        label=listing.label.take(order),
        split=listing.split.take(order),
        problem=listing.problem.take(order),
        size=listing.size[rows],
        mtime_ns=listing.mtime_ns[rows],
        warnings=listing.warnings,
        numbers_in_order=listing.numbers_in_order,
    )
