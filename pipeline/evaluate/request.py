"""What a protocol is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fixcore.methods import Method
from pipeline.annotated import AnnotatedSet
from pipeline.evaluate.batches import Problems
from pipeline.evaluate.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A dataset, a network, the methods to compare."""

    subject: Subject
    dataset: AnnotatedSet
    methods: tuple[Method, ...]
    batch_size: int = 16
    cut: bool = False
    """Whether saliency and localization also score the object that each map points at, and a gallery shows it."""
    advance: Callable[[float], None] = lambda images: None
    """Told after each batch how many images are done."""
    problems: Problems = field(default_factory=Problems)

    def notes(self, what: str) -> tuple[str, ...]:
        """Return what every table says below: what was measured, on what, and what was left out."""
        images = f"{len(self.dataset):,} images ({self.dataset.form}), {self.subject.name}, "
        seen = f"shown at {self.subject.input.size} x {self.subject.input.size} pixels ({self.subject.input.fit})"
        return (what, images + seen, *self.dataset.warnings, *self.problems.notes())
