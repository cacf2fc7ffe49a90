"""Tokens: what each place of the map that they were made of adds to a target, whatever attention moved where.

Attention carries what a token holds to others: behind a few layers tokens no longer tell where in the image it came
from. So behind the map evidence is followed as among vectors, all of it and with a sign, by what one more of an
element would add: through linear layers by their weights; activations, norms, gates and attention stand still, as they
are for this image (Ali et al., XAI for Transformers; for norms `rules.normalization`). What the elements of a place add
together is a class map. Beyond the paper.

N images, T targets, L places, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.class_map import class_map_points
from fixcore.network.head import Head
from fixcore.points import Points, is_vector
from fixcore.rules.attention import looked_at
from fixcore.rules.elementwise import LIFTED, PASSES, SCALES, SOFTMAX, factors
from fixcore.rules.layout import LAYOUT
from fixcore.structure import Seen

if TYPE_CHECKING:
    from fixcore.network.graph import Recording

aten = torch.ops.aten

_PLACES = {3: (1,), 4: (2, 3)}
"""By the number of a map's dimensions those of its places: tokens (N, L, D), or (N, D, H, W)."""
_LINEAR = LAYOUT.union(SCALES).difference({aten.grid_sampler_2d.default}) | {
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.clone.default,
    aten.dropout.default,
}
"""Operations whose output changes alike with each input, whatever the inputs are."""
_ACTIVATIONS = frozenset(PASSES).difference(_LINEAR, SOFTMAX)
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SCORES = 1 << 24
"""Scores of attention held at once."""

Passed = list[tuple[fx.Node, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The part of a network behind the last map that all evidence passes before tokens mix."""

    begin: fx.Node
    """The features that the head reads, or the logits."""
    map: fx.Node
    """(N, D, H, W) or (N, L, D)."""
    way: tuple[tuple[fx.Node, list[fx.Node]], ...]
    """From `begin` back to before `map`: operations that evidence passes, and those that it goes to from each."""
    kept: frozenset[fx.Node]
    """What the way back reads."""

    @property
    def places(self) -> tuple[int, ...]:
        """Dimensions of the map's places."""
        return _PLACES[len(self.map.meta["seen"].shape)]


def find_tokens(
    nodes: Sequence[fx.Node], arguments: Mapping[fx.Node, Mapping[str, Any]], logits: fx.Node, head: Head | None
) -> Tokens | None:
    """Return the tokens of a network; None where no tokens mix behind the last map, or an operation has no rule here.

    Tokens mix where one attends to others, and where a linear layer reads tokens: there, too, they may stand where
    features stood (mixers).
    """
    begin = logits if head is None else head.map
    while head is None and begin.target in SOFTMAX:
        begin = begin.all_input_nodes[0]
    way: list[tuple[fx.Node, list[fx.Node]]] = []
    kept: set[fx.Node] = set()
    found, mixes = None, False
    waiting = {begin}
    for node in reversed(nodes):
        if node not in waiting:
            continue
        if waiting == {node} and mixes and _is_map(node):
            found = Tokens(begin, node, tuple(way), frozenset(kept))
        entry = _entry(node, arguments[node])
        if entry is None:
            break
        followed, read = entry
        mixes = mixes or looked_at(node) is not None or (node.target is aten.linear.default and not _is_vector(node))
        waiting = (waiting - {node}).union(followed)
        way.append((node, followed))
        kept.update(read)
    return found


def token_points(recording: Recording, tokens: Tokens, image: Tensor, target: Tensor, weight: Tensor | None) -> Points:
    """Return where the walk goes on: at `tokens.map`, the places whose class map lies above its mean.

    `image` and `target`, int64 (T,), say what is explained, with `weight`, (T, D), of the features if `tokens.begin`
    is what the head reads. Each place has the channel that adds most (see `class_map_points`). A target for which
    nothing speaks, or to leave out (-1), has no points. One round for all images, one more for images with two targets.
    """
    asked = (target >= 0).nonzero()[:, 0]
    order = image[asked].argsort(stable=True)
    _, count = torch.unique_consecutive(image[asked][order], return_counts=True)
    first = (count.cumsum(0) - count).repeat_interleave(count)
    turn = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device) - first)
    found = []
    for number in range(int(turn.max()) + 1 if len(turn) else 0):
        own = asked[turn == number]
        pull = _asked(recording, tokens.begin, image[own], target[own], None if weight is None else weight[own])
        added = _pull_at_map(recording, tokens, pull) * recording.values[tokens.map].float()
        speaks = (added > 0).flatten(1).any(1)[image[own]]
        own = own[speaks]
        features = added[0].numel() // math.prod(added.shape[dim] for dim in tokens.places)
        ones = added.new_ones(len(own), features)
        found.append(class_map_points(added, tokens.places, image[own], ones, own))
    nothing = torch.zeros(0, dtype=torch.int64, device=target.device)
    parts = [Points(nothing, nothing, nothing.float()), *found]
    index, trace, mass = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "trace", "mass"))
    return Points(index, trace, mass)


