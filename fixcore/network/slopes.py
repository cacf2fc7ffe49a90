"""Slopes: what one more of an operation's inputs would add to a target, by what one more of its output would.

Activations, norms' statistics, gates and attention stand still, as they are for this image (Ali et al., XAI for
Transformers, hold the same still; what an activation makes of an element is a factor): so an element times what one
more of it would add is what it adds, as among vectors, and what comes by several ways is added up.

N images, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fixcore.network.shares import softmax
from fixcore.rules.attention import looked_at
from fixcore.rules.convolution import CONVOLUTIONS
from fixcore.rules.elementwise import LIFTED, PASSES, SCALES, SOFTMAX, factors, turns_round
from fixcore.rules.layout import LAYOUT, RESHAPES, VIEWS
from fixcore.structure import Seen
from fixcore.window import POOLING_SIZES

if TYPE_CHECKING:
    from fixcore.network.graph import Recording

aten = torch.ops.aten

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
_MOVES = (*RESHAPES, *VIEWS, aten.clone.default, aten.dropout.default)
"""Those of them that take or move elements, the same ones of every image."""
ACTIVATIONS = frozenset(PASSES).difference(_LINEAR, SOFTMAX)
"""What makes of each element something by itself that is no multiple of it."""
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SCORES = 1 << 24
"""Scores of attention held at once."""

Passed = list[tuple[fx.Node, Tensor]]


def followed(node: fx.Node, named: Mapping[str, Any]) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Return which sources of a node evidence goes to, and what that reads; None if it is not known here."""
    operation = node.target
    sources = [source for source in node.all_input_nodes if not source.meta["is_constant"]]
    fixed = [source for source in node.all_input_nodes if source.meta["is_constant"]]
    schema = getattr(operation, "_schema", None)
    if not isinstance(node.meta["seen"], Seen) or schema is None or schema.is_mutable:  # what it read is gone
        return None
    if operation is aten.relu.default:  # also where it overwrote what it read
        return sources, [node]
    if operation in CONVOLUTIONS:
        own = [source for source in sources if source is named["input"]]
        return (own, [named["weight"]]) if own == sources else None
    if operation is aten.max_pool2d.default:
        return sources, sources
    if operation in _LINEAR:
        return sources, fixed
    if operation is aten.linear.default or operation is aten.layer_norm.default:
        (source, *others) = sources
        return None if others or source is not named["input"] else ([source], node.all_input_nodes)
    if operation is aten.batch_norm.default:
        return None if named["training"] or named["running_var"] is None else ([named["input"]], fixed)
    if operation in ACTIVATIONS:
        return (sources, node.all_input_nodes) if len(sources) == 1 else None
    if operation is aten.mul.Tensor:
        return factors(sources, _held, net=True), node.all_input_nodes
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


def passed(
    recording: Recording, node: fx.Node, sources: list[fx.Node], above: Tensor, part: slice = slice(None)
) -> Passed:
    """Return what one more of each element of `sources` would add, by what one more of the output's would, `above`.

    `sources` are those that `followed` names; all tensors are float32, of the shapes that were recorded. Of a linear
    layer's output `above` is 0 but for `part` of the features.
    """
    operation, named, values = node.target, recording.graph.arguments[node], recording.values
    if operation is aten.add.Tensor and _adds_alike(recording, named, sources, above):
        return [(source, above) for source in sources]
    if operation in _LINEAR:
        return _by_slope(recording, node, sources, above)
    (source, *_) = sources
    if operation in (aten.relu.default, aten.relu_.default):
        return [(source, above * (values[node] > 0))]
    if operation in CONVOLUTIONS:
        return [(source, _behind_convolution(recording, node, source, above))]
    if operation is aten.max_pool2d.default:
        return [(source, _behind_maximum(recording, node, source, above))]
    if operation is aten.linear.default:
        weight = values[named["weight"]][part]
        return [(source, (above[..., part].to(weight.dtype) @ weight).float())]
    if operation is aten.layer_norm.default:
        return [(source, _behind_norm(values, named, above))]
    if operation is aten.batch_norm.default:
        scale = (values[named["running_var"]].float() + named["eps"]).rsqrt()
        scale = scale if named["weight"] is None else scale * values[named["weight"]].float()
        return [(source, above * scale.view(-1, *[1] * (above.dim() - 2)))]
    if operation in ACTIVATIONS:
        return [(source, _behind_activation(recording, node, source, above))]
    if operation is aten.scaled_dot_product_attention.default:
        return [(source, _behind_attention(recording, named, above))]
    if operation is aten.div.Tensor:
        return [(source, _summed(above / _value(values, named["other"]), recording.shapes[source]))]
    left, right = _factors(named)
    found: Passed = []
    for source in sources:
        other = _value(values, right if source is left else left)
        if operation is aten.mul.Tensor:
            own = above * other
        elif source is left:
            own = above @ other.transpose(-1, -2)
        else:
            own = other.transpose(-1, -2) @ above
        own = _summed(own, recording.shapes[source])
        found.append((source, own if len(sources) == 1 else own / len(sources)))
    return found


