"""Who judges an image: a network that knows its classes, or the held-out fold's head or network; and its tracing.

N images, K classes, S x S network pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fixcore
from pipeline.errors import ModelError
from pipeline.geometry import InputSpec
from pipeline.judging.halves import log_odds
from pipeline.judging.probe import Heads
from pipeline.judging.train import TrainPlan, learned_mirrored, load_fold_network
from pipeline.models.graphcache import GraphCache, default_folder
from pipeline.models.loading import load_model


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePlan:
    """Everything a worker needs to build its judge: names of files, no weights."""

    predict: str
    """`direct`, `probe`, `train` or `probs`."""
    class_names: tuple[str, ...]
    input: InputSpec
    model: str | None = None
    """As for `load_model`; None in `train` for the small network, and in `probs` for an audit without evidence."""
    weights: str | None = None
    heads: str | None = None
    """`probe`: file of the folds' linear heads."""
    train: TrainPlan | None = None
    """`train`: how the folds' networks are built."""
    fold_weights: tuple[str, ...] = ()
    """`train`: one file per fold, the network that never saw that fold."""
    probabilities: str | None = None
    """`probs`: Parquet of image_id and probs, sorted by image_id."""
    device: str = "cpu"
    batch_size: int = 16
    drift: bool = True
    """Also judge a smoothed copy of each image."""
    finer: bool = True
    """Find the evidence in a finer map than the network's last, where that has few places."""
    usual_share: float = 1.0
    """Share of the images predicted as labelled whose halves are looked at too, to learn what is usual (`apart`)."""
    threads: int | None = None
    """CPU threads of this worker; None: torch's own choice."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a judge says of some images of one shard: `image` int64 (n,) are their places in the shard."""

    image: NDArray[np.int64]
    pictures: Tensor
    """uint8 (n, 3, S, S), on the judge's device."""
    probs: Tensor
    """float32 (n, K) on the CPU; each row sums to 1."""
    recording: fixcore.Recording | None
    """None where there is no network to trace."""
    head: Tensor | None
    """(n, K, D): the linear head that judged each image, less the mean of its classes; None: the network's own."""
    rules: Literal["mass", "finer"] = "finer"
    """How evidence is followed."""

    def explain(self, row: Tensor, target: Tensor) -> fixcore.Fixations:
        """Return the fixations of classes `target` (T,) in this verdict's images `row` (T,); -1: none.

        Each class is set against the mean of all, so that what is compared between two classes is what softmax sees
        of them. Against the runner-up, or the others weighted by their probability, the evidence of two readings of
        one object would lie apart by construction (`python -m benchmarks.two_objects`).
        """
        assert self.recording is not None
        device = self.recording.logits.device
        row, target = row.to(device), target.to(device)
        if self.head is not None:
            start = fixcore.Start(row, target, self.head[row, target])
            return fixcore.backtrack(self.recording, start, rules=self.rules)
        contrast = fixcore.usual_contrast(self.recording.graph)
        return fixcore.backtrack(self.recording, fixcore.Start(row, target), rules=self.rules, contrast=contrast)

    def activity(self) -> Tensor:
        """Return how strongly the network responds around each pixel of this verdict's images, float32 (n, S, S)."""
        assert self.recording is not None
        return fixcore.activity_maps(self.recording, finer=self.rules == "finer")


