"""Layout: the element itself, elsewhere. Each rule finds where an element of the output was read from."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, fx

from fixcore.compiled import parts as compiled
from fixcore.points import Points, ravel, unravel
from fixcore.rules.table import Flow, Visit, rule

aten = torch.ops.aten

_ROUNDING = 1e-9
"""A place half-way between two cells that is missed by rounding alone is half-way."""

_LINEAR, _NEAREST = 0, 1
"""How a grid's places are read, as torch numbers it."""
_BORDER = 1
"""What lies outside a map that a grid reads: its nearest cell."""

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints)
VIEWS = (
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.select.int,
    aten.unfold.default,
)
_OVERLAPS = (aten.expand.default, aten.unfold.default)
"""Views that hold an element more than once."""
_COPIES = (
    aten.roll.default,
    aten.flip.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.tile.default,
    aten.rot90.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
)
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})
_RESIZES = (aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec)
LAYOUT = frozenset({
    *RESHAPES, *VIEWS, *_COPIES, *PADS, *_RESIZES, aten.cat.default, aten.stack.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.im2col.default, aten.grid_sampler_2d.default,
})  # fmt: skip
"""Operations whose rules look up where an element was read from, and choose nothing."""


@rule(*RESHAPES)
def same_order(visit: Visit, points: Points) -> Flow:
    """Reshape: the row-major position stays. Mass: kept whole."""
    return [(visit.source("self"), points)]


@rule(*VIEWS)
def strided_view(visit: Visit, points: Points) -> Flow:
    """View: strides and offset of the same view of a row-major tensor say where each element lies. Mass: kept whole."""
    source = visit.source("self")
    memory = torch.empty(visit.shapes[source], device="meta")
    own = {**visit.values, source: memory}
    view = visit.node.target(  # type: ignore[operator]
        *fx.node.map_arg(visit.node.args, own.__getitem__), **fx.node.map_arg(visit.node.kwargs, own.__getitem__)
    )
    index = torch.full_like(points.index, view.storage_offset())
    for at, stride in zip(unravel(points.index, view.shape), view.stride(), strict=True):
        if stride:
            index += at * stride
    return [(source, points.moved(index, apart=visit.node.target not in _OVERLAPS))]


@rule(*_COPIES, aten.gather.default, keeps=("indices", "index"))
def looked_up(visit: Visit, points: Points) -> Flow:
    """Copy: do the same to a tensor that holds its own positions, and read there. Mass: kept whole.

    What is gathered was chosen, as by a pool (the strongest, the best tokens), so this is not among `LAYOUT`.
    """
    source = visit.source("self")
    shape = visit.shapes[source]
    # In float64, which is exact: not all operations take integers.
    own = {
        **visit.values,
        source: torch.arange(shape.numel(), dtype=torch.float64, device=points.index.device).view(shape),
    }
    positions = visit.node.target(  # type: ignore[operator]
        *fx.node.map_arg(visit.node.args, own.__getitem__), **fx.node.map_arg(visit.node.kwargs, own.__getitem__)
    )
    return [(source, points.moved(positions.reshape(-1)[points.index].long()))]


@rule(aten.cat.default)
def own_part(visit: Visit, points: Points) -> Flow:
    """Concatenation: the part that the element came from. A constant part ends the walk there. Mass: kept whole."""
    dim = visit.plain("dim") % len(visit.shape)
    # torch lets an empty vector join anything
    parts = [part for part in visit.arguments["tensors"] if len(visit.shapes[part]) == len(visit.shape)]
    extents = tuple(visit.shapes[part][dim] for part in parts)
    inner = visit.shape[dim + 1 :].numel()
    place, order, counts = by_part(points.index, _ownership(extents, points.index.device), inner, len(parts))
    by_own = points.where(order).moved(place, apart=True).split(counts)
    return [(part, here) for part, here in zip(parts, by_own, strict=True) if len(here)]


