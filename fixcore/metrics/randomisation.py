"""Whether the map is the network's own: layers lose what they learned, and it should change (Adebayo et al.).

N images, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fixcore.errors import InputError


def layers_of(module: nn.Module) -> list[str]:
    """Return the names of the layers with weights, from the output down, as the network defines them."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)][::-1]


def shuffled(module: nn.Module, layers: Sequence[str], *, seed: int = 0) -> nn.Module:
    """Return a copy whose `layers` have their own weights in another order: the same values, nothing learned.

    A layer's order depends on `seed` and its place in `layers_of` alone, so that a cascade goes on from itself. Source:
    Adebayo et al., Sanity Checks for Saliency Maps, 4. Raises InputError for a layer that is not there.
    """
    place = {name: at for at, name in enumerate(layers_of(module))}
    if strange := sorted(set(layers) - place.keys()):
        raise InputError(f"the network has no layer with weights {strange[0]!r}")
    other = copy.deepcopy(module)
    with torch.no_grad():
        for name in layers:
            generator = torch.Generator().manual_seed(seed * 100_003 + place[name])
            for parameter in other.get_submodule(name).parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other


def map_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return how far two maps coincide, float32 (N,) in [0, 1]: the sum of minima, each map scaled to sum to 1.

    `a` and `b` are (N, H, W), >= 0; NaN where one is zero everywhere. It is `evidence_overlap` for any method.
    """
    if a.shape != b.shape:
        raise InputError(f"maps to compare differ: {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = (one.flatten(1).double() for one in (a, b))
    first, second = (one / one.sum(1, keepdim=True) for one in (first, second))
    return torch.minimum(first, second).sum(1).float().clamp(max=1)