def _adds_alike(recording: Recording, named: Mapping[str, Any], sources: list[fx.Node], above: Tensor) -> bool:
    """Whether a sum passes on to each source what it was given: none is scaled, repeated, or added to itself."""
    alike = all(recording.shapes[source] == above.shape for source in sources)
    return alike and named["alpha"] == 1 and named["self"] is not named["other"]


def reached(
    recording: Recording, node: fx.Node, sources: list[fx.Node], above: Tensor | None
) -> list[tuple[fx.Node, Tensor | None]]:
    """Return which elements of `sources` evidence comes to at all, by which of the output's it does, `above`.

    Bool, of the shapes that were recorded; None where it may be all of them.
    """
    shapes = recording.shapes
    takes = any(shapes[source].numel() > shapes[node].numel() for source in sources)
    if node.target not in _MOVES or (above is None and not takes):
        return [(source, None) for source in sources]
    every = torch.ones((), device=recording.logits.device).expand(shapes[node])
    marked = _by_slope(recording, node, sources, every if above is None else above.float())
    return [(source, own != 0) for source, own in marked]


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


def _behind_convolution(recording: Recording, node: fx.Node, source: fx.Node, above: Tensor) -> Tensor:
    named, weight = recording.graph.arguments[node], recording.values[recording.graph.arguments[node]["weight"]]
    dilation, padding = named["dilation"], named["padding"]
    if isinstance(padding, str):
        around = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same" and any(cells % 2 for cells in around):  # torch pads the odd one at the end
            return _by_slope(recording, node, [source], above)[0][1]
        padding = [cells // 2 if padding == "same" else 0 for cells in around]
    shape = recording.shapes[source]
    # Only its sizes are read; one that is expanded would be written out, and be laid out as weights are not.
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    blank = torch.empty(shape, dtype=weight.dtype, device=above.device, memory_format=layout)
    slope, *_ = aten.convolution_backward(
        above.to(weight.dtype), blank, weight, None, named["stride"], padding, dilation, False, [0, 0],
        named["groups"], (True, False, False),
    )  # fmt: skip
    return slope.float()  # type: ignore[no-any-return]


def _behind_maximum(recording: Recording, node: fx.Node, source: fx.Node, above: Tensor) -> Tensor:
    sizes = [recording.graph.arguments[node][name] for name in (*POOLING_SIZES, "ceil_mode")]
    value = recording.values[source].float()
    _, winner = aten.max_pool2d_with_indices(value, *sizes)
    slope: Tensor = aten.max_pool2d_with_indices_backward(above, value, *sizes, winner)
    return slope


def _behind_norm(values: Mapping[fx.Node, Any], named: Mapping[str, Any], above: Tensor) -> Tensor:
    """A layer norm whose statistics stand still: a scale, less the mean's part."""
    dims = tuple(range(-len(named["normalized_shape"]), 0))
    *_, scale = torch.native_layer_norm(values[named["input"]], named["normalized_shape"], None, None, named["eps"])
    pull = above * (scale.float() if named["weight"] is None else values[named["weight"]].float())
    pull = pull if named["weight"] is None else pull.mul_(scale.float())
    return pull.sub_(pull.mean(dims, keepdim=True))


def _behind_activation(recording: Recording, node: fx.Node, source: fx.Node, above: Tensor) -> Tensor:
    """What an activation makes of each element by the element itself; of sigmoid(x) what it has beyond sigmoid(0)."""
    operation: Callable[..., Tensor] = node.target  # type: ignore[assignment]
    named, values, value = recording.graph.arguments[node], recording.values, recording.values[source]
    share = operation(**fx.node.map_arg(named, values.__getitem__)).float()
    if turns_round(node):
        share = -share
    if operation in LIFTED:
        others = {**values, source: value.new_zeros(())}
        lift = operation(**fx.node.map_arg(named, others.__getitem__))
        share = share - lift if bool(lift != 0) else share
    own = share.data_ptr() != value.data_ptr()  # not what was recorded, which some operations hand through
    share = share.mul_(above) if own else share * above
    return share.div_(value.float()).masked_fill_(value == 0, 0.0)


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
        found.append(softmax(score, -1).transpose(-1, -2) @ above[part])
    pull = torch.cat(found)
    return pull.view(*shape[:-2], repeats, *shape[-2:]).sum(-3) if repeats > 1 else pull
