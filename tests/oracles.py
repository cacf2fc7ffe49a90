"""Slow, obvious versions of every rule and of the whole walk, written from the paper's text with nested loops.

An oracle answers for ONE output element: which elements of which argument the mass goes to. Tensors are plain
nested indexing; nothing here is shared with the package except the choice of options.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx

from fixcore.rules.table import Options

aten = torch.ops.aten

Arrow = dict[tuple[str, tuple[int, ...]], float]
"""(argument name, element) -> share of the mass."""

Oracle = Callable[[dict[str, Any], tuple[int, ...], Options], Arrow]

ORACLES: dict[Any, Oracle] = {}
HALF = Fraction(1, 2)


def oracle(*operations: Any) -> Callable[[Oracle], Oracle]:
    def register(function: Oracle) -> Oracle:
        for operation in operations:
            ORACLES[operation] = function
        return function

    return register


def first_best(candidates: list[tuple[Any, float]]) -> Any:
    """The candidate with the largest value; of equal ones the first."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate[1] > best[1]:
            best = candidate
    return best[0]


def exciting(products: list[tuple[Any, float]]) -> dict[Any, float]:
    """Algorithm 1: the inputs with a positive product."""
    positive = [(key, value) for key, value in products if value > 0]
    if not positive:
        return {first_best(products): 1.0}
    total = sum(value for _, value in positive)
    return {key: value / total for key, value in positive}


def pair(value: Any) -> tuple[int, int]:
    listed = list(value)
    return (listed[0], listed[0]) if len(listed) == 1 else (listed[0], listed[1])


