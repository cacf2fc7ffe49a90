"""The built-in sample as a dataset on disk, and what an audit's flags on it were worth."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.dataset.sample import Score, read_truth, score_flags, write_digits_sample
from pipeline.runfolder import RunFolder

_TRUTH = "truth.csv"


def write_demo(sample: Path) -> None:
    """Write the sample, unless it is there; its truth is written last and so says that all of it is."""
    if not (sample / _TRUTH).is_file():
        write_digits_sample(sample)


def score_demo(sample: Path, run: RunFolder) -> Score:
    """Compare the flags of a run over the sample with the truth beside it."""
    return score_flags(read_truth(sample / _TRUTH), pq.read_table(run.audit, columns=["image_id", "is_mislabeled"]))
