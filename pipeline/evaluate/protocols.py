"""The protocols by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from pipeline.errors import ConfigError
from pipeline.evaluate.localize import localize
from pipeline.evaluate.maps import cover, need, sane, tell_apart
from pipeline.evaluate.objects import point, propose
from pipeline.evaluate.request import Request
from pipeline.evaluate.table import Table
from pipeline.evaluate.tune import tune

Protocol = Callable[[Request], list[Table]]

PROTOCOLS: Mapping[str, Protocol] = {
    "localization": localize,
    "saliency": cover,
    "proposals": propose,
    "pointing": point,
    "faithfulness": need,
    "sanity": sane,
    "sensitivity": tell_apart,
    "tune": tune,
}

__all__ = ["PROTOCOLS", "Request", "evaluate"]


def evaluate(protocol: str, request: Request) -> list[Table]:
    """Run a protocol and return its tables.

    Raises ConfigError for an unknown one and DatasetError where the data do not serve.
    """
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, [*PROTOCOLS, "gallery"], 1, cutoff=0)
        raise ConfigError(
            f"there is no protocol {protocol!r}; did you mean {near[0]}? ({', '.join(PROTOCOLS)}, gallery)"
        )
    return PROTOCOLS[protocol](request)