def _asked(recording: Recording, begin: fx.Node, image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """What one more of each element where the way back begins would add to its image's target."""
    head, shape = recording.graph.head, recording.shapes[begin]
    pull = torch.zeros(shape, device=image.device).flatten(1)
    if head is None:
        pull[image, target] = 1.0
    else:
        assert weight is not None
        position = head.position(shape[1:], image.device)
        pull[image[:, None, None], position] = head.on_map(weight).float()[:, None]
    return pull.view(shape)


def _pull_at_map(recording: Recording, tokens: Tokens, pull: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        waiting = {tokens.begin: pull.clone()}
        for node, sources in tokens.way:
            for source, own in _passed(recording, node, sources, waiting.pop(node)):
                waiting[source] = waiting[source] + own if source in waiting else own
    return waiting[tokens.map]


def _is_map(node: fx.Node) -> bool:
    """Whether a node has places that stay as they are recorded."""
    shape = node.meta["seen"].shape
    if node.target in LAYOUT or len(shape) not in _PLACES or None in shape[1:] or _is_vector(node):
        return False
    return not any("self" in user.kwargs or _overwrites(user) for user in node.users)


def _overwrites(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_vector(node: fx.Node) -> bool:
    return is_vector(node.meta["seen"].shape)


def _entry(node: fx.Node, named: Mapping[str, Any]) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Which sources of a node its evidence goes to, and what that reads; None if it is not known here."""
    operation = node.target
    sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
    fixed = [source for source in node.all_input_nodes if source.meta["is_constant"]]
    if not isinstance(node.meta["seen"], Seen) or _overwrites(node):
        return None
    if operation in _LINEAR:
        return sources, fixed
    if operation is aten.linear.default or operation is aten.layer_norm.default:
        (source, *others) = sources
        return None if others or source is not named["input"] else ([source], node.all_input_nodes)
    if operation is aten.batch_norm.default:
        return None if named["training"] or named["running_var"] is None else ([named["input"]], fixed)
    if operation in _ACTIVATIONS:
        return (sources, node.all_input_nodes) if len(sources) == 1 else None
    if operation is aten.mul.Tensor:
        followed = factors(sources, _held, net=True)
        return followed, node.all_input_nodes
    if operation is aten.div.Tensor:
        return ([named["self"]], node.all_input_nodes) if named["self"] in sources else None
    if operation in _PRODUCTS and all(len(source.meta["seen"].shape) > 1 for source in node.all_input_nodes):
        values = looked_at(node)
        return (sources if values is None else [values]), node.all_input_nodes
    if operation is aten.scaled_dot_product_attention.default and not named["value"].meta["is_constant"]:
        read = [named[name] for name in ("query", "key", "attn_mask") if named[name] is not None]
        return [named["value"]], read
    return None


def _held(node: fx.Node) -> int:
    return math.prod(extent for extent in node.meta["seen"].shape if extent is not None)


def _passed(recording: Recording, node: fx.Node, sources: list[fx.Node], above: Tensor) -> Passed:
    """Say what one more of each input's elements would add, by what one more of the output's would."""
    operation, named, values = node.target, recording.graph.arguments[node], recording.values
    if operation in _LINEAR:
        return _by_slope(recording, node, sources, above)
    (source, *_) = sources
    if operation is aten.linear.default:
        weight = values[named["weight"]]
        return [(source, (above.to(weight.dtype) @ weight).float())]
    if operation is aten.layer_norm.default:
        return [(source, _behind_norm(values, named, above))]
    if operation is aten.batch_norm.default:
        scale = (values[named["running_var"]].float() + named["eps"]).rsqrt()
        scale = scale if named["weight"] is None else scale * values[named["weight"]].float()
        return [(source, above * scale.view(-1, *[1] * (above.dim() - 2)))]
    if operation in _ACTIVATIONS:
        return [(source, above * _kept_share(node, named, values, source))]
    if operation is aten.scaled_dot_product_attention.default:
        return [(source, _behind_attention(recording, named, above))]
    if operation is aten.div.Tensor:
        return [(source, _summed(above / _value(values, named["other"]), recording.shapes[source]))]
    left, right = _factors(named)
    passed = []
    for source in sources:
        other = _value(values, right if source is left else left)
        if operation is aten.mul.Tensor:
            own = above * other
        elif source is left:
            own = above @ other.transpose(-1, -2)
        else:
            own = other.transpose(-1, -2) @ above
        passed.append((source, _summed(own, recording.shapes[source]) / len(sources)))
    return passed


def _factors(named: Mapping[str, Any]) -> tuple[Any, Any]:
    return named["self"], named["other"] if "other" in named else named["mat2"]


def _value(values: Mapping[fx.Node, Any], value: Any) -> Any:
    found = values[value] if isinstance(value, fx.Node) else value
    return found.float() if isinstance(found, Tensor) else found


def _summed(pull: Tensor, shape: torch.Size) -> Tensor:
    return pull.sum_to_size(shape) if pull.shape != shape else pull


def _by_slope(recording: Recording, node: fx.Node, sources: list[fx.Node], above: Tensor) -> Passed:
    """Ask torch how the output changes with the inputs, which here does not depend on what they are."""
    blank = {source: above.new_zeros(()).expand(recording.shapes[source]).requires_grad_() for source in sources}

    def given(source: fx.Node) -> Any:
        if source in blank:
            return blank[source]
        value = recording.values[source]
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    operation: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    with torch.enable_grad():
        result = operation(**fx.node.map_arg(recording.graph.arguments[node], given))
        slopes = torch.autograd.grad(result, list(blank.values()), above.to(result.dtype))
    return [(source, slope.float()) for source, slope in zip(sources, slopes, strict=True)]


def _behind_norm(values: Mapping[fx.Node, Any], named: Mapping[str, Any], above: Tensor) -> Tensor:
    """A layer norm whose statistics stand still: a scale, less the mean's part."""
    dims = tuple(range(-len(named["normalized_shape"]), 0))
    *_, scale = torch.native_layer_norm(values[named["input"]], named["normalized_shape"], None, None, named["eps"])
    pull = above if named["weight"] is None else above * values[named["weight"]].float()
    pull = pull * scale.float()
    return pull - pull.mean(dims, keepdim=True)


def _kept_share(node: fx.Node, named: Mapping[str, Any], values: Mapping[fx.Node, Any], source: fx.Node) -> Tensor:
    """What an activation makes of each element by the element itself; of sigmoid(x) what it has beyond sigmoid(0)."""
    operation: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    value = values[source]
    result = operation(**fx.node.map_arg(named, values.__getitem__)).float()
    if node.target in LIFTED:
        others = {**values, source: value.new_zeros(())}
        result = result - operation(**fx.node.map_arg(named, others.__getitem__))
    return torch.where(value != 0, result / value.float(), 0.0)


def _behind_attention(recording: Recording, named: Mapping[str, Any], above: Tensor) -> Tensor:
    """What one more of each value would add to where it was looked at; heads may share keys and values."""
    query, key = (recording.values[named[name]] for name in ("query", "key"))
    mask = None if named["attn_mask"] is None else recording.values[named["attn_mask"]]
    shape = recording.shapes[named["value"]]
    scale = 1 / math.sqrt(query.shape[-1]) if named["scale"] is None else named["scale"]
    repeats = query.shape[-3] // shape[-3] if query.dim() > 3 else 1
    key = key.repeat_interleave(repeats, -3) if repeats > 1 else key
    if mask is not None:
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    found = []
    step = max(1, _SCORES // max(1, query[0, ..., 0].numel() * key.shape[-2]))
    for begin in range(0, len(query), step):
        part = slice(begin, begin + step)
        score = (query[part] @ key[part].transpose(-1, -2)).float() * scale
        if named["is_causal"]:
            later = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).triu(1)
            score = score.masked_fill(later, -torch.inf)
        if mask is not None:
            score = score.masked_fill(~mask[part], -torch.inf) if mask.dtype == torch.bool else score + mask[part]
        found.append(score.softmax(-1).transpose(-1, -2) @ above[part])
    pull = torch.cat(found)
    return pull.view(*shape[:-2], repeats, *shape[-2:]).sum(-3) if repeats > 1 else pull
