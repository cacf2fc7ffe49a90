"""What tracing costs, as a multiple of a plain forward pass: `python -m benchmarks.trace_cost [--json] [--rivals]`.

Per network, in one process and round by round, in another order each time: the median seconds of a plain eager
forward pass in inference mode (the better of the two memory formats), and what recording, and recording and
backtracking one and two targets per image, take as a multiple of it: the median over rounds of both in the same round,
so that a machine that is slow for a while is so for both. The process keeps memory that was freed, as the workers of an
audit do, also for the forward pass; `--return-memory` lets it give every large tensor back to the system, as a plain
Python process does. Random weights whose batch norms have seen noise, so that activations keep their scale. `--rivals`
times captum's methods and pytorch-grad-cam in the same way (install captum, grad-cam, opencv-python-headless), and for
one image the published rules followed point by point (not where tokens mix). About 6 minutes on 4 cores, 15 with
rivals. `--device cuda --dtype bfloat16 --batch 128` measures a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import fixcore
from fixcore.rules import rule
from jobs.machine import keep_freed_memory

NETWORKS = ("resnet50", "vgg16", "googlenet", "densenet121", "mobilenet_v2", "squeezenet1_1")
_SIDE = 224


def build(name: str, device: str, dtype: torch.dtype) -> nn.Module:
    """Return a network with random weights, its batch norms calibrated on noise, channels last in memory."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options).to(device)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Linear) and not bool(module.weight.any()):  # ViT's, as torchvision leaves it
            nn.init.trunc_normal_(module.weight, std=0.02)
    for norm in norms:
        norm.momentum = None  # the plain mean of what is seen
        norm.train()
    with torch.no_grad():
        network(torch.randn(8, 3, _SIDE, _SIDE, device=device))
    return network.eval().to(dtype).to(memory_format=torch.channels_last)


def timed(work: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rounds(works: dict[str, Callable[[], Any]], runs: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each, round by round, after one call to warm up."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    for number in range(runs):
        random.Random(number).shuffle(order)  # none always follows the same other, whose traces are in the caches
        for name in order:
            times[name].append(timed(works[name], device))
    return times


def kept_bytes(recording: fixcore.Recording) -> int:
    """Return the bytes of activations that a recording holds on to, weights left out."""
    constants = {value.untyped_storage().data_ptr() for value in recording.graph.constants.values()}
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in recording.values.values()
        if isinstance(value, Tensor)
    }
    return sum(size for pointer, size in held.items() if pointer not in constants)


def peak_bytes(work: Callable[[], Any]) -> float:
    """Return by how many MB the process's memory rises at most while it works; Linux only."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew

    def told(what: str) -> float:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(what)).split()[1]) / 1e3

    before = told("VmRSS")
    work()
    return told("VmHWM") - before


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time one network."""
    dtype = getattr(torch, options.dtype)
    network = build(name, options.device, dtype)
    images = torch.randn(options.batch, 3, _SIDE, _SIDE, device=options.device, dtype=dtype)
    last = images.contiguous(memory_format=torch.channels_last)
    cache: dict[str, str] = {}
    captures = [timed(lambda: fixcore.capture(network, last, cache=cache), options.device) for _ in range(3)]
    graph = fixcore.capture(network, last, cache=cache)
    contiguous = build(name, options.device, dtype).to(memory_format=torch.contiguous_format)
    row = torch.arange(options.batch, device=options.device)

    def forward(model: nn.Module, batch: Tensor) -> None:
        with torch.inference_mode():
            model(batch)

    def trace(targets: int) -> fixcore.Fixations:
        recording = graph.record(last)
        best = recording.logits.topk(targets, 1).indices
        return fixcore.backtrack(recording, fixcore.Start(row.repeat(targets), best.T.reshape(-1)), rules=options.rules)

    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(network, last),
        "forward contiguous": lambda: forward(contiguous, images),
        "record": lambda: graph.record(last),
        "one": lambda: trace(1),
        "two": lambda: trace(2),
    }
    if options.rivals:
        works |= rivals(contiguous, images)
    took = rounds(works, options.runs, options.device)
    plain = min(took.pop("forward"), took.pop("forward contiguous"), key=statistics.median)
    plain_seconds = statistics.median(plain)
    multiples = {
        what: statistics.median(own / forward for own, forward in zip(seconds, plain, strict=True))
        for what, seconds in took.items()
    }
    if options.rivals and graph.tokens is None:  # by published rules attention's points are too many to go one by one
        alone = graph.record(last[:1])
        best = alone.logits.argmax(1)
        each = {
            "one": lambda: fixcore.backtrack(alone, best, rules="paper"),
            "loop": lambda: point_by_point(alone, best),
        }
        single = {what: statistics.median(seconds) for what, seconds in rounds(each, 2, options.device).items()}
        multiples["loop over points / paper rules, one image"] = single["loop"] / single["one"]
    found = trace(1)
    return {
        "network": name,
        "forward, s": round(plain_seconds, 4),
        **{what: round(multiple, 3) for what, multiple in multiples.items()},
        "capture, s": round(captures[0], 2),
        "capture from cache, s": round(min(captures[1:]), 2),
        "fixations": round(found.row.numel() / options.batch, 1),
        "kept, MB": round(kept_bytes(graph.record(last)) / 1e6, 1),
        "peak over forward, MB": round(peak_bytes(lambda: trace(1)) - peak_bytes(lambda: forward(network, last)), 1),
        "of that on the way back, MB": round(peak_bytes(lambda: trace(1)) - peak_bytes(lambda: graph.record(last)), 1),
    }


def rivals(network: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the gradient methods that people use instead, on the same batch."""
    from captum.attr import GuidedBackprop, LayerAttribution, LayerGradCam, Saliency
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    target = network(images).argmax(1)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    saliency, guided, cam = Saliency(network), GuidedBackprop(network), LayerGradCam(network, layers[-1])
    other = GradCAM(network, [layers[-1]])
    chosen = [ClassifierOutputTarget(int(label)) for label in target]
    return {
        "captum Saliency": lambda: saliency.attribute(images.requires_grad_(), target),
        "captum GuidedBackprop": lambda: guided.attribute(images.requires_grad_(), target),
        "captum LayerGradCam": lambda: LayerAttribution.interpolate(cam.attribute(images, target), (_SIDE, _SIDE)),
        "pytorch-grad-cam GradCAM": lambda: other(images, chosen),
    }


def point_by_point(recording: fixcore.Recording, target: Tensor) -> fixcore.Fixations:
    """Follow the published rules as its released code does: in every layer one point after the other."""
    entries = dict(rule)
    for operation, entry in entries.items():

        def one_by_one(visit: Any, points: Any, follow: Any = entry.follow) -> Any:
            each = (points.part(slice(at, at + 1)) for at in range(len(points)))
            return [moved for point in each for moved in follow(visit, point)]

        rule._entries[operation] = replace(entry, follow=one_by_one)
    try:
        return fixcore.backtrack(recording, target, rules="paper")
    finally:
        rule._entries.update(entries)


def main() -> None:
    """Measure the networks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rules", choices=("mass", "finer"), default="mass")
    parser.add_argument("--return-memory", action="store_true", help="as a plain Python process does")
    parser.add_argument("--rivals", action="store_true", help="also time captum's methods (pip install captum)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.return_memory:
        keep_freed_memory()
    header = True
    for name in options.names or NETWORKS:
        found = measure(name, options)
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        if header:
            print(" | ".join(found), flush=True)
            header = False
        print(" | ".join(str(value) for value in found.values()), flush=True)


if __name__ == "__main__":
    main()
