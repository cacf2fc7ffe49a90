"""Networks as people write them: the same thing in other words is traced alike, and what is common is traced at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fixcore

aten = torch.ops.aten

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 1, 2])


KERNEL = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1))
SCALE = torch.rand(8, 1, 1, generator=torch.Generator().manual_seed(2)) + 1
RAMP = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(3))
SPREAD = 3 * torch.eye(8)[:, :, None, None].expand(8, 8, 2, 2)


def written(values: Tensor, where: slice | int) -> Tensor:
    """The last channels, written over others."""
    values = values.clone()
    values[:, where] = values[:, 5:] if isinstance(where, slice) else values[:, -1]
    return values


THIRDS = torch.tensor([[0, 1, 2, 2], [2, 3, 4, 5], [5, 6, 7, 7]])
"""Rows of an adaptive pool from 8 to 3, from floor(i * 8 / 3) to ceil((i + 1) * 8 / 3)."""


def standardised(values: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
    return (values - mean[:, None]) * torch.rsqrt(variance[:, None] + 1e-6)


def grid(values: Tensor, zoom: float) -> Tensor:
    """Where a spatial transformer reads a map: as it is, or left and right changed."""
    transform = torch.tensor([[[zoom, 0.0, 0.0], [0.0, 1.0, 0.0]]]).expand(values.shape[0], 2, 3)
    return functional.affine_grid(transform, list(values.shape), align_corners=False)


class Does(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


class StandardisedByNorm(nn.Conv2d):
    """Weights standardised by a batch norm of the filters, as in many published networks."""

    def forward(self, images: Tensor) -> Tensor:
        filters = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(filters, None, None, training=True, momentum=0.0, eps=1e-6)
        return functional.conv2d(images, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class StandardisedByHand(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-6).sqrt()
        return functional.conv2d(images, weight, self.bias, self.stride, self.padding)


def network(middle: nn.Module) -> nn.Module:
    """Return a small classifier of 5 with `middle` between a convolution's 8 x 8 cells and the head."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), middle, nn.Flatten()).eval()
    with torch.no_grad():
        return nn.Sequential(body, nn.Linear(body(IMAGES).shape[1], 5)).eval()


