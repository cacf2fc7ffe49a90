"""Convolutions on a CPU whose weights are laid out once as oneDNN reads them, instead of in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fixcore.compiled.threads import is_compiled_for
from fixcore.window import pair

_onednn = torch.ops.mkldnn


def packed_convolution(plain: Callable[..., Any], named: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a convolution for one weight; elsewhere than on a CPU, or for other types than float32, it is `plain`.

    `named` are the arguments by name. The results are the same to the last bit where torch would ask oneDNN, too; for
    a single small image it would not, and add in another order. They lie channels last in memory, whatever the images.
    The copy of the weight is made when it is first needed, and anew for another number of images, for which oneDNN may
    want it otherwise, and when somebody wrote to the weight.
    """
    sizes = [list(pair(named[name])) for name in ("padding", "stride", "dilation")]
    groups = named["groups"]
    copied: tuple[tuple[int, torch.Size], Tensor] | None = None

    def convolve(images: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **others: Any) -> Any:
        nonlocal copied
        if not (is_compiled_for(images, weight) and images.dim() == 4 and torch.backends.mkldnn.enabled):
            return plain(images, weight, bias, *rest, **others)
        made_for = (0 if weight.is_inference() else weight._version, images.shape)
        own = copied
        if own is None or own[0] != made_for:
            copied = own = (made_for, _onednn._reorder_convolution_weight(weight, *sizes, groups, list(images.shape)))
        return _onednn._convolution_pointwise(images, own[1], bias, *sizes, groups, "none", [], "")

    return convolve


def can_be_packed(named: Mapping[str, Any]) -> bool:
    """Whether a convolution's weight is a constant and its sizes are numbers, and torch was built with oneDNN."""
    sizes = chain([named["groups"]], *([*named[name]] for name in ("padding", "stride", "dilation")))
    return (
        named["weight"].op == "placeholder"
        and named["weight"].meta["is_constant"]
        and all(isinstance(size, int) for size in sizes)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(_onednn, "_convolution_pointwise")
    )
