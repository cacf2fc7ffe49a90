"""The protocols by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from pipeline.annotated import AnnotatedSet
from pipeline.errors import ConfigError, DatasetError
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

_NEEDS: Mapping[str, tuple[bool, bool, str]] = {  # whether boxes serve, whether masks do
    "localization": (True, True, "localization needs boxes or masks"),
    "tune": (True, True, "tune needs boxes or masks"),
    "proposals": (True, False, "proposals need objects with boxes (VOC, COCO)"),
    "pointing": (True, False, "pointing needs objects with boxes (VOC, COCO)"),
    "saliency": (False, True, "saliency needs masks (MSRA-B, ECSSD, Graz-02)"),
}

__all__ = ["PROTOCOLS", "Request", "check_marks", "check_name", "evaluate"]


def evaluate(protocol: str, request: Request) -> list[Table]:
    """Run a protocol and return its tables.

    Raises ConfigError for an unknown one and DatasetError where the data do not serve.
    """
    check_name(protocol)
    check_marks(protocol, request.dataset)
    assert protocol in PROTOCOLS, "a gallery is drawn by draw_gallery, and has no table"
    return PROTOCOLS[protocol](request)


def check_name(protocol: str) -> None:
    """Raise ConfigError, with the nearest name, for what is neither a protocol nor the gallery."""
    known = (*PROTOCOLS, "gallery")
    if protocol not in known:
        near = difflib.get_close_matches(protocol, known, 1, cutoff=0)
        raise ConfigError(f"there is no protocol {protocol!r}; did you mean {near[0]}? ({', '.join(known)})")


def check_marks(protocol: str, dataset: AnnotatedSet) -> None:
    """Raise DatasetError where nobody marked in any image what the protocol counts by; before anything is computed."""
    if protocol not in _NEEDS:
        return
    boxes, masks, needs = _NEEDS[protocol]
    for image in dataset.images:
        if (boxes and any(not one.difficult for one in image.objects)) or (masks and image.masks):
            return
    raise DatasetError(f"{needs}; no image of the dataset has one")