def traced(model: nn.Module) -> fixcore.Fixations:
    graph = fixcore.capture(model, IMAGES)
    recording = graph.record(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(recording.logits, model(IMAGES), rtol=1e-4, atol=1e-5)
    return fixcore.backtrack(recording, TARGET)


@pytest.mark.parametrize(
    ("written", "otherwise"),
    [
        (Does(lambda x: functional.adaptive_max_pool2d(x, 1)), Does(lambda x: x.amax((2, 3), keepdim=True))),
        (nn.AdaptiveMaxPool2d((2, 4)), nn.MaxPool2d((4, 2))),
        (Does(lambda x: x.flatten(2).max(2).values), Does(lambda x: x.amax((2, 3)))),
        (Does(lambda x: x.max(2, keepdim=True)[0].max(3, keepdim=True)[0]), nn.MaxPool2d(8)),
        (Does(lambda x: functional.max_pool2d(x, 3, 2, 1, return_indices=True)[0]), nn.MaxPool2d(3, 2, 1)),
        (nn.ReflectionPad2d(0), nn.Identity()),
        (nn.Upsample(scale_factor=2), Does(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3))),
        (Does(lambda x: 1 - x), Does(lambda x: -x + 1)),
        (Does(lambda x: functional.relu6(9 * x - 1)), Does(lambda x: (9 * x - 1).clamp(0, 6))),
        (Does(lambda x: x.clamp_max(0.5)), Does(lambda x: x.clamp(max=0.5))),
        (Does(lambda x: torch.max(x, x.flip(3))), Does(lambda x: torch.maximum(x, x.flip(3)))),
        (Does(lambda x: torch.min(x, x.flip(3))), Does(lambda x: torch.minimum(x, x.flip(3)))),
        (Does(torch.square), Does(lambda x: x**2)),
        (Does(lambda x: x * functional.relu6(x + 3) / 6), Does(lambda x: x * (x + 3).clamp(0, 6) / 6)),
        (nn.AdaptiveAvgPool2d(1), Does(lambda x: functional.adaptive_avg_pool1d(x.flatten(2), 1))),
        (nn.AdaptiveAvgPool2d(1), Does(lambda x: functional.adaptive_avg_pool3d(x[:, :, None], (1, 1, 1)))),
        (nn.ReLU(), Does(lambda x: torch.where(x > 0, x, 0.0))),
        (Does(lambda x: torch.where(x > 0.2, x, x.flip(3))), Does(lambda x: torch.where(x <= 0.2, x.flip(3), x))),
        (
            Does(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid().expand_as(x)),
            Does(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
        ),
        (StandardisedByNorm(8, 8, 3, padding=1), StandardisedByHand(8, 8, 3, padding=1)),
        (
            Does(lambda x: functional.conv1d(x.flatten(2), KERNEL, None, 2, 1, groups=2)),
            Does(lambda x: functional.conv2d(x.flatten(2)[:, :, None], KERNEL[:, :, None], None, (1, 2), (0, 1), 1, 2)),
        ),
        (
            Does(lambda x: functional.conv1d(x.flatten(2), KERNEL, torch.ones(6), padding="same", groups=2)),
            Does(lambda x: functional.conv1d(x.flatten(2), KERNEL, torch.ones(6), padding=1, groups=2)),
        ),
        (nn.Sequential(nn.Flatten(2), nn.AvgPool1d(4)), nn.Sequential(nn.AvgPool2d((1, 4)), nn.Flatten(2))),
        (nn.Sequential(nn.Flatten(2), nn.MaxPool1d(4, 4)), nn.Sequential(nn.MaxPool2d((1, 4)), nn.Flatten(2))),
        (Does(lambda x: torch.addcmul(x, x.flip(3), SCALE, value=2)), Does(lambda x: x + 2 * (x.flip(3) * SCALE))),
        (Does(lambda x: torch.addcdiv(x, x.flip(3), SCALE)), Does(lambda x: x + x.flip(3) / SCALE)),
        (Does(lambda x: written(x, slice(2, 5))), Does(lambda x: torch.cat([x[:, :2], x[:, 5:], x[:, 5:]], 1))),
        (Does(lambda x: written(x, 3)), Does(lambda x: torch.cat([x[:, :3], x[:, -1:], x[:, 4:]], 1))),
        (
            Does(lambda x: functional.fold(functional.unfold(x, 2, stride=2), (8, 8), 2, stride=2)),
            nn.Identity(),
        ),
        (
            Does(lambda x: functional.conv_transpose2d(x, SPREAD, stride=2)),
            Does(lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3),
        ),
        (nn.AdaptiveMaxPool2d((3, 2)), Does(lambda x: x[:, :, THIRDS].unflatten(4, (2, 4)).amax((3, 5)))),
        (
            Does(lambda x: functional.adaptive_max_pool1d(x.flatten(2), 4)),
            nn.Sequential(nn.Flatten(2), nn.MaxPool1d(16)),
        ),
        (Does(lambda x: x.flatten(2).topk(5)[0]), Does(lambda x: x.flatten(2).sort(2, descending=True)[0][..., :5])),
        (
            Does(lambda x: x.flatten(2).topk(5, 1).values),
            Does(lambda x: torch.gather(x, 1, x.topk(5, 1)[1]).flatten(2)),
        ),
        (
            Does(lambda x: (x + RAMP).flatten(2).kthvalue(9, 2)[0]),
            Does(lambda x: (x + RAMP).flatten(2).sort(2)[0][..., 8]),
        ),
        (Does(lambda x: (x + RAMP).median(1, True)[0]), Does(lambda x: (x + RAMP).sort(dim=1, stable=True)[0][:, 3:4])),
        (Does(lambda x: x.flatten(2).cummax(2)[0][..., -1]), Does(lambda x: x.amax((2, 3)))),
        (Does(lambda x: x.flatten(2).min(2).values), Does(lambda x: -(-x).amax((2, 3)))),
        (Does(lambda x: x.amin((2, 3))), Does(lambda x: -(-x).amax((2, 3)))),
        (Does(lambda x: standardised(x, *torch.var_mean(x, 1))), Does(lambda x: standardised(x, x.var(1), x.mean(1)))),
        (Does(lambda x: torch.linalg.vector_norm(x, dim=3)), Does(lambda x: x.square().sum(3).sqrt())),
        (Does(lambda x: torch.std_mean(x, (2, 3))[0]), Does(lambda x: x.std((2, 3)))),
        (Does(lambda x: functional.grid_sample(x, grid(x, 1.0), align_corners=False)), nn.Identity()),
        (Does(lambda x: functional.grid_sample(x, grid(x, -1.0), align_corners=False)), Does(lambda x: x.flip(3))),
        (Does(lambda x: torch.lerp(x, x.flip(3), 0.25)), Does(lambda x: x + 0.25 * (x.flip(3) - x))),
        (
            Does(lambda x: torch.baddbmm(torch.ones(1, 4, 1), x.flatten(2)[:, :4], x.flatten(2)[:, 4:].mT)),
            Does(lambda x: torch.bmm(x.flatten(2)[:, :4], x.flatten(2)[:, 4:].mT) + 1),
        ),
        (Does(lambda x: x.view(len(x), 4, 2, 8, 8).amax(2)), Does(lambda x: x.unflatten(1, (4, 2)).amax(2))),
        (
            Does(lambda x: x * torch.linalg.vector_norm(x, dim=1, keepdim=True)),
            Does(lambda x: x * x.norm(dim=1, keepdim=True)),
        ),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_same_in_other_words_is_traced_alike(written: nn.Module, otherwise: nn.Module) -> None:
    otherwise.load_state_dict(written.state_dict())
    one, other = traced(network(written)), traced(network(otherwise))
    for name in ("image", "row", "col"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.mass, other.mass)


GATED = {
    "silu": (nn.SiLU(), Does(lambda x: x * torch.sigmoid(x))),
    "hardswish": (nn.Hardswish(), Does(lambda x: x * functional.relu6(x + 3) / 6)),
    "mish": (nn.Mish(), Does(lambda x: x * torch.tanh(functional.softplus(x)))),
    "gelu": (nn.GELU(), Does(lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)))),
    "gelu, scaled last": (nn.GELU(), Does(lambda x: x * (1 + torch.erf(x / 2**0.5)) * 0.5)),
    "gelu by tanh": (
        nn.GELU("tanh"),
        Does(lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
    ),
    "gelu by tanh of products": (
        nn.GELU("tanh"),
        Does(lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * x * (1 + 0.044715 * x * x)))),
    ),
}