def by_part(index: Tensor, owners: Tensor, inner: int, parts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Sort positions in a concatenation, int64 (P,), by the part that they came from, ties in their order.

    `owners` is `_ownership`'s; `inner` the elements from one place along the concatenation to the next. Returns the
    positions in their parts, the order int64 (P,), and the number in each part.
    """
    if index.device.type == "cpu":
        return compiled.by_part(index, owners, inner, parts)
    return _by_part(index, owners, inner, parts)


def _by_part(index: Tensor, owners: Tensor, inner: int, parts: int) -> tuple[Tensor, Tensor, list[int]]:
    rest = torch.div(index, inner, rounding_mode="floor")
    outer = torch.div(rest, owners.shape[1], rounding_mode="floor")
    number, first, others = owners[:, rest - outer * owners.shape[1]]
    order = torch.argsort(number, stable=True)
    # what precedes in a row of the part, instead of in a row of the whole
    place = index - (outer * others + first) * inner
    return place[order], order, torch.bincount(number, minlength=parts).tolist()


@lru_cache(maxsize=256)
def _ownership(extents: tuple[int, ...], device: torch.device) -> Tensor:
    """Say of each place along a concatenation: the part it came from, that part's beginning, all other parts' extent.

    int64 (3, sum of extents).
    """
    sizes = torch.tensor(extents)
    table = torch.stack([torch.arange(len(extents)), sizes.cumsum(0) - sizes, sum(extents) - sizes])
    return table.repeat_interleave(sizes, 1).to(device)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def written_part(visit: Visit, points: Points) -> Flow:
    """Part of a tensor overwritten: what was written there, else what was left. Mass: kept whole."""
    dim = visit.plain("dim") % len(visit.shape)
    extent = visit.shape[dim]
    if visit.node.target is aten.select_scatter.default:
        written = [visit.plain("index") % extent]
    else:
        written = list(range(extent))[slice(*(visit.plain(name) for name in ("start", "end", "step")))]
    number = torch.full((extent,), -1, device=points.index.device)
    number[written] = torch.arange(len(written), device=points.index.device)
    place = list(unravel(points.index, visit.shape))
    own = number[place[dim]]
    place[dim] = own.clamp(min=0)
    if visit.node.target is aten.select_scatter.default:
        del place[dim]
    source = visit.source("src")
    moved = points.moved(ravel(place, visit.shapes[source]))
    return [(visit.source("self"), points.where(own < 0)), (source, moved.where(own >= 0))]


@rule(aten.stack.default)
def own_layer(visit: Visit, points: Points) -> Flow:
    """Stack: the tensor that the element came from. A constant one ends the walk there. Mass: kept whole."""
    dim = visit.plain("dim") % len(visit.shape)
    place = list(unravel(points.index, visit.shape))
    layer = place.pop(dim)
    return [
        (part, points.moved(ravel(place, visit.shapes[part])).where(layer == number))
        for number, part in enumerate(visit.arguments["tensors"])
    ]


@rule(*PADS)
def nearest_pixel(visit: Visit, points: Points) -> Flow:
    """Padding: go to the element itself; one on the padding moves to the nearest, or to the one it is a copy of.

    Mass: kept whole.
    """
    if visit.arguments.get("mode", "constant") != "constant":
        return looked_up(visit, points)
    source = visit.source("self")
    shape = visit.shapes[source]
    before = [0] * len(shape)
    for number, amount in enumerate(visit.plain("pad")[::2]):
        before[-1 - number] = amount
    place = unravel(points.index, visit.shape)
    own = [(at - skip).clamp(0, extent - 1) for at, skip, extent in zip(place, before, shape, strict=True)]
    return [(source, points.moved(ravel(own, shape)))]


@rule(*_RESIZES)
def nearest_cell(visit: Visit, points: Points) -> Flow:
    """Enlarged or reduced map: go to the cell that was copied, or weighs most in the interpolation. Mass: kept whole.

    Of two that weigh as much to the lower right one. Where each place was read is what the operation makes of a ramp.
    """
    source = visit.source("input")
    shape = visit.shapes[source]
    resize = visit.node.target
    if resize is aten.upsample_bicubic2d.vec:  # which bends ramps at the edges, and reads where the linear one does
        resize = aten.upsample_bilinear2d.vec
    rest = [visit.plain(name) for name in visit.arguments if name != "input"]
    image, channel, row, col = unravel(points.index, visit.shape)
    read = resize(_ramps(shape, row.device), *rest)[0, :, row, col]  # type: ignore[operator]
    return [(source, points.moved(ravel([image, channel, *_nearest(read)], shape)))]


@rule(aten.grid_sampler_2d.default, keeps=("grid",))
def nearest_sample(visit: Visit, points: Points) -> Flow:
    """Map read at places that a grid names (spatial transformer): go to the cell that weighs most there.

    As `nearest_cell`; a place outside the map goes to the nearest cell. Mass: kept whole.
    """
    source = visit.source("input")
    shape, grid = visit.shapes[source], visit.tensor("grid")
    mode, padding = (visit.plain(name) for name in ("interpolation_mode", "padding_mode"))
    read = aten.grid_sampler_2d.default(
        _ramps(shape, grid.device).expand(len(grid), -1, -1, -1),
        grid.double(),
        mode if mode == _NEAREST else _LINEAR,  # cubic weights are largest where linear ones are
        padding or _BORDER,  # zeros outside would bend the ramps
        visit.plain("align_corners"),
    )
    image, channel, row, col = unravel(points.index, visit.shape)
    return [(source, points.moved(ravel([image, channel, *_nearest(read[image, :, row, col].T)], shape)))]


def _ramps(shape: torch.Size, device: torch.device) -> Tensor:
    """Return a map (1, 2, H, W) of as many places, which holds where each is: its row, its column."""
    sides = (torch.arange(side, dtype=torch.float64, device=device) for side in shape[2:])
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]


def _nearest(place: Tensor) -> Tensor:
    """Return the nearest cell to a place between cells; half-way the one after it."""
    return (place + (0.5 + _ROUNDING)).long()
