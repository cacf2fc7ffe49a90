"""Numbers and names as a person reads them: the same words in the report, in pictures and in the terminal."""

from __future__ import annotations

import shlex
import unicodedata

from pipeline.schema import ISSUES

TITLES = {
    "mislabeled": "Mislabeled",
    "ambiguous": "Ambiguous",
    "adversarial_drift": "Adversarial drift",
    "duplicate_conflict": "Duplicate conflict",
    "unreadable": "Unreadable",
}
assert tuple(TITLES) == ISSUES

_NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
_NO_VALUE = "\N{EN DASH}"


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as percent with one decimal; never claims 0 % or 100 % for what is only near it."""
    if share is None or share != share:
        return _NO_VALUE
    if 0 < share < 0.0005:
        return f"<0.1{_NARROW_SPACE}%"
    if 0.9995 <= share < 1:
        return f">99.9{_NARROW_SPACE}%"
    return f"{share:.1%}".removesuffix("%") + f"{_NARROW_SPACE}%"


def score(value: float) -> str:
    """Return a score in [0, 1] with three decimals; never 0 for what is only near it."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def count(number: int | None) -> str:
    """Return a whole number with thousands set apart."""
    return _NO_VALUE if number is None else f"{number:,}"


def amount(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 image`, `1,204 images`."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def printable(name: str | None) -> str:
    """Return a name that shows on one line what it is: control and text-direction characters become visible codes."""
    if not name:
        return "(no name)" if name == "" else "(none)"
    return "".join(f"‹U+{ord(letter):04X}›" if _deceives(letter) else letter for letter in name)


def shell_word(text: str) -> str:
    """Return `text` as one word of a command line for sh, and where it holds invisible characters for bash and zsh."""
    if not any(map(_deceives, text)):
        return shlex.quote(text)
    letters = (
        f"\\U{ord(letter):08x}" if _deceives(letter) else f"\\{letter}" if letter in "\\'" else letter
        for letter in text
    )
    return f"$'{''.join(letters)}'"


def shortened(name: str, limit: int) -> str:
    """Return a name of at most `limit` characters; the middle goes first, since both ends tell files apart."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - tail :]}"


def _deceives(letter: str) -> bool:
    """Tell whether a character is not seen itself but changes how those around it look."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in _OVERRIDES


_OVERRIDES = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