@pytest.mark.parametrize("name", GATED)
def test_what_gates_itself_is_an_activation_on_vectors_too(name: str) -> None:
    """A vector's neurons are also followed for being low, and a gate of its own turns nothing round."""
    with torch.no_grad():
        one, other = (
            traced(network(nn.Sequential(nn.Flatten(), *hidden(activation)))).mass for activation in GATED[name]
        )
    torch.testing.assert_close(one, other)


def hidden(activation: nn.Module) -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Linear(512, 16), activation, nn.Linear(16, 12), activation]


class Attends(nn.Module):
    """Tokens, layer norm, attention, linear layers on tokens; a mask that forbids some."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.grow, self.shrink = nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        tokens = self.norm(values.flatten(2).transpose(1, 2))
        forbidden = torch.ones(64, 64, dtype=torch.bool).triu(1)
        tokens = tokens + self.attend(tokens, tokens, tokens, attn_mask=forbidden, need_weights=False)[0]
        return self.shrink(functional.gelu(self.grow(tokens))).mean(1)


class TokensFirst(nn.Module):
    """Linear layers on tokens, which come first there, as in nn.MultiheadAttention; moved by `moves` and back."""

    def __init__(self, moves: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.moves, self.grow, self.shrink = moves, nn.Linear(8, 16), nn.Linear(16, 8, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.flatten(2).transpose(1, 2)
        grown = functional.gelu(self.grow(self.moves(tokens)))
        return tokens + self.moves(self.shrink(grown))


class LastNorm(nn.LayerNorm):
    """Layer norm over the channels of a map, as in ConvNeXt."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SpatialTransformer(nn.Module):
    """Says by the image itself where to read it (Jaderberg et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Linear(8, 6)

    def forward(self, values: Tensor) -> Tensor:
        transform = self.places(values.mean((2, 3))).view(-1, 2, 3)
        where = functional.affine_grid(transform, list(values.shape), align_corners=False)
        return functional.grid_sample(values, where, align_corners=False)


CORE: dict[str, Callable[[], nn.Module]] = {
    "other convolutions": lambda: nn.Sequential(
        nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, groups=2), nn.Flatten(2), nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.ReLU()
    ),
    "pools along one axis": lambda: nn.Sequential(nn.Flatten(2), nn.AvgPool1d(2), nn.MaxPool1d(2)),
    "norms and pools": lambda: nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.MaxPool2d(2), nn.AvgPool2d(2)),
    "activations": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.ELU()),
    "average pool": lambda: nn.AdaptiveAvgPool2d(1),
    "uneven pool": lambda: nn.AdaptiveAvgPool2d((3, 5)),
    "hidden layers": lambda: nn.Sequential(nn.Flatten(), *hidden(nn.Hardswish())),
    "attention": Attends,
    "flattened channels of one place": lambda: nn.Sequential(
        Does(lambda x: x.mean((2, 3), keepdim=True).permute(0, 2, 3, 1)), nn.Flatten(), nn.Linear(8, 9), nn.ReLU()
    ),
    "average pool of channels that lie together": lambda: nn.Sequential(LastNorm(8), nn.AdaptiveAvgPool2d(1)),
    "softmax pool": lambda: Does(lambda x: (x.flatten(2) * x.flatten(2).softmax(2)).sum(2)),
    "resized": lambda: nn.Upsample(scale_factor=2),
    "read at places of a grid": SpatialTransformer,
    "strongest, deviation": lambda: Does(lambda x: torch.cat([x.flatten(2).topk(4, 2)[0].mean(2), x.std((2, 3))], 1)),
    "maxima of uneven windows": lambda: nn.AdaptiveMaxPool2d((3, 5)),
    "rolled, chunked": lambda: Does(lambda x: torch.cat(x.roll(3, 2).chunk(2, 1)[::-1], 1)),
}


@pytest.mark.parametrize("name", CORE)
def test_a_program_in_core_aten_is_traced_as_its_network(name: str) -> None:
    """`run_decompositions()` says the same with fewer operations, and many tools save programs so."""
    model = network(CORE[name]())
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    graph = fixcore.capture(program.run_decompositions(), IMAGES)
    recording = graph.record(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(recording.logits, model(IMAGES), rtol=1e-4, atol=1e-5)
    expected, found = traced(model), fixcore.backtrack(recording, TARGET)
    for part in ("image", "row", "col"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part
    torch.testing.assert_close(found.mass, expected.mass, rtol=1e-3, atol=1e-6)


def test_a_mean_over_parts_of_a_sequence_is_named() -> None:
    with pytest.raises(fixcore.MissingRule, match="adaptive_avg_pool1d"):
        traced(network(Does(lambda x: functional.adaptive_avg_pool1d(x.flatten(2), 4))))


def test_a_scaled_product_is_no_linear_layer() -> None:
    with pytest.raises(fixcore.MissingRule, match="addmm"):
        traced(network(Does(lambda x: torch.addmm(torch.ones(6), x.mean((2, 3)), torch.ones(8, 6), alpha=2))))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.as_strided(x.mean((2, 3), True), (x.shape[0], 8, 1, 1), (1, x.shape[0], 1, 1)),
        lambda x: torch.as_strided(x.mean((2, 3), True), (x.shape[0], 7, 1, 1), (8, 1, 1, 1), 1),
        lambda x: torch.as_strided(x.relu(), (x.shape[0], 8, 1, 1), (512, 64, 1, 1)),
    ],
    ids=["turned", "from the second on", "of a map"],
)
def test_activations_that_are_read_by_their_strides_are_refused(view: Callable[[Tensor], Tensor]) -> None:
    """A network's maps may lie in memory channels last, and other elements would be read: wrong logits."""
    with pytest.raises(fixcore.CaptureError, match="reads an activation by its strides in memory"):
        traced(network(Does(view)))


