"""Baselines against captum and torchcam where they are right, and against the papers' formulas where they are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from captum.attr import GuidedBackprop, LayerGradCam, Saliency
from torch import Tensor, nn
from torch.nn import functional
from torchcam.methods import CAM, GradCAM

import fixcore
from fixcore import baselines
from fixcore.baselines.class_maps import last_map, map_places
from fixcore.baselines.gradients import guided_gradient
from fixcore.errors import CaptureError, InputError, TargetError
from fixcore.methods import METHODS, explain, find_methods


class Small(nn.Module):
    """Convolutions, a skip connection, pools; its ReLUs are modules, functions, or work in place."""

    def __init__(self, how: str = "module", activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.act1, self.act2 = activation(), activation()
        self.eval()

    def rectified(self, x: Tensor, module: nn.Module) -> Tensor:
        if self.how == "function":
            return functional.relu(x)
        return functional.relu_(x) if self.how == "in place" else module(x)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.rectified(self.first(x), self.act1), 2)
        x = x + self.rectified(self.second(x), self.act2)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


TARGET = torch.tensor([1, 3, 0])


@pytest.mark.parametrize("how", ["module", "function", "in place"])
def test_gradient_and_guided_backprop_are_captums(images: Tensor, how: str) -> None:
    graph, plain = fixcore.capture(Small(how), images), Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saliency = Saliency(plain).attribute(images.clone().requires_grad_(), target=TARGET)
        guided = GuidedBackprop(plain).attribute(images.clone().requires_grad_(), target=TARGET)
    torch.testing.assert_close(baselines.gradient(graph, images, TARGET), saliency.amax(1).detach())
    torch.testing.assert_close(guided_gradient(graph, images, TARGET), guided.detach())
    assert not torch.allclose(guided.abs(), saliency)


def test_captums_guided_backprop_is_the_gradient_where_relu_is_a_function(images: Tensor) -> None:
    """Why ours runs the captured operations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = GuidedBackprop(Small("function")).attribute(images.clone().requires_grad_(), target=TARGET)
    graph = fixcore.capture(Small("function"), images)
    torch.testing.assert_close(wrong.abs().amax(1).detach(), baselines.gradient(graph, images, TARGET))
    assert not torch.allclose(guided_gradient(graph, images, TARGET), wrong)


def test_deconvnet_lets_through_what_is_positive_whatever_the_image_did() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    module[1].weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    module[3].weight.data = torch.tensor([[2.0, -1.0]])
    image = torch.tensor([-1.0, -1.0, -1.0]).view(1, 1, 1, 3)
    graph = fixcore.capture(module, image)
    asked = torch.tensor([0])
    assert baselines.deconvnet(graph, image, asked).flatten().tolist() == [2, 4, 6]
    assert baselines.guided_backprop(graph, image, asked).flatten().tolist() == [0, 0, 0]
    assert baselines.guided_backprop(graph, -image, asked).flatten().tolist() == [2, 4, 6]
    assert baselines.gradient(graph, -image, asked).flatten().tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.SELU, nn.CELU, nn.RReLU, nn.PReLU, partial(nn.Threshold, 0.1, 0.0)],
)
def test_other_rectifiers_are_guided_by_their_own_derivative(images: Tensor, activation: type[nn.Module]) -> None:
    model = Small(activation=activation)
    graph = fixcore.capture(model, images)

    def guide(module: nn.Module, below: tuple[Tensor, ...], above: tuple[Tensor, ...]) -> tuple[Tensor]:
        value = seen[module].detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(module.forward(value), value, above[0].clamp(min=0))
        return (slope.clamp(min=0),)

    seen: dict[nn.Module, Tensor] = {}
    for module in (model.act1, model.act2):
        module.register_forward_pre_hook(lambda module, given: seen.update({module: given[0]}))
        module.register_full_backward_hook(guide)
    image = images.clone().requires_grad_()
    model(image).gather(1, TARGET[:, None]).sum().backward()
    torch.testing.assert_close(guided_gradient(graph, images, TARGET), image.grad)


