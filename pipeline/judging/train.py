"""K-fold training: a network per fold that never sees the images it will judge.

N images, S x S network pixels, K classes, F folds. Labels are taken to be noisy: training is short, its learning rate
ends at zero, images are varied and labels smoothed, so that a wrong label is rather outvoted than learned by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError, DatasetError, ModelError
from pipeline.files import replacing
from pipeline.geometry import InputSpec
from pipeline.judging.augment import mirroring_is_harmless, vary
from pipeline.judging.network import small_network
from pipeline.models.loading import load_model

__all__ = [
    "TrainPlan",
    "epochs_learned",
    "learned_mirrored",
    "load_fold_network",
    "small_network",
    "train_fold",
    "training_input",
]

_SMALLEST, _LARGEST, _STEP = 32, 96, 8  # sides of the small network's input, in pixels
_BATCH = 64
_SMOOTHING = 0.1
_SCOUT_SHARE = 0.125  # of the epochs, spent on most of the images to find out about mirroring
_SCOUT_HELD_BACK = 8  # one image in so many
_MIRRORED, _EPOCHS = "learned from mirror images", "epochs"  # in the weights' metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """How the folds' networks are built and trained; small, can be sent to a worker.

    Raises:
        ConfigError: fewer than one epoch, or weights without a model.

    """

    class_count: int
    """K."""
    input: InputSpec
    epochs: int | None = None
    """Passes over the training images; None: chosen from their number, see `train_fold`."""
    seed: int = 0
    model: str | None = None
    """As for `load_model`: a network to fine-tune. None: `small_network`, from scratch."""
    weights: str | None = None
    """File of weights that fine-tuning starts from; None: the published ones."""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; None: torch's own choice."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"epochs = {self.epochs} is out of range; use 1 or more")
        if self.weights is not None and self.model is None:
            raise ConfigError("weights are given without a model; name their network with --model")


def training_input(widths: npt.NDArray[np.integer], heights: npt.NDArray[np.integer]) -> InputSpec:
    """Choose what the small network sees, from original sizes in pixels.

    The whole image, squashed to a square of the images' median short side, rounded to 8 pixels, 32 to 96. Sizes that
    are not positive (unreadable images) do not count. Raises DatasetError if none is left.
    """
    short = np.minimum(widths, heights)
    short = short[short > 0]
    if not len(short):
        raise DatasetError("no image can be read; see the error column of the evidence")
    size = round(float(np.median(short)) / _STEP) * _STEP
    return InputSpec(size=min(max(size, _SMALLEST), _LARGEST), fit="squash", mean=(0.5,) * 3, std=(0.25,) * 3)


def train_fold(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    folds: npt.NDArray[np.integer],
    held_out: int,
    *,
    usable: npt.NDArray[np.bool_],
    plan: TrainPlan,
    out: Path,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train the network that judges fold `held_out` on all other folds, and write its weights to `out`.

    A first eighth of the epochs keeps every eighth training image back, to see on them whether mirror images keep
    their label; the rest trains on all, and mirrors if they do. No image of fold `held_out` takes part in either. The
    number of epochs falls with the cube root of the number of images (28 for 1,500, 14 for 12,000; fine-tuning a
    quarter as many), between 3 and 60. On a CPU the same plan, data and number of threads give the same weights.

    Args:
        pixels: (N, S, S, 3) RGB, may be a memory map.
        labels: (N,) class index; -1 is unknown and never trained on.
        folds: (N,) fold of each image.
        held_out: the fold to leave out.
        usable: (N,) False where the image could not be read; never trained on.
        plan: network and schedule.
        out: safetensors file of the state dict, written whole or not at all.
        progress: called with the share that is done, in (0, 1], after every batch.

    Raises:
        DatasetError: nothing to train on.
        ModelError: the network cannot be had, or its training does not converge.

    """
    rows = np.flatnonzero(usable & (labels >= 0) & (folds != held_out))
    if not len(rows):
        raise DatasetError(f"no readable labelled image outside fold {held_out}; add images or lower --folds")
    rng = np.random.default_rng([plan.seed, held_out])
    with _torch_settings(plan, int(rng.integers(2**62))):
        trainer = _Trainer(plan, pixels, labels, rng)
        epochs = plan.epochs or _epochs(len(rows), plan)
        scouting = min(round(epochs * _SCOUT_SHARE), epochs - 1)
        mirror = False
        shuffled = rng.permutation(rows)
        check, learn = shuffled[: len(rows) // _SCOUT_HELD_BACK], shuffled[len(rows) // _SCOUT_HELD_BACK :]
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            done += share / epochs
            if progress is not None:
                progress(min(done, 1.0))

        if scouting and len(check):
            trainer.fit(learn, scouting, mirror=False, advance=advance)
            answers = [trainer.classify(check, mirror=turned) for turned in (False, True)]
            mirror = mirroring_is_harmless(labels[check], *answers)
        trainer.fit(rows, epochs - scouting, mirror=mirror, advance=advance)
        state = {name: value.detach().cpu().contiguous() for name, value in trainer.network.state_dict().items()}
    if not all(value.isfinite().all() for value in state.values()):
        raise ModelError(f"training without fold {held_out} did not converge: weights are not finite")
    with replacing(out) as partial:
        save_file(state, partial, metadata={_MIRRORED: "yes" if mirror else "no", _EPOCHS: str(epochs)})


def load_fold_network(plan: TrainPlan, path: Path) -> nn.Module:
    """Return the network that `train_fold` wrote under `plan`, on the CPU, in eval mode, without gradients.

    Raises:
        ModelError: the file cannot be read or does not fit the plan.

    """
    with torch.random.fork_rng([]):  # first weights are drawn, then replaced
        network = _build(plan, pretrained=False)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} does not hold the network of this run ({reason}); run the audit again") from error
    return network.eval().requires_grad_(False)


