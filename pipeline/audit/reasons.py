"""Why an image is flagged, in sentences that a person understands who knows nothing of the method.

Probabilities are told as "97.0 % likely" and evidence as "what speaks for a label"; every name is quoted and printable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.wording import amount, percent, printable

_NAMED_COPIES = 3
"""Copies that a reason names; the rest is a number, so that the sentence stays one."""

_LEAST_TIMES, _MOST_TIMES = 2, 1000
"""Better odds that are worth a word, and from where on the number no longer matters."""


_SAME_PLACE = 0.5
"""Distance, as it is told, up to which two evidences lie in the same place: at half their spread, most of either lies
on the other. From there to where they lie apart, neither is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found in one image."""

    label_name: str
    pred_name: str
    label_probability: float
    pred_probability: float
    traced: bool
    """There is evidence for the prediction, so a lack of it for the label means something."""
    distance: float | None
    """How far apart the evidence for label and prediction lies, in units of its spread; None: not both have any."""
    is_apart: bool = False
    """The two lie on two objects."""
    swing: float | None = None
    """How much more likely the two classes are in their own halves of the image, in nats, summed; None: not asked."""
    confirmed: bool = False
    """A person says that the label is wrong."""

    @property
    def label(self) -> str:
        """The given label as it appears in a sentence."""
        return quoted(self.label_name)

    @property
    def pred(self) -> str:
        """The prediction as it appears in a sentence."""
        return quoted(self.pred_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """What became of the prediction on a smoothed copy of the image."""

    pred_name: str
    shift: float
    """Share of the probability that moved, in [0, 1]."""
    overlap: float
    """How far the evidence before and after coincides, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Another image of the same picture."""

    image_id: str
    label_name: str
    split: str
    same_bytes: bool
    """False: another file that looks the same."""


def mislabeled(seen: Seen) -> str:
    """Say why the label looks wrong."""
    if not seen.confirmed:
        return _looks_wrong(seen)
    if seen.pred_name != seen.label_name:
        return f"{_CONFIRMED} {_looks_wrong(seen)}"
    return f"{_CONFIRMED} The image is taken for {seen.pred}, as labelled ({_likely(seen.pred_probability)})."


_CONFIRMED = "A person looked and says that the label is wrong."


def _looks_wrong(seen: Seen) -> str:
    claim = (
        f"Labelled {seen.label} ({_likely(seen.label_probability)}), but it looks like {seen.pred} "
        f"({_likely(seen.pred_probability)})."
    )
    if seen.distance is None:
        return f"{claim} Nothing in the image speaks for {seen.label}." if seen.traced else claim
    if seen.is_apart:
        where = f"lies in another place than what speaks for {seen.pred}"
    elif _is_near(seen.distance):
        where = f"lies in the same place as what speaks for {seen.pred}"
    else:
        where = f"does not lie clearly apart from what speaks for {seen.pred}"
    return f"{claim} The little that speaks for {seen.label} {where} ({_distance(seen.distance)})."


def ambiguous(seen: Seen) -> str:
    """Say what two things the image can be taken for: two objects, or two readings of one."""
    label = f"{seen.label}, as labelled ({_likely(seen.label_probability)})"
    pred = f"{seen.pred} ({_likely(seen.pred_probability)})"
    if seen.distance is None:
        return f"Undecided: the image may show {label}, or {pred}."
    if seen.is_apart:
        return (
            f"Two objects: the image seems to show both {label}, and {pred}; what speaks for the one lies in another "
            f"place than what speaks for the other ({_distance(seen.distance)}).{_alone(seen.swing)}"
        )
    where = "lies in the same place" if _is_near(seen.distance) else "does not lie clearly apart"
    return (
        f"Two readings: the same object may be {label}, or {pred}; what speaks for the one and for the other {where} "
        f"({_distance(seen.distance)})."
    )


def adversarial_drift(seen: Seen, smoothed: Smoothed) -> str:
    """Say what smoothing did to the prediction; only where it changed and the evidence stayed."""
    after = quoted(smoothed.pred_name) + (", as labelled" if smoothed.pred_name == seen.label_name else "")
    return (
        f"The image may have been tampered with: it is labelled {seen.label} and taken for {seen.pred} "
        f"({_likely(seen.pred_probability)}), but after a smoothing that a person hardly sees it is taken for {after}; "
        f"{percent(smoothed.shift)} of the probability moved, while what speaks for either lies in the same place "
        f"({_overlap(smoothed.overlap)})."
    )


def duplicate_conflict(image: Copy, others: Sequence[Copy]) -> str:
    """Name the copies, at least one, that carry other labels, and those in other splits."""
    sentences = []
    labelled = [copy for copy in others if copy.label_name != image.label_name]
    if labelled:
        named = [f"{quoted(copy.label_name)} ({printable(copy.image_id)})" for copy in labelled[:_NAMED_COPIES]]
        more = len(labelled) - len(named)
        listed = ", ".join(named) + (f", and in {amount(more, 'more copy', 'more copies')} otherwise" if more else "")
        if all(copy.same_bytes for copy in labelled):
            sentences.append(
                f"The same file, byte for byte, is also labelled {listed}; at most one of these labels can be right."
            )
        else:
            sentences.append(f"Nearly the same picture is also labelled {listed}; can more than one label be right?")
    elsewhere = [copy for copy in others if copy.split != image.split]
    if elsewhere and image.split:
        named = [f"{quoted(copy.split)} ({printable(copy.image_id)})" for copy in elsewhere[:_NAMED_COPIES]]
        more = len(elsewhere) - len(named)
        listed = ", ".join(named) + (f", and {amount(more, 'more copy', 'more copies')}" if more else "")
        what = "the same file" if all(copy.same_bytes for copy in elsewhere) else "nearly the same picture"
        sentences.append(f"A leak between splits: {what} as in {quoted(image.split)} is also in {listed}.")
    return " ".join(sentences)


def unreadable(error: str | None) -> str:
    """Pass on why an image could not be audited."""
    what = printable(error).rstrip(". ") if error else "no reason was recorded"
    return f"The image could not be audited: {what}."


def quoted(name: str) -> str:
    """Return a label's name in quotes, on one line."""
    return f"'{printable(name)}'"


def _likely(probability: float) -> str:
    return f"{percent(probability)} likely"


def _is_near(distance: float) -> bool:
    return round(distance, 1) <= _SAME_PLACE


def _distance(value: float) -> str:
    return f"{value:.1f} times its spread"


def _alone(swing: float | None) -> str:
    """Say what the halves of the image alone say, where they say something."""
    if swing is None or swing / 2 < math.log(_LEAST_TIMES):
        return ""
    is_told = swing / 2 < math.log(_MOST_TIMES)
    told = f"about {float(f'{math.exp(swing / 2):.1g}'):.0f}" if is_told else f"over {_MOST_TIMES:,}"
    return (
        f" Seen alone, its own half of the image gives either of them, on average, {told} times the odds that the "
        "other half gives it."
    )


def _overlap(value: float) -> str:
    return f"overlap {value:.2f}"
