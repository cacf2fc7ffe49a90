"""Products of matrices, and attention: which token was looked at, and there, which value. Beyond the paper.

P points, J tokens that are looked at, E and D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from fixcore.points import Points, ravel, unravel
from fixcore.rules.elementwise import PASSES, REORDERED, SCALES
from fixcore.rules.linear import behind_vectors, parts
from fixcore.rules.table import Flow, Visit, rule
from fixcore.structure import arguments_by_name

aten = torch.ops.aten

_PASSED = frozenset({
    *PASSES, *SCALES, *REORDERED, aten.expand.default, aten.where.self, aten.linear.default, aten.add.Tensor,
    aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.sum.dim_IntList,
})  # fmt: skip
"""Operations through which the weights of attention may go after their softmax: heads may be mixed (talking heads), and
sums of them scaled to 1."""


@rule(
    aten.matmul.default,
    aten.bmm.default,
    aten.mm.default,
    keeps=("self", "other", "mat2"),
    keeps_of_vectors=("result",),
)
def strongest_term(visit: Visit, points: Points) -> Flow:
    """Go to the largest of the terms left[i, j] * right[j, d] that were summed; ties to the lowest j.

    Of two matrices that depend on the images, one that comes from a softmax says where to look, and the other is
    followed; if neither or both do, both are followed, each with half of the mass. A constant matrix makes it a
    linear layer: on a vector (N, in) all exciting inputs share the mass, as there. Mass: kept whole.

    Raises ValueError for a vector without batch dimension.
    """
    names = ("self", "other" if "other" in visit.arguments else "mat2")
    left, right = (visit.tensor(name) for name in names)
    if left.dim() < 2 or right.dim() < 2:
        raise ValueError(f"{visit.node.name}: products of {left.dim()}- and {right.dim()}-dimensional tensors")
    *batch, row, col = unravel(points.index, visit.shape)
    sources = [visit.source(name) for name in names]
    followed = [not source.meta["is_constant"] for source in sources]
    if all(followed):
        looks = [_is_attention(source) for source in sources]
        followed = followed if looks[0] == looks[1] else [not look for look in looks]
    if left.dim() == 2 and followed == [True, False]:
        return [(sources[0], behind_vectors(visit, left, right.T, row, col, points))]
    of_left, of_right = (_own(batch, matrix, visit.shape) for matrix in (left, right))
    columns = right.transpose(-1, -2)
    term = torch.arange(left.shape[-1], device=left.device)
    flow: list[tuple[fx.Node, Points]] = []
    for part in parts(len(points), len(term)):
        rows, cols = [at[part, None] for at in (*of_left, row)], [at[part, None] for at in (*of_right, col)]
        places = (ravel((*rows, term), left.shape), ravel((*cols[:-1], term, cols[-1]), right.shape))
        product = left[(*rows, term)] * columns[(*cols, term)]
        for source, place, follow in zip(sources, places, followed, strict=True):
            if follow:
                product = visit.without_blanks(source, place, product)
        piece = points.part(part).times(1 / sum(followed))
        winner = product.argmax(1, keepdim=True)
        for source, place, follow in zip(sources, places, followed, strict=True):
            if follow:
                flow.append((source, piece.moved(place.gather(1, winner)[:, 0])))
    return flow


@rule(aten.scaled_dot_product_attention.default, keeps=("query", "key", "value", "attn_mask"))
def strongest_value(visit: Visit, points: Points) -> Flow:
    """Go to the token whose attention times value is largest, and there to the value; ties to the lowest token.

    The attention is computed again, for the queries of the points alone. Heads may share keys and values: all of them,
    or so many in a row (grouped queries). Mass: kept whole.
    """
    query, key, value = (visit.tensor(name) for name in ("query", "key", "value"))
    scale = visit.plain("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = visit.tensor("attn_mask") if visit.arguments["attn_mask"] is not None else None
    token = torch.arange(key.shape[-2], device=key.device)
    looking = torch.div(points.index, visit.shape[-1], rounding_mode="floor")
    feature = points.index - looking * visit.shape[-1]
    query_at, which = torch.unique(looking, return_inverse=True)
    place = unravel(query_at, visit.shape[:-1])
    attention = torch.empty(len(query_at), len(token), device=query.device)
    for part in parts(len(query_at), key[0, 0].numel()):
        own = tuple(at[part] for at in place)
        of_key, of_query = (tuple(_own(list(own[:-1]), matrix, visit.shape)) for matrix in (key, query))
        score = (key[of_key] @ query[(*of_query, own[-1])][:, :, None])[:, :, 0].float() * scale
        if visit.plain("is_causal"):
            score = score.masked_fill(token > own[-1][:, None], -torch.inf)
        if mask is not None:
            allowed = mask.expand(*visit.shape[:-1], len(token))[own]
            score = score.masked_fill(~allowed, -torch.inf) if mask.dtype == torch.bool else score + allowed
        attention[part] = score.softmax(1)
    head = _own([at[which] for at in place[:-1]], value, visit.shape)
    by_feature = value.transpose(-1, -2)
    index = torch.empty_like(feature)
    for part in parts(len(points), len(token)):
        own = tuple(at[part, None] for at in (*head, feature))
        candidate = ravel((*own[:-1], token, own[-1]), value.shape)
        product = attention[which[part]] * by_feature[(*own, token)]
        product = visit.without_blanks(visit.source("value"), candidate, product)
        index[part] = candidate.gather(1, product.argmax(1, keepdim=True))[:, 0]
    return [(visit.source("value"), points.moved(index))]


def looked_at(node: fx.Node) -> fx.Node | None:
    """Return the values of which a node's output is a sum, weighed by attention; None for any other operation."""
    if node.target is aten.scaled_dot_product_attention.default:
        return arguments_by_name(node)["value"]  # type: ignore[no-any-return]
    sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
    if node.target not in (aten.matmul.default, aten.bmm.default) or len(sources) != 2:
        return None
    values = [source for source in sources if not _is_attention(source)]
    return values[0] if len(values) == 1 else None


def _is_attention(node: fx.Node) -> bool:
    """Whether a matrix comes from a softmax, changed or reordered or not; from several, if they are mixed."""
    if node.target is aten.softmax.int:
        return True
    # Where nothing may be attended to, programs write zeros: `where(mask, 0, softmax)` has one that is followed.
    sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
    return node.target in _PASSED and bool(sources) and all(_is_attention(source) for source in sources)


def _own(batch: list[Tensor], matrix: Tensor, whole: torch.Size) -> list[Tensor]:
    """Coordinates in the batch dimensions of a matrix, which those of `whole` may share: all, or some in a row."""
    extents = matrix.shape[:-2]
    skipped = len(batch) - len(extents)
    return [
        torch.div(at * extent, of_result, rounding_mode="floor")
        for at, extent, of_result in zip(batch[skipped:], extents, whole[skipped:-2], strict=True)
    ]