def test_guided_backprop_is_captums_where_pools_overlap(images: Tensor) -> None:
    """What several windows send back to a cell meets before its ReLU decides on it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(6, 5, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).eval()  # fmt: skip
    graph = fixcore.capture(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GuidedBackprop(model).attribute(images.clone().requires_grad_(), target=TARGET)
    torch.testing.assert_close(guided_gradient(graph, images, TARGET), theirs.detach())


def with_a_class_map() -> nn.Sequential:
    """A network whose last map is the output of its layer 4, and whose linear layer is its layer 7."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    ).eval()  # fmt: skip


def test_grad_cam_is_captums_and_cam_its_formula(images: Tensor) -> None:
    model = with_a_class_map()
    graph = fixcore.capture(model, images)
    theirs = LayerGradCam(model, model[4]).attribute(images, target=TARGET, relu_attributions=True)
    wide = functional.interpolate(theirs.detach(), (12, 12), mode="bilinear")[:, 0]
    torch.testing.assert_close(baselines.grad_cam(graph, images, TARGET), wide)
    features = model[:5](images)
    own = torch.einsum("nchw,nc->nhw", features, model[7].weight[TARGET]).detach()
    own = own - own.amin((1, 2), keepdim=True)
    wide = functional.interpolate(own[:, None], (12, 12), mode="bilinear")[:, 0]
    torch.testing.assert_close(baselines.cam(graph, images, TARGET), wide)


class Laid(nn.Module):
    """A network whose last map has its channels in front or last; tokens of it may be mixed by attention at the end."""

    def __init__(self, last: bool, end: str = "pool") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)
        self.norm, self.hidden = nn.LayerNorm(8), nn.Linear(8, 8)
        self.last, self.end = last, end
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x)).permute(0, 2, 3, 1)
        x = x + self.hidden(self.norm(x))
        if self.end == "attention":
            tokens = functional.relu(x).flatten(1, 2).unflatten(2, (2, 4)).transpose(1, 2)
            tokens = functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return self.head(tokens.transpose(1, 2).flatten(2).mean(1))
        x = x if self.last else x.permute(0, 3, 1, 2)
        return self.head(x.mean((1, 2) if self.last else (2, 3)))


def test_a_map_is_read_where_its_places_lie(images: Tensor) -> None:
    front, last = (fixcore.capture(Laid(one), images) for one in (False, True))
    for method in ("cam", "grad-cam", "guided-grad-cam", "excitation", "c-mwp"):
        expected, found = (METHODS[method].explain(graph, images, TARGET) for graph in (front, last))
        assert bool((expected > 0).any())
        torch.testing.assert_close(found, expected)


