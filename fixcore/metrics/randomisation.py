"""Whether the map is the network's own: layers lose what they learned, and it should change (Adebayo et al.).

N images, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fixcore.errors import InputError


def layers_of(module: nn.Module) -> list[str]:
    """Return the names of the layers with weights, from the output down, as the network defines them.

    These are linear layers and convolutions of any kind, and whatever else holds a matrix, a kernel or a table of its
    own (attention's `in_proj_weight`, an embedding). Scales and shifts of single channels, as of norms, make no layer.
    """
    inner = {part for layer in module.modules() for part in _parametrizations(layer)}
    return [name for name, layer in module.named_modules() if layer not in inner and _has_weights(layer)][::-1]


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
            layer = other.get_submodule(name)
            _settle(layer)
            generator = torch.Generator().manual_seed(seed * 100_003 + place[name])
            for parameter in layer.parameters(recurse=False):
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return other


def _has_weights(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):  # of one channel, too
        return True
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):  # of several dimensions, too
        return False
    own = [*layer.parameters(recurse=False), *(one for part in _parametrizations(layer) for one in part.parameters())]
    return any(sum(extent > 1 for extent in parameter.shape) > 1 for parameter in own)


def _settle(layer: nn.Module) -> None:
    """Make what a layer's parametrizations give its weights: shuffled before these, values would not stay the same.

    Not by `remove_parametrizations`, which takes the weights from the class that the layer shares with its original.
    """
    if not parametrize.is_parametrized(layer):
        return
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    made = {name: getattr(layer, name) for name in layer.parametrizations}
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    for name, value in made.items():
        layer.register_parameter(name, nn.Parameter(value.clone(), value.requires_grad))


def _parametrizations(layer: nn.Module) -> list[nn.Module]:
    """What makes a layer's weights out of what is learned (weight norm, spectral norm), with all in it."""
    if not parametrize.is_parametrized(layer):
        return []
    assert isinstance(layer.parametrizations, nn.ModuleDict)
    return list(layer.parametrizations.modules())


def map_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return how far two maps coincide, float32 (N,) in [0, 1]: the sum of minima, each map scaled to sum to 1.

    `a` and `b` are (N, H, W), >= 0; NaN where one is zero everywhere. It is `evidence_overlap` for any method.
    """
    if a.shape != b.shape:
        raise InputError(f"maps to compare differ: {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = (one.flatten(1).double() for one in (a, b))
    first, second = (one / one.sum(1, keepdim=True) for one in (first, second))
    return torch.minimum(first, second).sum(1).float().clamp(max=1)