def learned_mirrored(path: Path) -> bool:
    """Tell whether the network of a file that `train_fold` wrote learned from mirror images, too."""
    return _told(path).get(_MIRRORED) == "yes"


def epochs_learned(path: Path) -> int | None:
    """Return how often the network of a file that `train_fold` wrote saw its images; None where that is not told."""
    epochs = _told(path).get(_EPOCHS)
    return None if epochs is None else int(epochs)


def _told(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as weights:
        return weights.metadata() or {}


class _Trainer:
    """A network, its images, and the random numbers it is trained with."""

    def __init__(
        self,
        plan: TrainPlan,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer],
        rng: np.random.Generator,
    ) -> None:
        self.plan, self.pixels, self.rng = plan, pixels, rng
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.device = torch.device(plan.device)
        network = _build(plan, pretrained=True).requires_grad_(True).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(plan.input.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(plan.input.std, device=self.device).view(1, 3, 1, 1)

    def fit(self, rows: npt.NDArray[np.intp], epochs: int, *, mirror: bool, advance: Callable[[float], None]) -> None:
        """Go `epochs` times over `rows`, the learning rate rising first and ending at zero."""
        size = min(_BATCH, max(8, len(rows) // 8))  # a small dataset needs steps more than it needs large batches
        batches = -(-len(rows) // size)
        optimiser, rate = self._optimiser(size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, total_steps=epochs * batches, pct_start=0.2, cycle_momentum=False
        )
        self.network.train()
        for _ in range(epochs):
            for batch in np.array_split(self.rng.permutation(rows), batches):
                images = self._images(vary(self.pixels[batch], self.rng, mirror=mirror))
                target = self.labels[batch].to(self.device)
                loss = F.cross_entropy(self.network(images), target, label_smoothing=_SMOOTHING)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                advance(1 / batches)

    @torch.no_grad()
    def classify(self, rows: npt.NDArray[np.intp], *, mirror: bool) -> npt.NDArray[np.int64]:
        """Return the predicted class of each of `rows`, or of their mirror images."""
        self.network.eval()
        found = []
        for batch in np.array_split(rows, -(-len(rows) // _BATCH)):
            pixels = self.pixels[batch]
            found.append(self.network(self._images(pixels[:, :, ::-1] if mirror else pixels)).argmax(1).cpu())
        answer: npt.NDArray[np.int64] = torch.cat(found).numpy()
        return answer

    def _images(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(0, 3, 1, 2)
        return (images.float() / 255 - self.mean) / self.std

    def _optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, float]:
        """Return the optimiser and the highest learning rate, which grows with the batch."""
        if self.plan.model is None:
            rate = 0.05 * batch / _BATCH
            weights = self.network.parameters()
            return torch.optim.SGD(weights, lr=rate, momentum=0.9, nesterov=True, weight_decay=2e-3), rate
        rate = 3e-4 * batch / _BATCH
        return torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=0.05), rate


def _build(plan: TrainPlan, *, pretrained: bool) -> nn.Module:
    """Return the plan's network, able to tell K classes apart."""
    if plan.model is None:
        return small_network(plan.class_count, plan.input.size)
    weights = Path(plan.weights) if plan.weights is not None else None
    network = load_model(plan.model, weights=weights, classes=plan.class_count, pretrained=pretrained).module
    assert isinstance(network, nn.Module), "load_model gives an exported program no other head"
    with torch.no_grad():
        shape = tuple(network.eval()(torch.zeros(2, 3, plan.input.size, plan.input.size)).shape)
    if shape != (2, plan.class_count):
        raise ModelError(
            f"{plan.model} returns {shape} for 2 images, not (2, {plan.class_count}); a function that builds a network"
            " to fine-tune takes num_classes"
        )
    return network


def _epochs(count: int, plan: TrainPlan) -> int:
    """Return fewer epochs for more images: the work grows by their number to the power of two thirds."""
    at_1500 = 28 if plan.model is None else 7
    return min(max(round(at_1500 * math.cbrt(1500 / count)), 3), 60)


@contextmanager
def _torch_settings(plan: TrainPlan, seed: int) -> Iterator[None]:
    """Set the number of threads and the seed inside, and leave both as they were."""
    threads = torch.get_num_threads()
    device = torch.device(plan.device)
    try:
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