def test_attention_is_no_map(images: Tensor) -> None:
    graph = fixcore.capture(Laid(last=True, end="attention"), images)
    (looked,) = (node for node in graph.nodes if "scaled_dot" in node.name)
    assert "relu" in last_map(graph).name, "channels last, before tokens are made of it"
    assert map_places(graph)[last_map(graph)] == (1, 2)
    assert len(looked.meta["seen"].shape) == 4
    assert looked not in map_places(graph)
    assert baselines.grad_cam(graph, images, TARGET).shape == (3, 12, 12)
    with pytest.raises(CaptureError, match="places to show"):
        baselines.excitation_backprop(graph, images, TARGET, layer=looked.name)

    class Patches(nn.Module):
        """Patches that are cut out by hand look at each other: nothing of four dimensions is a map."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(48, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.unflatten(3, (3, 4)).unflatten(2, (3, 4)).permute(0, 2, 4, 1, 3, 5)
            x = self.embed(x.flatten(3).flatten(1, 2))
            x = x.unflatten(2, (2, 4)).transpose(1, 2)
            return self.head(functional.scaled_dot_product_attention(x, x, x).transpose(1, 2).flatten(2).mean(1))

    with pytest.raises(CaptureError, match="map of features"):
        baselines.grad_cam(fixcore.capture(Patches().eval(), images), images, TARGET)


def test_cam_and_grad_cam_are_torchcams(images: Tensor) -> None:
    model = with_a_class_map()
    graph = fixcore.capture(model, images)
    for theirs, ours in (
        (CAM(model, "4", "7", input_shape=(3, 12, 12)), baselines.cam),
        (GradCAM(model, "4", input_shape=(3, 12, 12)), baselines.grad_cam),
    ):
        with theirs as method:
            (found,) = method(TARGET.tolist(), model(images), normalized=False)
        if ours is baselines.cam:
            found = found - found.amin((1, 2), keepdim=True)  # ours begins at 0
        wide = functional.interpolate(found.detach()[:, None], (12, 12), mode="bilinear")[:, 0]
        torch.testing.assert_close(ours(graph, images, TARGET), wide)


def test_excitation_backprop_is_the_papers_formula() -> None:
    """P(a_i) = sum over j of P(a_j) a_i w+_ji / sum over k of a_k w+_jk, by plain loops, with ties and zeros."""
    torch.manual_seed(0)
    first, second = torch.randint(-2, 3, (4, 3)).float(), torch.randint(-2, 3, (2, 4)).float()
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).eval()
    module[1].weight.data, module[3].weight.data = first, second
    image = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    hidden = (first @ image.flatten()).clamp(min=0)

    def share(received: list[float], active: Tensor, weight: Tensor) -> list[float]:
        found = [0.0] * len(active)
        for j, mass in enumerate(received):
            products = [max(0.0, float(active[i] * weight[j, i])) for i in range(len(active))]
            for i, product in enumerate(products):
                found[i] += mass * product / sum(products) if sum(products) else 0.0
        return found

    graph = fixcore.capture(module, image)
    for target in (0, 1):
        asked = [float(target == j) for j in range(2)]
        expected = share(share(asked, hidden, second), image.flatten(), first)
        found = baselines.excitation_backprop(graph, image, torch.tensor([target]))
        assert found.flatten().tolist() == pytest.approx(expected)
        plus, minus = share(asked, hidden, second), share(asked, hidden, -second)
        difference = [a / (sum(plus) or 1) - b / (sum(minus) or 1) for a, b in zip(plus, minus, strict=True)]
        expected = [max(0.0, value) for value in share(difference, image.flatten(), first)]
        found = baselines.contrastive_excitation_backprop(graph, image, torch.tensor([target]))
        assert found.flatten().tolist() == pytest.approx(expected)


def test_excitation_keeps_its_probability_through_every_kind_of_layer(images: Tensor) -> None:
    """Skip connections, pools, places of a grid, concatenation, gates, attention: what arrives is what set out."""

    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.fine = nn.Conv2d(8, 8, 1, bias=False)
            self.head = nn.Linear(16, 4, bias=False)
            for parameter in self.parameters():
                parameter.data.abs_()

        def forward(self, x: Tensor) -> Tensor:
            x = functional.max_pool2d(functional.relu(self.wide(x)), 2)
            x = x + self.fine(functional.avg_pool2d(x, 3, 1, 1)) * x.mean((2, 3), keepdim=True).sigmoid()
            zoom = torch.eye(2, 3) * x.mean((1, 2, 3)).sigmoid()[:, None, None]
            where = functional.affine_grid(zoom, list(x.shape), align_corners=False)
            x = functional.adaptive_max_pool2d(functional.grid_sample(x, where, align_corners=False), (4, 3))
            tokens = x.flatten(2).transpose(1, 2)
            looked = functional.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(x.shape)
            return self.head(torch.cat([x, looked], 1).mean((2, 3)))

    image = images.abs()
    graph = fixcore.capture(Kinds().eval(), image)
    found = baselines.excitation_backprop(graph, image, TARGET, layer=graph.images.name)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))


class Headed(nn.Module):
    """A network whose logits are what `head` makes of pooled features; the linear layer's weights are its own."""

    def __init__(self, head: Callable[[Headed, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.other = nn.Linear(8, 4), nn.Linear(8, 4)
        self.head = head
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, functional.relu(self.second(functional.relu(self.first(x)))).mean((2, 3)))


HEADS: dict[str, Callable[[Headed, Tensor], Tensor]] = {
    "product": lambda own, x: x @ own.fc.weight.T + own.fc.bias,
    "product from the left": lambda own, x: (own.fc.weight @ x[..., None])[..., 0] + own.fc.bias,
    "transposed": lambda own, x: (own.fc.weight @ x.T).T + own.fc.bias,
    "einsum": lambda own, x: torch.einsum("nd,kd->nk", x, own.fc.weight) + own.fc.bias,
    "batched": lambda own, x: torch.bmm(x[:, None], own.fc.weight.T.expand(len(x), 8, 4))[:, 0] + own.fc.bias,
    "class by class": lambda own, x: torch.stack([x @ weight for weight in own.fc.weight], 1) + own.fc.bias,
    "two averaged": lambda own, x: (own.fc(x) + 9 + own.fc(x * 1) + 9) / 2,
}


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("method", ["excitation", "c-mwp"])
def test_excitation_does_not_depend_on_how_a_head_is_written(images: Tensor, method: str, head: str) -> None:
    linear, written = (fixcore.capture(Headed(one), images) for one in (lambda own, x: own.fc(x), HEADS[head]))
    expected, found = (METHODS[method].explain(graph, images, TARGET) for graph in (linear, written))
    assert bool((expected > 0).any())
    torch.testing.assert_close(found, expected)


def test_each_of_two_heads_is_contrasted_once() -> None:
    """They share in proportion to their logits, and each contrasts what it got; what lies below contrasts no more."""
    module = nn.Module()
    module.below, module.one, module.other = (nn.Linear(3, 3, bias=False) for _ in range(3))
    below, one, other = (
        torch.tensor([[1.0, 2.0, -1.0], [3.0, -1.0, 1.0], [0.0, 1.0, 2.0]]),
        torch.tensor([[2.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -2.0]]),
        torch.tensor([[1.0, 3.0, -2.0], [2.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]),
    )
    for layer, weight in zip((module.below, module.one, module.other), (below, one, other), strict=True):
        layer.weight.data = weight
    module.forward = lambda x: (module.one(y := functional.relu(module.below(x.flatten(1)))) + module.other(y)) / 2
    image = torch.tensor([3.0, 2.0, 1.0])
    hidden = below @ image

    def shares(active: Tensor, weight: Tensor) -> Tensor:
        products = (active * weight).clamp(min=0)
        return products / products.sum()

    logits = torch.stack([one[0] @ hidden, other[0] @ hidden])
    assert bool((logits > 0).all())
    received = sum(
        part * (shares(hidden, head[0]) - shares(hidden, -head[0]))
        for part, head in zip(logits / logits.sum(), (one, other), strict=True)
    )
    expected = sum(mass * shares(image, weight) for mass, weight in zip(received, below, strict=True)).clamp(min=0)
    graph = fixcore.capture(module.eval(), image.view(1, 1, 1, 3))
    found = baselines.contrastive_excitation_backprop(graph, image.view(1, 1, 1, 3), torch.tensor([0]))
    torch.testing.assert_close(found.flatten(), expected)


def test_occlusion_is_the_mean_fall_of_the_squares_over_a_pixel(images: Tensor) -> None:
    model = Small()
    graph = fixcore.capture(model, images)
    found = baselines.occlusion(graph, images, TARGET, patch=0.5, stride=0.25, fill=0.5)
    whole = model(images).softmax(1).gather(1, TARGET[:, None])[:, 0]
    for row, col in ((0, 0), (4, 7), (11, 11)):
        falls = []
        for top in (0, 3, 6):
            for left in (0, 3, 6):
                if top <= row < top + 6 and left <= col < left + 6:
                    covered = images.clone()
                    covered[:, :, top : top + 6, left : left + 6] = 0.5
                    falls.append(whole - model(covered).softmax(1).gather(1, TARGET[:, None])[:, 0])
        torch.testing.assert_close(found[:, row, col], torch.stack(falls).mean(0).clamp(min=0).detach())


def test_a_class_model_raises_its_logit(images: Tensor) -> None:
    model = Small()
    graph = fixcore.capture(model, images)
    found = baselines.class_model(graph, torch.tensor([2, 0]), steps=20)
    assert found.shape == (2, 3, 12, 12)
    assert (model(found).argmax(1) == torch.tensor([2, 0])).all()
    assert torch.equal(found, baselines.class_model(graph, torch.tensor([2, 0]), steps=20))


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_answers_alike_and_leaves_the_model_alone(images: Tensor, name: str) -> None:
    model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph = fixcore.capture(model, images)
    (method,) = find_methods([name])
    with torch.inference_mode():  # as an audit runs
        found = explain(method, graph, images, TARGET)
    assert found.maps.shape == (3, 12, 12)
    assert found.maps.dtype == torch.float32
    assert bool((found.maps >= 0).all())
    assert found.boxes.shape == (3, 4)
    alone = explain(method, graph, images[1:2], TARGET[1:2])
    torch.testing.assert_close(found.maps[1], alone.maps[0], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("fixations", "mass", "paper")])
def test_wrong_targets_are_named(images: Tensor, name: str) -> None:
    graph = fixcore.capture(Small(), images)
    right = torch.tensor([0, 1, 3])
    for wrong in (right + 1, right - 1, right[:1], right[0], right[:, None], right.float(), right.bool()):
        with pytest.raises(TargetError, match="target"):
            METHODS[name].explain(graph, images, wrong)
    found = METHODS[name].explain(graph, images, right.byte())
    torch.testing.assert_close(found, METHODS[name].explain(graph, images, right))


@pytest.mark.parametrize("name", ["fixations", "mass"])
def test_what_all_classes_share_is_no_evidence_for_one(images: Tensor, name: str) -> None:
    """Softmax does not see it, so a method that is measured must not either: no more than an audit does."""
    shifted = Small()
    with torch.no_grad():
        shifted.head.weight.add_(torch.linspace(1, 4, 6))
    own, others = (fixcore.capture(model, images) for model in (Small(), shifted))
    plain, again = (explain(METHODS[name], graph, images, TARGET) for graph in (own, others))
    torch.testing.assert_close(again.maps, plain.maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again.boxes, plain.boxes)
    published = [METHODS["paper"].explain(graph, images, TARGET) for graph in (own, others)]
    assert not torch.allclose(*published), "the shift matters where it is not taken away"


def test_a_network_without_a_linear_end_has_nothing_to_set_a_class_against(images: Tensor) -> None:
    ends_in_a_curve = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Tanh())
    graph = fixcore.capture(ends_in_a_curve.eval(), images)
    assert graph.head is None
    assert fixcore.usual_contrast(graph) is None
    assert fixcore.usual_contrast(fixcore.capture(Small(), images)) == "mean"
    assert bool(explain(METHODS["fixations"], graph, images, TARGET).maps.amax((1, 2)).gt(0).all())


def test_what_cannot_be_done_says_so(images: Tensor) -> None:
    flat = fixcore.capture(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval(), images)
    with pytest.raises(CaptureError, match="class map"):
        baselines.cam(flat, images, TARGET)
    with pytest.raises(CaptureError, match="map of features"):
        baselines.grad_cam(flat, images, TARGET)
    with pytest.raises(InputError, match="patch"):
        baselines.occlusion(flat, images, TARGET, patch=0)
    with pytest.raises(InputError, match="steps"):
        baselines.class_model(flat, TARGET, steps=0)
    with pytest.raises(TargetError, match="did you mean grad-cam"):
        find_methods(["gradcam"])
