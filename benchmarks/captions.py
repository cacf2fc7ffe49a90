"""Captions traced to the pixels: `python -m benchmarks.captions [--seconds 120] [--json] [--picture FILE.png]`.

Scenes of two handwritten digits placed apart (scikit-learn's scans, enlarged), each with a caption such as "three left
of seven". A small captioner, a convolutional encoder whose vector an LSTM cell receives once, before the first word,
learns them in some CPU minutes; then the words of scenes of held-out scans are traced through the gates and time steps
to the pixels (CNN Fixations, III-D). Printed, over the captions that are right: how much of the evidence of a digit's
word lies on its digit and on the other one, how often its own has more, and how often the peak of the blurred evidence
lies there; for our rules, the published ones, and the gradient of the word's logit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fixcore
from benchmarks.digits import DIGIT, SIDE, corners_apart, fit, put_pair, scans
from jobs.machine import keep_freed_memory

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "left of", "above", "<start>")
STEPS = 3
_SIGMA = 2.0


@dataclass(frozen=True, slots=True)
class Scenes:
    """N pictures with their captions."""

    images: Tensor
    """float32 (N, 1, SIDE, SIDE) in [0, 1]."""
    words: Tensor
    """int64 (N, STEPS): digit, relation, digit."""
    corners: Tensor
    """int64 (N, 2, 2): row and column of the upper left corner of the first and of the second digit named."""


def compose(digits: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Scenes:
    """Return scenes of two different digits, side by side or one above the other, at random places."""

    def below(limit: int, size: int = count) -> Tensor:
        return torch.randint(limit, (size,), generator=generator)

    first, second = below(len(digits)), below(len(digits))
    same = labels[first] == labels[second]
    while bool(same.any()):
        second[same] = below(len(digits), int(same.sum()))
        same = labels[first] == labels[second]
    above, corners = corners_apart(count, generator)
    words = torch.stack([labels[first], 10 + above.long(), labels[second]], 1)
    return Scenes(put_pair(digits[torch.stack([first, second], 1)], corners), words, corners)


class Captioner(nn.Module):
    """Show and Tell in small: the encoder's vector is the LSTM's first input, each word said is its next."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, width), nn.ReLU(),
        )  # fmt: skip
        self.embedding = nn.Embedding(len(WORDS), width)
        self.cell = nn.LSTMCell(width, width)
        self.says = nn.Linear(width, len(WORDS))

    def forward(self, images: Tensor, words: Tensor | None = None) -> Tensor:
        """Return logits (N, STEPS, words) of the caption: of its own choice, or given the words before."""
        hidden, state = self.cell(self.encoder(images))
        word = torch.full_like(hidden[:, 0], len(WORDS) - 1).long()
        logits = []
        for step in range(STEPS):
            hidden, state = self.cell(self.embedding(word), (hidden, state))
            logits.append(self.says(hidden))
            word = logits[-1].argmax(1) if words is None else words[:, step]
        return torch.stack(logits, 1)