def test_strides_that_change_nothing_are_followed() -> None:
    view = Does(lambda x: torch.as_strided(x.mean((1, 2, 3)), (x.shape[0],), (1,))[:, None])
    assert len(traced(network(view))) == len(IMAGES)


@pytest.mark.parametrize("moves", [lambda x: x.transpose(0, 1), lambda x: x.permute(-2, 0, -1)])
def test_linear_layers_read_tokens_as_they_lie(moves: Callable[[Tensor], Tensor]) -> None:
    """What is moved is their output; torch would multiply what was moved one image at a time."""
    model, otherwise = network(TokensFirst(moves)), network(TokensFirst(lambda x: x))
    otherwise.load_state_dict(model.state_dict())
    one, other = traced(model), traced(otherwise)
    assert torch.equal(torch.stack([one.row, one.col]), torch.stack([other.row, other.col]))
    torch.testing.assert_close(one.mass, other.mass)
    graph = fixcore.capture(model, IMAGES)
    recording = graph.record(IMAGES)
    outputs: dict[str, Tensor] = {}
    for name in ("0.2.grow", "0.2.shrink"):
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(IMAGES)
    for name, output in outputs.items():
        assert recording.shapes[graph.layer(name)] == output.shape
    grow = next(node for node in graph.nodes if node.target is aten.linear.default)
    assert grow.all_input_nodes[0].meta["seen"].shape[0] is None
    assert recording.shapes[grow][0] == len(IMAGES)


