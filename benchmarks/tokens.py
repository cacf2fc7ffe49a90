"""Networks in which tokens mix: is the evidence each class's own? `python -m benchmarks.tokens [NAME ...] [--json]`.

Small classifiers learn scenes of one or two handwritten digits, both classes alike; they differ in how tokens mix: a
class token (ViT), the mean of all tokens, attention that gathers at the end (CaiT), windows (Swin), linear layers among
the tokens (MLP-Mixer). Then they are shown two held-out digits apart. Printed for each: the share of scenes whose two
most probable classes are those of the digits; then for every method the share of peaks on the class's own digit, and
of the map's mass there; the overlap of both classes' evidence; seconds a map as multiples of a plain forward pass.
About half an hour; names can be measured side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

import fixcore
from benchmarks.digits import DIGIT, SIDE, corners_apart, fit, on_digit, put, put_pair, scans
from benchmarks.two_objects import Pairs, pairs
from fixcore.baselines import excitation_backprop, gradient, guided_backprop, occlusion
from jobs.machine import keep_freed_memory

_STEPS = 900
_BATCH = 64
"""Scenes of one digit, and as many of two."""
_FEATURES, _HEADS, _HIDDEN = 64, 4, 128
_TOKENS = 10
"""Tokens along each side of a picture."""


class Encoder(nn.Module):
    """Two convolutions, tokens that attend to each other, and one of several ways to gather them."""

    def __init__(self, gathers: str, layers: int) -> None:
        super().__init__()
        self.gathers, self.stem = gathers, stem()
        self.encoder = VisionTransformer(_TOKENS, 1, layers, _HEADS, _FEATURES, _HIDDEN, num_classes=10)
        self.encoder.conv_proj = nn.Conv2d(32, _FEATURES, 1)
        nn.init.trunc_normal_(self.encoder.heads.head.weight, std=0.02)  # which torchvision leaves at 0
        self.last = nn.MultiheadAttention(_FEATURES, _HEADS, batch_first=True)
        self.norm = nn.LayerNorm(_FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        encoder = self.encoder
        if self.gathers == "class token":
            return encoder(self.stem(images))  # type: ignore[no-any-return]
        tokens = encoder._process_input(self.stem(images)) + encoder.encoder.pos_embedding[:, 1:]
        tokens = encoder.encoder.ln(encoder.encoder.layers(tokens))
        if self.gathers == "mean":
            return encoder.heads(tokens.mean(1))  # type: ignore[no-any-return]
        asks = encoder.class_token.expand(images.shape[0], -1, -1)
        gathered = asks + self.last(asks, tokens, tokens, need_weights=False)[0]
        return encoder.heads(self.norm(gathered)[:, 0])  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Linear layers among the tokens of each feature, and among the features of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches = stem(), nn.Conv2d(32, _FEATURES, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(_FEATURES) for _ in range(7))
        self.among_tokens, self.among_features = (
            nn.ModuleList(nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, wide)) for _ in range(3))
            for wide, hidden in ((_TOKENS**2, _FEATURES), (_FEATURES, _HIDDEN))
        )
        self.fc = nn.Linear(_FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(self.stem(images)).flatten(2).transpose(1, 2)
        for number, (tokenwise, featurewise) in enumerate(zip(self.among_tokens, self.among_features, strict=True)):
            tokens = tokens + tokenwise(self.norms[2 * number](tokens).transpose(1, 2)).transpose(1, 2)
            tokens = tokens + featurewise(self.norms[2 * number + 1](tokens))
        return self.fc(self.norms[6](tokens).mean(1))  # type: ignore[no-any-return]


def stem() -> nn.Sequential:
    """Return convolutions that make a map of 10 x 10 places with 32 features of a picture."""
    layers: list[nn.Module] = []
    for inputs, stride in ((1, 2), (32, 1), (32, 2)):
        layers += [nn.Conv2d(inputs, 32, 3, stride, 1), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers)


def windows() -> nn.Module:
    """Return a Swin transformer on a map of 20 x 20 places."""
    swin = SwinTransformer([1, 1], 32, [2, 2], [2, 4], [5, 5], mlp_ratio=2.0, num_classes=10)
    for module in swin.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()  # as it is made for a thousand times as many images, it learns nothing here
    swin.features[0][0] = nn.Conv2d(32, 32, 1)  # type: ignore[index, operator]
    return nn.Sequential(*stem()[:3], swin)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "class-token": lambda: Encoder("class token", 3),
    "mean": lambda: Encoder("mean", 3),
    "attention-at-the-end": lambda: Encoder("attention", 2),
    "windows": windows,
    "mixer": Mixer,
}


def trained(make: Callable[[], nn.Module], digits: Tensor, labels: Tensor) -> nn.Module:
    """Return a classifier that learned scenes of one digit and of two apart."""
    torch.manual_seed(0)
    network, generator = make(), torch.Generator().manual_seed(0)

    def drawn(limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=generator)

    def loss() -> Tensor:
        two, one = drawn(len(digits), _BATCH, 2), drawn(len(digits), _BATCH)
        _, corners = corners_apart(_BATCH, generator)
        beside = put(digits[one], drawn(SIDE - DIGIT + 1, _BATCH), drawn(SIDE - DIGIT + 1, _BATCH))
        scores = network(torch.cat([put_pair(digits[two], corners), beside])).log_softmax(1)
        return -scores[:_BATCH].gather(1, labels[two]).mean() + functional.nll_loss(scores[_BATCH:], labels[one])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are so small that more only wait for each other
    fit(network, loss, steps=_STEPS)
    torch.set_num_threads(threads)
    return network


def measured(network: nn.Module, shown: Pairs) -> dict[str, dict[str, float]]:
    """Return the figures of every method on scenes of two digits."""
    graph = fixcore.capture(network, shown.apart[:2])

    def fixations(target: Tensor, rules: str = "mass") -> Tensor:
        found = fixcore.backtrack(graph.record(shown.apart), target, rules="paper" if rules == "paper" else "mass")
        return fixcore.saliency_maps(found)

    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "fixations": fixations,
        "published walk": lambda target: fixations(target, "paper"),
        "gradient": lambda target: gradient(graph, shown.apart, target),
        "guided backprop": lambda target: guided_backprop(graph, shown.apart, target),
        "excitation backprop": lambda target: excitation_backprop(graph, shown.apart, target),
        "occlusion": lambda target: occlusion(graph, shown.apart, target),
    }
    with torch.inference_mode():
        plain = _seconds(lambda: network(shown.apart))
        both = network(shown.apart).topk(2, 1).indices.sort(1).values == shown.labels.sort(1).values
    found = {"network": {"both digits seen": float(both.all(1).float().mean())}}
    for name, method in methods.items():
        maps = [method(shown.labels[:, 0])]
        began = time.perf_counter()
        maps.append(method(shown.labels[:, 1]))
        seconds = time.perf_counter() - began
        shares = [own / own.flatten(1).sum(1).clamp(min=1e-12)[:, None, None] for own in maps]
        hits = torch.cat([on_digit(own, shown.corners[:, side]) for side, own in enumerate(maps)])
        inside = torch.cat([_share_on(own, shown.corners[:, side]) for side, own in enumerate(shares)])
        found[name] = {
            "peaks": float(hits.float().mean()),
            "mass": float(inside.mean()),
            "overlap": float(torch.minimum(*shares).sum((1, 2)).mean()),
            "forward passes": seconds / plain,
        }
    return found


def _share_on(shares: Tensor, corners: Tensor) -> Tensor:
    at = torch.arange(SIDE)
    rows, cols = ((at >= corners[:, axis, None]) & (at < corners[:, axis, None] + DIGIT) for axis in (0, 1))
    return (shares * (rows[:, :, None] & cols[:, None])).sum((1, 2))


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure the networks that were asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names).difference(NETWORKS)
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    keep_freed_memory()
    *learned, digits, labels = scans()
    shown = pairs(digits, labels, 600)
    found = {}
    for name in options.names or NETWORKS:
        print(f"{name}: learning", file=sys.stderr)
        found[name] = measured(trained(NETWORKS[name], *learned), shown)
        if not options.json:
            for method, figures in found[name].items():
                said = ", ".join(f"{figure} {value:.3f}" for figure, value in figures.items())
                print(f"{name}, {method}: {said}", flush=True)
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