@oracle(aten.conv2d.default, aten.conv2d.padding)
def convolution(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    image, weight = given["input"], given["weight"]
    n, out_channel, out_row, out_col = at
    stride, dilation = pair(given["stride"]), pair(given["dilation"])
    kernel = tuple(weight.shape[2:])
    if isinstance(given["padding"], str):
        padding = (0, 0)
        if given["padding"] == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        padding = pair(given["padding"])
    height, width = image.shape[2:]
    group = out_channel // (weight.shape[0] // given["groups"])
    channels = range(group * weight.shape[1], (group + 1) * weight.shape[1])

    def taps(channel: int) -> list[tuple[tuple[int, int], float]]:
        found = []
        for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
            row = out_row * stride[0] - padding[0] + i * dilation[0]
            col = out_col * stride[1] - padding[1] + j * dilation[1]
            if 0 <= row < height and 0 <= col < width:
                own = weight[out_channel, channel - channels.start, i, j]
                found.append(((row, col), float(image[n, channel, row, col] * own)))
        return found

    one_place = given["result"].shape[2:] == (1, 1)
    seen = {place for place, _ in taps(channels.start)}
    if one_place and len(seen) == height * width:  # it sees all there is: a linear layer
        products = [((place, channel), value) for channel in channels for place, value in taps(channel)]
        chosen = exciting(products)
        return {("input", (n, channel, *place)): share for (place, channel), share in chosen.items()}
    winner = first_best([(channel, sum(value for _, value in taps(channel))) for channel in channels])
    if options.location == "argmax":
        return {("input", (n, winner, *first_best(taps(winner)))): 1.0}
    centre = []
    for axis, out in enumerate((out_row, out_col)):
        middle = out * stride[axis] - padding[axis] + dilation[axis] * (kernel[axis] - 1) // 2
        centre.append(min(max(middle, 0), image.shape[2 + axis] - 1))
    return {("input", (n, winner, *centre)): 1.0}


@oracle(aten.conv_transpose2d.input)
def transposed_convolution(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    """Each cell adds its value times the kernel from `cell * stride - padding` on; between cells lie zeros."""
    image, weight = given["input"], given["weight"]
    n, out_channel, *out = at
    stride, padding, dilation = (pair(given[name]) for name in ("stride", "padding", "dilation"))
    extent, kernel = image.shape[2:], tuple(weight.shape[2:])
    of_group = weight.shape[0] // given["groups"]
    first = out_channel // weight.shape[1] * of_group
    reach = [[(extent[a] - 1) * stride[a] + 1, dilation[a] * (kernel[a] - 1)] for a in (0, 1)]

    def added(channel: int) -> list[tuple[tuple[int, int], float]]:
        """What lies under the mirrored kernel, from the upper left on: a cell's product, or nothing."""
        found = []
        for tap in itertools.product(*(range(side - 1, -1, -1) for side in kernel)):
            row, col = (out[a] + padding[a] - tap[a] * dilation[a] for a in (0, 1))
            if 0 <= row < reach[0][0] and 0 <= col < reach[1][0]:
                value = 0.0
                if row % stride[0] == 0 and col % stride[1] == 0:
                    own = weight[channel, out_channel % weight.shape[1], *tap]
                    value = float(image[n, channel, row // stride[0], col // stride[1]] * own)
                found.append(((row, col), value))
        return found

    channels = range(first, first + of_group)
    winner = first_best([(channel, sum(value for _, value in added(channel))) for channel in channels])
    middle = [out[a] + padding[a] - reach[a][1] + reach[a][1] // 2 for a in (0, 1)]
    place = [min(max(middle[a], 0), reach[a][0] - 1) for a in (0, 1)]
    if options.location == "argmax":  # under a kernel that lies off the map: nearest to its upper left
        corner = [min(max(out[a] + padding[a] - reach[a][1], 0), reach[a][0] - 1) for a in (0, 1)]
        place = list(first_best(added(winner))) if added(winner) else corner
    cell = [min((place[a] + stride[a] // 2) // stride[a], extent[a] - 1) for a in (0, 1)]
    return {("input", (n, winner, *cell)): 1.0}


@oracle(aten.im2col.default)
def patches(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    n, element, patch = at
    for channel, tap, number, row, col in every_patch(given, given["self"].shape[2:], given["self"].shape[1]):
        if (tap, number) == (element, patch):
            height, width = given["self"].shape[2:]
            row, col = min(max(row, 0), height - 1), min(max(col, 0), width - 1)
            return {("self", (n, channel, row, col)): 1.0}
    raise AssertionError("in no patch")


@oracle(aten.col2im.default)
def patches_together(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    n, *pixel = at
    extent, channels = given["result"].shape[2:], given["result"].shape[1]
    terms = [
        ((n, tap, number), float(given["self"][n, tap, number]))
        for channel, tap, number, row, col in every_patch(given, extent, channels)
        if [channel, row, col] == pixel
    ]
    return {("self", first_best(terms)): 1.0}


def every_patch(given: dict[str, Any], extent: Any, channels: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Channel, element of the patch, number of the patch, row and column of every element of every patch."""
    kernel, dilation, padding, stride = (pair(given[name]) for name in ("kernel_size", "dilation", "padding", "stride"))
    first: list[list[int]] = []
    for axis in (0, 1):
        last = extent[axis] + padding[axis] - dilation[axis] * (kernel[axis] - 1)
        first.append(list(range(-padding[axis], last, stride[axis])))
    for element, (channel, i, j) in enumerate(itertools.product(range(channels), range(kernel[0]), range(kernel[1]))):
        for number, (row, col) in enumerate(itertools.product(*first)):
            yield channel, element, number, row + i * dilation[0], col + j * dilation[1]


@oracle(aten.slice_scatter.default, aten.select_scatter.default)
def overwritten(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    dim = given["dim"] % len(at)
    places = list(range(given["self"].shape[dim]))
    if "index" in given:
        return {("src", (*at[:dim], *at[dim + 1 :])): 1.0} if at[dim] == places[given["index"]] else {("self", at): 1.0}
    written = places[given["start"] : given["end"] : given["step"]]
    if at[dim] not in written:
        return {("self", at): 1.0}
    return {("src", (*at[:dim], written.index(at[dim]), *at[dim + 1 :])): 1.0}


@oracle(aten.linear.default)
def linear(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    values, weight = given["input"], given["weight"]
    *token, neuron = at
    products = [(i, float(values[(*token, i)] * weight[neuron, i])) for i in range(weight.shape[1])]
    if values.dim() > 2 or (options.fc_to_map == "argmax" and given["from_map"]):
        return {("input", (*token, first_best(products))): 1.0}
    return {("input", (*token, i)): share for i, share in exciting(products).items()}


@oracle(aten.max_pool2d.default)
def max_pool(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    image = given["self"]
    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"] or kernel)
    padding, dilation = pair(given["padding"]), pair(given["dilation"])
    n, channel, out_row, out_col = at
    cells = []
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        row = out_row * stride[0] - padding[0] + i * dilation[0]
        col = out_col * stride[1] - padding[1] + j * dilation[1]
        if 0 <= row < image.shape[2] and 0 <= col < image.shape[3]:
            cells.append(((n, channel, row, col), float(image[n, channel, row, col])))
    return {("self", first_best(cells)): 1.0}


def mean_of(cells: list[tuple[tuple[int, ...], float]], options: Options) -> Arrow:
    if options.average_pool == "argmax":
        return {("self", first_best(cells)): 1.0}
    mean = sum(value for _, value in cells) / len(cells)
    above = [(place, value - mean) for place, value in cells if value > mean]
    if not above:
        return {("self", place): 1 / len(cells) for place, _ in cells}
    total = sum(excess for _, excess in above)
    return {("self", place): excess / total for place, excess in above}


@oracle(aten.avg_pool2d.default)
def average_pool(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    image = given["self"]
    kernel = pair(given["kernel_size"])
    stride = pair(given["stride"] or kernel)
    padding = pair(given["padding"])
    n, channel, out_row, out_col = at
    cells = []
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        row, col = out_row * stride[0] - padding[0] + i, out_col * stride[1] - padding[1] + j
        if 0 <= row < image.shape[2] and 0 <= col < image.shape[3]:
            cells.append(((n, channel, row, col), float(image[n, channel, row, col])))
    return mean_of(cells, options)


@oracle(aten.adaptive_avg_pool2d.default)
def adaptive_average_pool(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    image = given["self"]
    n, channel, out_row, out_col = at
    bounds = []
    for axis, out in ((2, out_row), (3, out_col)):
        extent, outs = image.shape[axis], given["result"].shape[axis]
        bounds.append(range(math.floor(out * extent / outs), math.ceil((out + 1) * extent / outs)))
    cells = [((n, channel, r, c), float(image[n, channel, r, c])) for r, c in itertools.product(*bounds)]
    return mean_of(cells, options)


@oracle(aten.amax.default, aten.logsumexp.default)
def largest(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    return mean(given, at, replace(options, average_pool="argmax"))


@oracle(aten.amin.default)
def smallest(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    return largest({**given, "self": -given["self"]}, at, options)


@oracle(aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction)
def far(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    """A variance is the mean of squared distances; so many times as large they are whole, and ties exact."""
    values = given["self"]
    squares = (values - values.double().mean(given["dim"], keepdim=True)).square()
    count = math.prod(values.shape[d] for d in given["dim"])
    return mean({**given, "self": (squares * count**2).round()}, at, options)


@oracle(aten.linalg_vector_norm.default)
def norm(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    sizes = given["self"].abs()
    if given["ord"] == math.inf:
        return largest({**given, "self": sizes}, at, options)
    if given["ord"] == -math.inf:
        return smallest({**given, "self": sizes}, at, options)
    return mean({**given, "self": sizes ** given["ord"]}, at, options)


@oracle(aten.mean.dim, aten.sum.dim_IntList)
def mean(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    values = given["self"]
    reduced = {d % values.dim() for d in given["dim"]} if given["dim"] else set(range(values.dim()))
    place = list(at)
    if not given["keepdim"]:
        for d in sorted(reduced):
            place.insert(d, 0)
    ranges = [range(values.shape[d]) if d in reduced else [place[d]] for d in range(values.dim())]
    return mean_of([(cell, float(values[cell])) for cell in itertools.product(*ranges)], options)


@oracle(
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.hardswish_.default,
    aten.silu_.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.rrelu.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.threshold.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.log_sigmoid.default,
    aten.tanh.default,
    aten.softplus.default,
    aten.dropout.default,
    aten.neg.default,
    aten.abs.default,
    aten.exp.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.sign.default,
    aten.log.default,
    aten.log1p.default,
    aten.log2.default,
    aten.log10.default,
    aten.exp2.default,
    aten.expm1.default,
    aten.atan.default,
    aten.round.default,
    aten.floor.default,
    aten.ceil.default,
    aten.trunc.default,
    aten.fmod.Scalar,
    aten.remainder.Scalar,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.reciprocal.default,
    aten.pow.Tensor_Scalar,
    aten.pow.Tensor_Tensor,
    aten.rsub.Scalar,
    aten.add.Scalar,
    aten.sub.Scalar,
    aten.mul.Scalar,
    aten.masked_fill.Scalar,
    aten.div.Scalar,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
)
def same(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    return {("self" if "self" in given else "input", at): 1.0}


def broadcast_from(at: tuple[int, ...], shape: torch.Size) -> tuple[int, ...]:
    own = at[len(at) - len(shape) :]
    return tuple(0 if extent == 1 else place for place, extent in zip(own, shape, strict=True))


def operands(given: dict[str, Any]) -> list[str]:
    """Names of the operands that depend on the images, earliest computed first."""
    return [name for name in given["order"] if name in ("self", "other")]


@oracle(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor)
def add(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    sign = -1 if given["operation"] is aten.sub.Tensor else 1
    adds = []
    for name in operands(given):
        place = broadcast_from(at, given[name].shape)
        value = float(given[name][place])
        adds.append(((name, place), value * sign * given["alpha"] if name == "other" else value))
    return {first_best(adds): 1.0}


@oracle(aten.maximum.default, aten.minimum.default)
def taken(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    sign = 1 if given["operation"] is aten.maximum.default else -1
    places = [(name, broadcast_from(at, given[name].shape)) for name in operands(given)]
    return {first_best([((name, place), sign * float(given[name][place])) for name, place in places]): 1.0}


@oracle(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
def choice(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    named = "self" if given["condition"][broadcast_from(at, given["condition"].shape)] else "other"
    name = named if named in operands(given) else operands(given)[0]
    return {(name, broadcast_from(at, given[name].shape)): 1.0}


@oracle(aten.glu.default)
def glu(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    return {("self", at): 1.0}


@oracle(aten.div.Tensor, aten.div.Tensor_mode)
def div(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    name = "self" if "self" in operands(given) else "other"
    share = -1.0 if name == "other" and given.get("signed", False) else 1.0  # more of it makes less
    return {(name, broadcast_from(at, given[name].shape)): share}


@oracle(aten.matmul.default, aten.bmm.default, aten.mm.default)
def matmul(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    right_name = "other" if "other" in given else "mat2"
    left, right = given["self"], given[right_name]
    *batch, row, col = at

    def within(matrix: torch.Tensor) -> tuple[int, ...]:
        return broadcast_from(tuple(batch), matrix.shape[:-2]) if matrix.dim() > 2 else ()

    terms = []
    for j in range(left.shape[-1]):
        places = {"self": (*within(left), row, j), right_name: (*within(right), j, col)}
        terms.append((places, float(left[places["self"]] * right[places[right_name]])))
    moving = [name for name in given["order"] if name in ("self", right_name)]
    if moving == ["self"] and left.dim() == 2:
        shares = exciting([(places["self"], value) for places, value in terms])
        return {("self", place): share for place, share in shares.items()}
    winner = first_best(terms)
    looking = given.get("looking", [])
    followed = [name for name in moving if name not in looking] if len(looking) == 1 else moving
    return {(name, winner[name]): 1 / len(followed) for name in followed}


@oracle(aten.scaled_dot_product_attention.default)
def attention(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    query, key, value = given["query"], given["key"], given["value"]
    *whole, row, feature = at
    of_query, of_key, head = (
        [place // (extent // own) for place, extent, own in zip(whole, given["result"].shape, part.shape, strict=False)]
        for part in (query, key, value)
    )
    scale = given["scale"] or 1 / math.sqrt(query.shape[-1])
    scores = []
    for token in range(key.shape[-2]):
        score = scale * sum(
            float(query[(*of_query, row, e)] * key[(*of_key, token, e)]) for e in range(query.shape[-1])
        )
        if given["is_causal"] and token > row:
            score = -math.inf
        if given["attn_mask"] is not None:
            allowed = given["attn_mask"][broadcast_from((*whole, row, token), given["attn_mask"].shape)]
            score = (score if allowed else -math.inf) if allowed.dtype == torch.bool else score + float(allowed)
        scores.append(score)
    total = sum(math.exp(score - max(scores)) for score in scores)
    looked = [math.exp(score - max(scores)) / total for score in scores]
    products = [((*head, t, feature), looked[t] * float(value[(*head, t, feature)])) for t in range(len(looked))]
    return {("value", first_best(products)): 1.0}


@oracle(aten.mul.Tensor)
def mul(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    names = operands(given)
    largest = max(given[name].numel() for name in names)
    names = [name for name in names if given[name].numel() == largest]
    names = [name for name in names if name not in given.get("gates", [])] or names
    return {(name, broadcast_from(at, given[name].shape)): 1 / len(names) for name in names}


@oracle(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
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
    aten.roll.default,
    aten.flip.default,
    aten.repeat.default,
    aten.repeat_interleave.self_int,
    aten.tile.default,
    aten.rot90.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.unfold.default,
)
def look_up(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    """Run the operation on a tensor that holds its own positions, and read there."""
    source = given["self"]
    positions = torch.arange(source.numel()).view(source.shape)
    arguments = [positions if name == "self" else given[name] for name in given["names"] if given[name] is not None]
    index = int(given["operation"](*arguments)[at])
    return {("self", tuple(int(i) for i in torch.unravel_index(torch.tensor(index), source.shape))): 1.0}


@oracle(aten.cat.default)
def cat(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    dim = given["dim"] % len(at)
    place, first = at[dim], 0
    for number, part in enumerate(given["tensors"]):
        if place < first + part.shape[dim]:
            own = (*at[:dim], place - first, *at[dim + 1 :])
            return {(f"tensors.{number}", own): 1.0}
        first += part.shape[dim]
    raise AssertionError("outside every part")


@oracle(aten.stack.default)
def stack(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    dim = given["dim"] % len(at)
    return {(f"tensors.{at[dim]}", (*at[:dim], *at[dim + 1 :])): 1.0}


@oracle(aten.pad.default, aten.constant_pad_nd.default)
def pad(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    shape = given["self"].shape
    own = list(at)
    for number in range(len(given["pad"]) // 2):
        axis = len(shape) - 1 - number
        place, last = at[axis] - given["pad"][2 * number], shape[axis] - 1
        mode = given.get("mode", "constant")
        if mode == "circular":
            place %= shape[axis]
        elif mode == "reflect":
            place = last - abs(last - abs(place))
        own[axis] = min(max(place, 0), last)
    return {("self", tuple(own)): 1.0}


@oracle(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec)
def resize(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    """The cell whose centre is nearest; copied by the nearest, the one at or before the place itself."""
    own = list(at)
    for axis in (2, 3):
        extent, out = given["input"].shape[axis], given["result"].shape[axis]
        step = Fraction(extent, out)
        if given["scale_factors"] is not None:
            step = 1 / Fraction(given["scale_factors"][axis - 2])
        if given["operation"] is aten.upsample_nearest2d.vec:
            place = math.floor(at[axis] * step)
        elif given["align_corners"]:
            place = math.floor(at[axis] * (Fraction(extent - 1, out - 1) if out > 1 else 0) + HALF)
        else:
            place = math.floor((at[axis] + HALF) * step)
        own[axis] = min(place, extent - 1)
    return {("input", tuple(own)): 1.0}


@oracle(aten.grid_sampler_2d.default)
def read_at(given: dict[str, Any], at: tuple[int, ...], options: Options) -> Arrow:
    """The cell whose centre is nearest to the place that the grid names; a place beyond the edge is drawn to it."""
    n, channel, row, col = at
    own = [n, channel]
    for axis, along in ((2, 1), (3, 0)):  # a grid names x first
        extent, place = given["input"].shape[axis], Fraction(float(given["grid"][n, row, col, along]))
        place = (place + 1) / 2 * (extent - 1) if given["align_corners"] else ((place + 1) * extent - 1) / 2
        if given["padding_mode"] == 2:  # mirrored at the edges until it lies inside
            low, high = (Fraction(0), Fraction(extent - 1)) if given["align_corners"] else (-HALF, extent - HALF)
            while not low <= place <= high and high > low:
                place = 2 * low - place if place < low else 2 * high - place
        place = min(max(place, Fraction(0)), Fraction(extent - 1))
        nearest = round(place) if given["interpolation_mode"] == 1 else math.floor(place + HALF)
        own.append(nearest)
    return {("input", tuple(own)): 1.0}


def added(given: dict[str, Any], at: tuple[int, ...]) -> Arrow:
    """What each input adds to one element, as a share of it: the element, less what it is with that input at 0.

    An element that is 0 has nothing to share. One more of what a softmax reads counts as one more of what it says.
    """
    whole = float(given["result"][at])
    if whole == 0:
        return {}
    operation = given["operation"]
    if operation in (aten.softmax.int, aten.log_softmax.int):
        return {("self", at): float(given["self"][at]) / whole}
    own = {one.name: given[one.name] for one in operation._schema.arguments}
    own = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in own.items()}

    def element(**changed: torch.Tensor) -> float:
        exact = {**own, **changed}
        exact = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in exact.items()}
        return float(operation(**exact)[at])

    shares = {}
    for name in given["order"]:
        for place in itertools.product(*(range(extent) for extent in given[name].shape)):
            without = own[name].clone()
            without[place] = 0
            share = (element() - element(**{name: without})) / whole
            if share != 0:
                shares[name, place] = share
    return shares


ADDED = frozenset({
    aten.linear.default, aten.conv2d.default, aten.conv2d.padding, aten.mm.default, aten.add.Tensor, aten.add_.Tensor,
    aten.sub.Tensor, aten.rsub.Scalar, aten.add.Scalar, aten.sub.Scalar, aten.sigmoid.default, aten.hardsigmoid.default,
    aten.log_sigmoid.default, aten.softplus.default, aten.exp.default, aten.exp2.default, aten.cos.default,
    aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default, aten.threshold.default, aten.softmax.int,
    aten.log_softmax.int,
})  # fmt: skip
"""Operations of vectors behind which evidence with a sign goes to what added it; behind others as it does without."""


def walk(
    node: fx.Node,
    at: tuple[int, ...],
    mass: float,
    answer: Callable[[fx.Node, tuple[int, ...]], list[tuple[fx.Node, tuple[int, ...], float]]],
) -> dict[tuple[int, ...], float]:
    """Plain recursion from one element to the images: every path on its own, merged only at the end."""
    if node.op == "placeholder":
        return {at: mass}
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for source, place, share in answer(node, at):
        for pixel, part in walk(source, place, mass * share, answer).items():
            found[pixel] += part
    return dict(found)


def told_by_places(masses: dict[tuple[int, ...], float], shape: torch.Size) -> dict[tuple[int, ...], float]:
    """Where vectors end at a map, of one target in one image: the places that add more than the mean of all.

    Each with what it has beyond the mean, at the element that adds most; together they have what speaks for the
    target. A target with one place alone keeps the strongest half. What has cancelled is nowhere.
    """
    axes = {3: (1,), 4: (2, 3)}.get(len(shape), ())
    by_place: dict[tuple[int, ...], dict[tuple[int, ...], float]] = defaultdict(dict)
    least = 1e-6 * max(map(abs, masses.values()), default=0)
    masses = {at: mass for at, mass in sorted(masses.items()) if abs(mass) > least}
    for at, mass in masses.items():
        by_place[tuple(at[axis] for axis in axes)][at] = mass
    speaks = sum(mass for mass in masses.values() if mass > 0)
    if len(by_place) < 2 or speaks == 0:
        return strongest_half(masses)
    (image,) = {at[0] for at in masses}
    for first in itertools.product(*(range(extent) if axis in axes else [0] for axis, extent in enumerate(shape))):
        place = tuple(first[axis] for axis in axes)
        if place not in by_place:  # where no channel adds anything, the first is as good as any
            by_place[place] = {(image, *first[1:]): 0.0}
    level = {place: sum(own.values()) for place, own in by_place.items()}
    mean, size = (sum(map(of, level.values())) / len(level) for of in (float, abs))
    above = {place: value - mean for place, value in level.items() if value - mean > 1e-6 * size}
    return {
        first_best(list(by_place[place].items())): speaks * excess / sum(above.values())
        for place, excess in above.items()
    }


def strongest_half(masses: dict[Any, float]) -> dict[Any, float]:
    """Of all places that speak for a target, the strongest that hold half of the mass; they share it all."""
    spoken = {key: mass for key, mass in masses.items() if mass > 0}
    total = sum(spoken.values())
    kept, held = {}, 0.0
    for key, mass in sorted(spoken.items(), key=lambda item: (-item[1], item[0])):
        if held * 2 >= total * (1 - 1e-6):
            break
        kept[key] = mass
        held += mass
    return {key: mass * total / held for key, mass in kept.items()}


def above_mean(added: Tensor) -> dict[tuple[int, ...], float]:
    """Of what elements of a map (D, H, W) or of tokens (L, D) add: the places that add more than the mean of all.

    Each at its element that adds most (ties to the lowest), with its share of the excess.
    """
    channel = 0 if added.dim() == 3 else 1
    by_place: dict[tuple[int, ...], list[tuple[tuple[int, ...], float]]] = defaultdict(list)
    for at in itertools.product(*map(range, added.shape)):
        place = tuple(own for axis, own in enumerate(at) if axis != channel)
        by_place[place].append((at, float(added[at])))
    level = {place: sum(mass for _, mass in own) for place, own in by_place.items()}
    mean, size = (sum(map(of, level.values())) / len(level) for of in (float, abs))
    excess = {place: value - mean for place, value in level.items() if value - mean > 1e-6 * size}
    return {first_best(by_place[place]): own / sum(excess.values()) for place, own in excess.items()}


ACTIVATIONS = (
    aten.relu.default,
    aten.hardtanh.default,
    aten.gelu.default,
    aten.silu.default,
    aten.tanh.default,
    aten.softplus.default,
    aten.hardswish.default,
)


def added_at(graph: Any, images: Tensor, target: Tensor, at: fx.Node) -> Tensor:
    """What each element of a node adds to its image's target: itself times the target's slope, told by torch."""
    values = values_standing_still(graph, images, at)
    slope = _slope(_asked_for(values[graph.logits], target), values[at])
    return (slope * values[at]).detach()


def added_to_places(graph: Any, images: Tensor, target: Tensor, coarse: fx.Node, fine: fx.Node) -> Tensor:
    """What each element of `fine` adds to what lies above the mean of the class map at `coarse`; 0 if it takes away."""
    own = values_standing_still(graph, images, coarse)
    slope = _slope(_asked_for(own[graph.logits], target), own[coarse])
    values = values_standing_still(graph, images, fine)
    class_map = (slope * values[coarse]).sum(1)
    strong = class_map > class_map.mean((1, 2), keepdim=True)
    return (_slope((class_map * strong).sum(), values[fine]) * values[fine]).clamp(min=0).detach()


def _asked_for(logits: Tensor, target: Tensor) -> Tensor:
    return logits.flatten(1).gather(1, target[:, None]).sum()


def _slope(of: Tensor, by: Tensor) -> Tensor:
    return torch.autograd.grad(of, by, retain_graph=True)[0]


def values_standing_still(graph: Any, images: Tensor, at: fx.Node) -> dict[fx.Node, Any]:
    """The network run from `at` on, so that slopes are those of what stands still.

    Attention and gates stand still, as do norms' statistics; an activation is a factor that stands still, of what it
    has beyond its value at 0. Of two factors, neither of which is a gate, each gets half.
    """
    values: dict[fx.Node, Any] = {**graph.constants, graph.images: images}
    for node in graph.nodes:
        own: Any = node.target
        if not hasattr(own, "_schema"):  # sizes
            values[node] = own(*fx.node.map_arg(node.args, values.__getitem__))
            continue
        named = {name: fx.node.map_arg(value, values.__getitem__) for name, value in graph.arguments[node].items()}
        moves = [name for name in named if isinstance(named[name], Tensor) and named[name].requires_grad]
        if node is at:
            values[node] = own(**named).detach().requires_grad_()
        elif not moves:
            values[node] = own(**named)
        elif own is aten.softmax.int or own in (aten.sigmoid.default, aten.hardsigmoid.default):
            values[node] = own(**named).detach()
        elif own is aten.layer_norm.default:
            dims, x = tuple(range(-len(named["normalized_shape"]), 0)), named["input"]
            spread = (x.detach().var(dims, correction=0, keepdim=True) + named["eps"]).sqrt()
            values[node] = (x - x.mean(dims, keepdim=True)) / spread * named["weight"] + named["bias"]
        elif own is aten.scaled_dot_product_attention.default:
            query, key, value = (named[name] for name in ("query", "key", "value"))
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
            score = query @ key.mT * (query.shape[-1] ** -0.5 if named["scale"] is None else named["scale"])
            if named["is_causal"]:
                score = score + torch.full(score.shape[-2:], -torch.inf).triu(1)
            if named["attn_mask"] is not None:
                mask = named["attn_mask"]
                score = score + (torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask)
            values[node] = score.softmax(-1).detach() @ value
        elif own in (aten.mul.Tensor, aten.matmul.default, aten.bmm.default) and len(moves) == 2:
            left, right = (named[name] for name in moves)
            values[node] = (own(left, right.detach()) + own(left.detach(), right)) / 2
        elif own is aten.div.Tensor:
            values[node] = named["self"] / (named["other"].detach() if "other" in moves else named["other"])
        elif own in ACTIVATIONS:
            (name,) = moves
            nothing = own(**{**named, name: torch.zeros_like(named[name])}).detach()
            factor = ((own(**named) - nothing) / named[name]).detach()
            values[node] = nothing + torch.where(named[name] != 0, named[name] * factor, 0.0)
        else:
            values[node] = own(**named)
    recorded = graph.record(images).logits
    torch.testing.assert_close(values[graph.logits].detach(), recorded, rtol=1e-3, atol=1e-3)
    return values