class Pooled(nn.Module):
    """Generalised mean (GeM)."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor([3.0]))

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(min=1e-6).pow(self.power).mean((2, 3)).pow(1 / self.power)


class Prototypes(nn.Module):
    """How near a map comes to learned parts (Chen et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Parameter(torch.rand(6, 8))

    def forward(self, values: Tensor) -> Tensor:
        parts = self.parts[None].expand(len(values), -1, -1)
        nearest = torch.cdist(values.flatten(2).mT, parts).min(1).values
        return torch.log((nearest**2 + 1) / (nearest**2 + 1e-4))


class Prunes(nn.Module):
    """Goes on with the tokens that score highest."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.flatten(2).mT
        best = self.score(tokens)[..., 0].topk(5, 1).indices
        return torch.gather(tokens, 1, best[..., None].expand(-1, -1, 8)).mean(1)


class Queries(nn.Module):
    """Learned queries attend to the map; how many images there are is asked by len()."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.rand(1, 3, 8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.flatten(2).mT
        return self.attend(self.queries.expand(len(values), -1, -1), tokens, tokens, need_weights=False)[0]


class Recurrent(nn.Module):
    """Reads the rows of a map, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(64, 6, batch_first=True, bidirectional=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.rows(values.transpose(1, 2).flatten(2))[0][:, -1]


COMMON: dict[str, nn.Module] = {
    "spatial transformer": SpatialTransformer(),
    "prototypes": Prototypes(),
    "pruned tokens": Prunes(),
    "queries": Queries(),
    "rows read in order": Recurrent(),
    "mean and deviation": Does(lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)),
    "spatial pyramid": Does(
        lambda x: torch.cat([functional.adaptive_max_pool2d(x, k).flatten(1) for k in (1, 2, 3)], 1)
    ),
    "mean of the strongest": Does(lambda x: x.flatten(2).topk(4, 2)[0].mean(2)),
    "quantile": Does(lambda x: x.flatten(2).quantile(0.9, dim=2)),
    "likeness to patterns": Does(
        lambda x: functional.cosine_similarity(x.flatten(2).mean(2)[:, None], torch.eye(8)[None, :5], dim=-1)
    ),
    "smooth maximum of two": Does(lambda x: torch.logaddexp(x, x.flip(3))),
    "rounded": Does(lambda x: (x * 8).round() / 8 + torch.floor(x * 4) / 4),
    "concatenated pools": Does(lambda x: torch.cat([functional.adaptive_avg_pool2d(x, 1), x.amax((2, 3), True)], 1)),
    "generalised mean": Pooled(),
    "power mean": nn.LPPool2d(2, 2),
    "log-sum-exp": Does(lambda x: x.flatten(2).logsumexp(2)),
    "attention pool": Does(lambda x: (x.flatten(2) * x.flatten(2).mean(1, keepdim=True).softmax(2)).sum(2)),
    "reflected edges": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "joined edges": nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "copied edges": nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "gated linear unit": nn.GLU(1),
    "maxout": Does(lambda x: torch.maximum(x[:, :4], x[:, 4:])),
    "selu": nn.SELU(),
    "celu": nn.CELU(),
    "threshold": nn.Threshold(0.1, 0.0),
    "log-sigmoid": nn.LogSigmoid(),
    "enlarged": nn.Upsample(scale_factor=2, mode="bilinear"),
    "reduced": Does(lambda x: functional.interpolate(x, (5, 3), mode="bicubic")),
}


@pytest.mark.parametrize("name", COMMON)
def test_what_people_put_into_networks_is_traced(name: str) -> None:
    found = traced(network(COMMON[name]))
    total = torch.zeros(3).index_add_(0, found.image, found.mass)
    torch.testing.assert_close(total, torch.ones(3), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: functional.adaptive_max_pool2d(x, 2, return_indices=True),
        lambda x: functional.max_pool2d(x, 2, return_indices=True),
        lambda x: x.flatten(2).max(2),
    ],
    ids=["adaptive", "plain", "by dimension"],
)
def test_positions_of_a_maximum_are_no_maxima(pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def both(values: Tensor) -> Tensor:
        largest, position = pool(values)
        return largest + position / 100

    assert len(traced(network(Does(both)))) == len(IMAGES)  # the logits are compared in `traced`


def test_one_of_several_outputs_is_named_by_its_operation() -> None:
    with pytest.raises(fixcore.MissingRule, match=r"no backtracking rule for aten\.mode"):
        traced(network(Does(lambda x: x.flatten(2).mode(2)[0])))


def test_frequencies_are_named() -> None:
    """Complex numbers measure: evidence does not end at them in silence."""
    with pytest.raises(fixcore.MissingRule, match="fft"):
        traced(network(Does(lambda x: torch.fft.rfft2(x).abs())))


def test_whole_numbers_on_all_ways_are_refused() -> None:
    with pytest.raises(fixcore.CaptureError, match="as in a quantised network"):
        traced(network(Does(lambda x: (x * 20).to(torch.int8).float())))


def test_a_fixed_number_of_images_is_explained() -> None:
    with pytest.raises(fixcore.CaptureError, match=r"fixes the number of images, .* use x\.shape\[0\]"):
        traced(network(Does(lambda x: x.reshape(3, 4, 2, 8, 8).amax(2))))


def test_a_branch_on_values_is_explained() -> None:
    with pytest.raises(fixcore.CaptureError, match=r"branches on what the images hold, .* torch\.where"):
        traced(network(Does(lambda x: x if x.mean() > 0 else -x)))


def test_capturing_says_nothing(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither of a recurrent layer's weights nor of an attempt that failed."""
    traced(network(Recurrent()))
    with pytest.raises(fixcore.CaptureError):
        traced(network(Does(lambda x: torch.take_along_dim(x, x.argsort(1), 1))))
    assert not recwarn.list
    assert capfd.readouterr().err == ""