def trained(digits: Tensor, labels: Tensor, seconds: float) -> Captioner:
    """Return a captioner trained for about so many seconds."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    captioner = Captioner()

    def loss() -> Tensor:
        scenes = compose(digits, labels, 128, generator)
        return F.cross_entropy(captioner(scenes.images, scenes.words).flatten(0, 1), scenes.words.flatten())

    fit(captioner, loss, seconds)
    return captioner


def on_digits(scenes: Scenes, which: int) -> Tensor:
    """Return the pixels, bool (N, SIDE, SIDE), of the digit named first (0) or last (1)."""
    at = torch.arange(SIDE)
    corner = scenes.corners[:, which, :, None]
    rows, cols = ((at >= corner[:, axis]) & (at < corner[:, axis] + DIGIT) for axis in (0, 1))
    return rows[:, :, None] & cols[:, None, :]


def as_maps(fixations: fixcore.Fixations) -> Tensor:
    """Return the evidence of each target as a map of masses (T, SIDE, SIDE)."""
    maps = torch.zeros(len(fixations), SIDE, SIDE)
    maps[fixations.image, fixations.row, fixations.col] = fixations.mass
    return maps


def gradient_maps(captioner: nn.Module, images: Tensor, said: Tensor) -> Tensor:
    """Return what the gradient says (Simonyan et al.): per word and pixel its size, each map summing to 1."""
    images = images.clone().requires_grad_()
    chosen = captioner(images).gather(2, said[:, :, None])[:, :, 0].sum(0)
    found = [torch.autograd.grad(chosen[step], images, retain_graph=True)[0].abs().sum(1) for step in range(STEPS)]
    maps = torch.stack(found, 1)
    return (maps / maps.sum((2, 3), keepdim=True)).flatten(0, 1)


def blurred(maps: Tensor) -> Tensor:
    """Return maps under the same Gaussian that fixations get."""
    row, col = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    count = len(maps)
    every = fixcore.Fixations(
        torch.arange(count).repeat_interleave(SIDE * SIDE), row.flatten().repeat(count), col.flatten().repeat(count),
        maps.flatten(), SIDE, SIDE, torch.zeros(count, dtype=torch.int64),
    )  # fmt: skip
    return fixcore.saliency_maps(every, sigma=_SIGMA)


def scores(maps: Tensor, scenes: Scenes, right: Tensor) -> dict[str, float]:
    """Return what the maps (N * STEPS, SIDE, SIDE) of the words are worth, over captions that are right."""
    digits = (on_digits(scenes, 0), on_digits(scenes, 1))
    peaks = blurred(maps).flatten(1).argmax(1).view(-1, STEPS)
    maps = maps.view(-1, STEPS, SIDE, SIDE)
    found = {}
    for which, (name, step) in enumerate((("first", 0), ("last", STEPS - 1))):
        own = (maps[:, step] * digits[which]).sum((1, 2))[right]
        other = (maps[:, step] * digits[1 - which]).sum((1, 2))[right]
        peak = digits[which].flatten(1).gather(1, peaks[:, step, None])[right]
        found |= {
            f"{name}: on its digit": float(own.mean()),
            f"{name}: on the other": float(other.mean()),
            f"{name}: more on its own": float((own > other).float().mean()),
            f"{name}: peak on its own": float(peak.float().mean()),
        }
    return {name: round(value, 3) for name, value in found.items()}


def draw(path: Path, scenes: Scenes, said: Tensor, maps: Tensor, rows: list[int]) -> None:
    """Write a sheet: a scene per row, and beside it the evidence of each of its words."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), STEPS + 1, figsize=(1.9 * (STEPS + 1), 2 * len(rows)), squeeze=False)
    heat = blurred(maps).view(-1, STEPS, SIDE, SIDE)
    for line, row in zip(axes, rows, strict=True):
        line[0].set_title(" ".join(WORDS[word] for word in said[row]), fontsize=8)
        for step, axis in enumerate(line[1:]):
            axis.set_title(WORDS[said[row, step]], fontsize=8)
        for axis in line:
            axis.imshow(scenes.images[row, 0], cmap="gray")
            axis.axis("off")
        for step, axis in enumerate(line[1:]):
            axis.imshow(heat[row, step], cmap="inferno", alpha=0.6, vmin=0, vmax=1)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def learned(seconds: float, count: int) -> tuple[Captioner, Scenes]:
    """Return a captioner, and scenes of scans that it has not seen."""
    digits, labels, new_digits, new_labels = scans()
    captioner = trained(digits, labels, seconds)
    return captioner, compose(new_digits, new_labels, count, torch.Generator().manual_seed(1))


def write_sheet(path: Path, seconds: float, rows: int) -> None:
    """Train a captioner and draw its first captions."""
    captioner, scenes = learned(seconds, rows)
    recording = fixcore.capture(captioner, scenes.images[:2]).record(scenes.images)
    said = recording.logits.argmax(2)
    draw(path, scenes, said, as_maps(fixcore.backtrack(recording, said)), list(range(rows)))


def main() -> None:
    """Train, trace, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="how long to train")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    captioner, scenes = learned(options.seconds, options.scenes)
    recording = fixcore.capture(captioner, scenes.images[:2]).record(scenes.images)
    said = recording.logits.argmax(2)
    right = (said == scenes.words).all(1)
    ours = as_maps(fixcore.backtrack(recording, said))
    methods = {
        "fixations": ours,
        "published rules": as_maps(fixcore.backtrack(recording, said, rules="paper")),
        "gradient": gradient_maps(captioner, scenes.images, said),
    }
    share = round(float(right.float().mean()), 3)
    result: dict[str, Any] = {"scenes": options.scenes, "captions that are right": share}
    result |= {name: scores(maps, scenes, right) for name, maps in methods.items()}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"{share:.1%} of {options.scenes} captions of held-out scans are right")
        names = list(result["fixations"])
        print("| evidence of a word | " + " | ".join(methods) + " |" + "\n|---" + "|---" * len(methods) + "|")
        for name in names:
            print(f"| {name} | " + " | ".join(f"{result[method][name]:.3f}" for method in methods) + " |")
    if options.picture is not None:
        draw(options.picture, scenes, said, ours, list(range(6)))
        print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
