"""Where each file of a run lies (DESIGN: the run folder); paths only, nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk; `run.json` is written last, so its presence means the run is complete."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Resolved config, versions, fingerprints, counts and timings; written last."""
        return self.path / "run.json"

    @property
    def manifest(self) -> Path:
        """One row per image found."""
        return self.path / "manifest.parquet"

    @property
    def evidence(self) -> Path:
        """Folder of the evidence parts, one file per shard."""
        return self.path / "evidence"

    def evidence_part(self, shard: int) -> Path:
        """Return the evidence file of one shard."""
        return self.evidence / f"part-{shard:05d}.parquet"

    def evidence_parts(self) -> list[Path]:
        """Return the evidence files that are there, in shard order."""
        return sorted(self.evidence.glob("part-*.parquet"), key=lambda part: (len(part.name), part.name))

    @property
    def audit(self) -> Path:
        """One row per image: every score and flag."""
        return self.path / "audit.parquet"

    @property
    def issues(self) -> Path:
        """Flagged images only, ranked, with the reason in words."""
        return self.path / "issues.parquet"

    @property
    def summary(self) -> Path:
        """Counts, estimated label noise, per-class table."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """One HTML file that opens offline."""
        return self.path / "report.html"

    @property
    def review(self) -> Path:
        """Images worth a look, with a column for the verdicts."""
        return self.path / "review.csv"

    @property
    def review_page(self) -> Path:
        """The same images as pictures, one HTML file that opens offline and writes `review.csv`."""
        return self.path / "review.html"

    @property
    def work(self) -> Path:
        """What steps hand to later steps (features, heads, weights, commits); a run that is complete has deleted it."""
        return self.path / "work"

    @property
    def is_complete(self) -> bool:
        """True once `run.json` stands."""
        return self.run_json.is_file()