class Judge:
    """Judges batches of decoded images out of sample; built once per worker."""

    def __init__(self, plan: JudgePlan) -> None:
        self.plan = plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self.device = torch.device(plan.device)
        size = plan.input.size
        self._example = torch.zeros(2, 3, size, size, device=self.device)
        self._mean = torch.tensor(plan.input.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(plan.input.std, device=self.device).view(1, 3, 1, 1)
        self.graphs = self._build_graphs()
        self._mirrored = {  # networks that learned from mirror images judge those, too
            graph for graph, path in zip(self.graphs, plan.fold_weights, strict=False) if learned_mirrored(Path(path))
        }
        self.heads = Heads.load(Path(plan.heads)) if plan.predict == "probe" and plan.heads else None
        if self.heads is not None:
            self._weight = torch.from_numpy(self.heads.weight).to(self.device)
            self._bias = torch.from_numpy(self.heads.bias).to(self.device)
            self._against_mean = self._weight - self._weight.mean(1, keepdim=True)

    def images(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return uint8 (n, S, S, 3) pixels as uint8 (n, 3, S, S) on the judge's device, channels last in memory."""
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2)

    def normalised(self, images: Tensor) -> Tensor:
        """Return uint8 images as the network wants them, float (n, 3, S, S), channels last in memory."""
        return (images.float() / 255 - self._mean) / self._std

    def features(self, images: Tensor) -> Tensor:
        """Return what a linear probe reads of uint8 images, float32 (n, D)."""
        return self.graphs[0].embed(self.normalised(images)).float()

    def judge(self, images: Tensor, folds: NDArray[np.int16]) -> Iterator[Verdict]:
        """Judge uint8 images (n, 3, S, S), each by the fold that never saw it; one verdict per network needed."""
        for graph, rows in self._assigned(folds):
            chosen = images[torch.from_numpy(rows).to(self.device)] if len(rows) < len(images) else images
            seen = self.normalised(chosen)
            recording = graph.record(seen)
            logits, head = self._logits(recording.logits, recording, folds[rows])
            probs = self._probabilities(graph, seen, logits)
            yield Verdict(rows, chosen, probs, recording, head, "finer" if self.plan.finer else "mass")

    def probabilities(self, images: Tensor, folds: NDArray[np.int16]) -> Tensor:
        """Return the probabilities alone, float32 (n, K) on the CPU, for a second look at no further cost."""
        found = torch.empty(len(images), len(self.plan.class_names))
        for graph, rows, seen, logits in self._looks(images, folds):
            found[rows] = self._probabilities(graph, seen, logits)
        return found

    def log_odds(self, images: Tensor, folds: NDArray[np.int16], classes: Tensor) -> Tensor:
        """Return the log-odds of each image's own classes (n, C), in nats, float32 (n, C) on the CPU."""
        found = torch.empty(len(images), len(self.plan.class_names))
        for _, rows, _, logits in self._looks(images, folds):
            found[rows] = logits.float().cpu()
        return log_odds(found, classes)

    def _looks(
        self, images: Tensor, folds: NDArray[np.int16]
    ) -> Iterator[tuple[fixcore.Graph, Tensor, Tensor, Tensor]]:
        """Each network, its rows, what it sees of them, and its logits, without a recording."""
        for graph, rows in self._assigned(folds):
            own = torch.from_numpy(rows)
            seen = self.normalised(images[own.to(self.device)])
            if self.heads is None:
                yield graph, own, seen, graph.classify(seen)
            else:
                yield graph, own, seen, self._head_logits(graph.embed(seen).float(), folds[rows])

    def _probabilities(self, graph: fixcore.Graph, seen: Tensor, logits: Tensor) -> Tensor:
        """Return float32 (n, K) on the CPU: the softmax, or its mean with that of the mirror images."""
        probs = logits.float().softmax(1)
        if graph in self._mirrored:
            probs = (probs + graph.classify(seen.flip(3)).float().softmax(1)) / 2
        return probs.cpu()

    def _logits(
        self, own: Tensor, recording: fixcore.Recording, folds: NDArray[np.int16]
    ) -> tuple[Tensor, Tensor | None]:
        if self.heads is None:
            return own, None
        head = self._against_mean[torch.from_numpy(folds.astype(np.int64)).to(self.device)]
        return self._head_logits(recording.features.float(), folds), head

    def _head_logits(self, features: Tensor, folds: NDArray[np.int16]) -> Tensor:
        fold = torch.from_numpy(folds.astype(np.int64)).to(self.device)
        return torch.einsum("nd,nkd->nk", features, self._weight[fold]) + self._bias[fold]

    def _assigned(self, folds: NDArray[np.int16]) -> Iterator[tuple[fixcore.Graph, NDArray[np.int64]]]:
        """Each network with the images that it judges."""
        if not self.graphs:
            return
        if self.plan.predict != "train":
            yield self.graphs[0], np.arange(len(folds), dtype=np.int64)
            return
        for fold, graph in enumerate(self.graphs):
            rows = np.flatnonzero(folds == fold)
            if len(rows):
                yield graph, rows

    def _build_graphs(self) -> list[fixcore.Graph]:
        plan = self.plan
        if plan.predict == "train":
            assert plan.train is not None
            networks = [load_fold_network(plan.train, Path(path)) for path in plan.fold_weights]
            return fixcore.capture_all([network.to(self.device) for network in networks], self._example)
        if plan.model is None:
            return []
        loaded = load_model(plan.model, weights=Path(plan.weights) if plan.weights else None)
        module = loaded.module.to(self.device) if isinstance(loaded.module, torch.nn.Module) else loaded.module
        graph = fixcore.capture(module, self._example, cache=GraphCache(default_folder()))
        if plan.predict == "probe":
            if graph.head is None:
                raise ModelError(
                    f"{plan.model} does not end in a linear layer, so no probe can be trained on it; "
                    "choose another --model, or --predict train"
                )
        elif graph.classes != len(plan.class_names):
            raise ModelError(
                f"{plan.model} tells {graph.classes} classes apart, the dataset has {len(plan.class_names)}; "
                "give the model's class names in its order with --classes FILE, or use --predict probe"
            )
        return [graph]
