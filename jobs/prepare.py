"""What must be done before the first image can be judged out of sample, in each way to predict.

probe: features of every image, folds, a linear head per fold. train: pixels of every image, folds, a network per
fold. probs: the user's file, in the manifest's order. Each leaves its result in the run's work folder and is skipped
when a run that was stopped goes on there. N images, D features, K classes, S x S network pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.engine import Engine, Tell
from jobs.progress import Reporter
from jobs.shards import UNREADABLE, NoStep, SaveFeatures, SavePixels
from pipeline.audit.duplicates import same_pictures
from pipeline.config import RunConfig
from pipeline.dataset.images import decode_shard
from pipeline.dataset.manifest import Manifest, Shard
from pipeline.errors import DatasetError, RunFolderError
from pipeline.files import replacing
from pipeline.geometry import InputSpec
from pipeline.judging.evidence import FeatureStep
from pipeline.judging.folds import assign_folds
from pipeline.judging.judge import JudgePlan
from pipeline.judging.probe import fit_heads
from pipeline.judging.train import TrainPlan, train_fold, training_input
from pipeline.labels.probs import stream_probabilities

PREVIEW = InputSpec(size=32, fit="squash")
"""How images are decoded when no network looks at them: only to see that they can be, and how large they are."""
_ROW_GROUP = 256
"""Rows that a worker reads at once of the probabilities brought; about a shard."""
_LOOKED_AT = 256
"""Images whose sizes decide what the small network sees."""
_MOST_EXCUSED = 1000
"""Images without probabilities that are opened, to see whether somebody could have judged them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the evidence pass needs."""

    plan: JudgePlan
    folds: NDArray[np.int16]
    """(N,) the fold that each image is judged with; -1 without folds."""


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """The steps before the evidence, for one run."""

    config: RunConfig
    engine: Engine
    reporter: Reporter
    manifest: Manifest
    work: Path

    def direct(self, plan: JudgePlan) -> Prepared:
        """Nothing to prepare: the model never saw this dataset."""
        return Prepared(plan, np.full(len(self.manifest), -1, dtype=np.int16))

    def probe(self, plan: JudgePlan) -> Prepared:
        """Fit a linear head per fold on the features of the other folds."""
        heads = self.work / "heads.safetensors"
        if not heads.is_file():
            save = SaveFeatures(self.work)
            decode = functools.partial(decode_shard, spec=plan.input)
            self._pass("reading features", decode, functools.partial(FeatureStep, plan), save)
            features = self._joined_features(save)
            self.reporter.say(f"fitting {self.config.folds} linear heads to {features.shape[1]:,} features")
            fit_heads(
                features,
                self._labels,
                self._assign_folds(*self._seen(save)),
                class_count=len(self.manifest.class_names),
                seed=self.config.seed,
                device=plan.device,
            ).save(heads)
            (self.work / "features.npy").unlink()
            shutil.rmtree(save.folder)
        return Prepared(dataclasses.replace(plan, heads=str(heads)), self._saved_folds())

    def train(self, plan: JudgePlan) -> Prepared:
        """Train a network per fold on the images of the other folds."""
        config = self.config
        spec = plan.input if config.model is not None else config.input_for(self._training_input())
        train = TrainPlan(
            class_count=len(self.manifest.class_names),
            input=spec,
            epochs=config.epochs,
            seed=config.seed,
            model=plan.model,
            weights=plan.weights,
            device=plan.device,
            threads=self.engine.threads_for(config.folds),
        )
        paths = [self.work / f"fold-{fold}.safetensors" for fold in range(config.folds)]
        todo = [(fold, str(path)) for fold, path in enumerate(paths) if not path.is_file()]
        if todo:
            first = np.cumsum([0, *(len(shard.rows) for shard in self.manifest.shards())]).tolist()
            save = SavePixels(self.work, dict(enumerate(first)))
            self._make_room(save.pixels, spec)
            self._pass("reading images", functools.partial(decode_shard, spec=spec), NoStep, save)
            groups, thumbnails = self._seen(save)
            with replacing(self.work / "training.npz") as partial, partial.open("wb") as file:
                usable = np.array([not group.startswith(UNREADABLE) for group in groups])
                np.savez(file, labels=self._labels, folds=self._assign_folds(groups, thumbnails), usable=usable)
            self._train_folds(functools.partial(_train_one, str(self.work), train), todo)
            save.pixels.unlink()
        plan = dataclasses.replace(plan, input=spec, train=train, fold_weights=tuple(str(path) for path in paths))
        return Prepared(plan, self._saved_folds())

    def probs(self, plan: JudgePlan) -> Prepared:
        """Bring the user's probabilities into the manifest's order; images that nobody can read need none."""
        brought = self.work / "probabilities.parquet"
        if not brought.is_file():
            with replacing(brought) as partial:
                self._bring(partial)
        return self.direct(dataclasses.replace(plan, probabilities=str(brought)))

    def _bring(self, path: Path) -> None:
        """Write the user's probabilities in the manifest's order, holding a few thousand rows of them.

        The file may have them in any order, so they are sorted in a file beside, which is mapped anew for each part:
        what a process touched of a map counts as its memory until it lets go of it.
        """
        names = self.manifest.class_names
        ids = self.manifest.table["image_id"].combine_chunks().cast(pa.string())
        shape = (len(ids), len(names))
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            beside = Path(folder) / "probabilities.npy"
            _laid_out(beside, np.float32, shape)
            for place, values in _brought(self.config, self.manifest):
                np.load(beside, mmap_mode="r+")[place] = values
            kind = pa.schema([("image_id", pa.string()), ("probs", pa.list_(pa.float32(), len(names)))])
            with pq.ParquetWriter(path, kind) as writer:
                for start in range(0, len(ids), _ROW_GROUP):
                    part = np.load(beside, mmap_mode="r")[start : start + _ROW_GROUP]
                    values = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), len(names))
                    writer.write_table(pa.table([ids[start : start + _ROW_GROUP], values], schema=kind))

    @property
    def _labels(self) -> NDArray[np.int32]:
        labels: NDArray[np.int32] = self.manifest.table["label"].to_numpy()
        return labels

    def _pass(self, title: str, decode: Any, make_step: Callable[[], Any], save: SaveFeatures | SavePixels) -> None:
        """Put every shard that is not saved yet through a step."""
        todo = [shard for shard in self.manifest.shards() if not save.path(shard.index).is_file()]
        total = len(self.manifest)
        before = total - sum(len(shard.rows) for shard in todo)
        with (
            self.reporter.step(title, total, done=before) as advance,
            closing(self.engine.map_shards(todo, decode, make_step, save)) as results,
        ):
            for images in results:
                advance(images)

    def _seen(self, save: SaveFeatures | SavePixels) -> tuple[list[str], NDArray[np.uint8]]:
        """Return every image's group and thumbnail, in the manifest's order."""
        groups, thumbnails = zip(*(save.seen(shard.index) for shard in self.manifest.shards()), strict=True)
        return list(chain.from_iterable(groups)), np.concatenate(thumbnails)

    def _joined_features(self, save: SaveFeatures) -> NDArray[np.float32]:
        """Put the shards' features into one memory map, so that they are never whole in memory."""
        shards = self.manifest.shards()
        width = save.features(shards[0].index).shape[1]
        joined = _laid_out(self.work / "features.npy", np.float32, (len(self.manifest), width))
        start = 0
        for shard in shards:
            joined[start : start + len(shard.rows)] = save.features(shard.index)
            start += len(shard.rows)
        joined.flush()
        return joined

    def _assign_folds(self, groups: list[str], thumbnails: NDArray[np.uint8]) -> NDArray[np.int16]:
        groups = same_pictures(groups, thumbnails)
        folds = assign_folds(self._labels, groups, self.config.folds, self.config.seed)
        with replacing(self.work / "folds.npy") as partial, partial.open("wb") as file:
            np.save(file, folds)
        return folds

    def _saved_folds(self) -> NDArray[np.int16]:
        folds: NDArray[np.int16] = np.load(self.work / "folds.npy")
        return folds

    def _training_input(self) -> InputSpec:
        """Choose what the small network sees, from images spread over the dataset; from all where none can be read."""
        rows = pa.concat_tables([shard.rows for shard in self.manifest.shards()])
        for count in (min(_LOOKED_AT, len(rows)), len(rows)):
            some = rows.take(np.linspace(0, len(rows) - 1, count).astype(np.int64))
            found = decode_shard(Shard(0, some), PREVIEW).rows
            if "ok" in found["status"].to_pylist():
                return training_input(*(found[name].drop_null().to_numpy() for name in ("width", "height")))
        raise DatasetError(f"none of the {len(rows)} images can be read; the first: {found['error'][0].as_py()}")

    def _make_room(self, path: Path, spec: InputSpec) -> None:
        """Lay out the memory map of the training images, unless a run that was stopped did."""
        if not path.is_file():
            with replacing(path) as partial:
                _laid_out(partial, np.uint8, (len(self.manifest), spec.size, spec.size, 3))

    def _train_folds(self, task: Callable[[tuple[int, str], Tell], int], todo: Sequence[tuple[int, str]]) -> None:
        done = [0.0] * len(todo)
        total = self.config.folds
        with self.reporter.step("training", total, done=total - len(todo), unit="networks") as advance:

            def hear(position: int, share: float) -> None:
                advance(share - done[position])
                done[position] = share

            with closing(self.engine.map_tasks(task, todo, hear)) as results:
                for _ in results:
                    pass


def check_probabilities(config: RunConfig, manifest: Manifest) -> None:
    """Raise ProbabilitiesError for a file of probabilities that a run could not use."""
    for _ in _brought(config, manifest):
        pass


def _brought(config: RunConfig, manifest: Manifest) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Read the user's probabilities (see `stream_probabilities`); images that nobody can read need none."""
    assert config.probs is not None
    ids: list[str] = manifest.table["image_id"].to_pylist()
    excuse = functools.partial(_unreadable, manifest)
    return stream_probabilities(Path(config.probs), ids, manifest.class_names, excuse=excuse)


def _unreadable(manifest: Manifest, ids: list[str]) -> list[str]:
    """Return those of these images that cannot be read; of many, the first are asked."""
    rows = pa.concat_tables([shard.rows for shard in manifest.shards()])
    table = rows.filter(pc.is_in(rows["image_id"], pa.array(ids[:_MOST_EXCUSED], rows["image_id"].type)))
    found = decode_shard(Shard(0, table), PREVIEW).rows
    pairs = zip(found["image_id"].to_pylist(), found["status"].to_pylist(), strict=True)
    return [image_id for image_id, status in pairs if status == "error"]


def _train_one(work: str, plan: TrainPlan, item: tuple[int, str], tell: Tell) -> int:
    """Train the network of one fold; runs on a worker."""
    fold, path = item
    with np.load(Path(work) / "training.npz") as given:
        labels, folds, usable = given["labels"], given["folds"], given["usable"]
    pixels = np.load(Path(work) / "pixels.npy", mmap_mode="r")
    train_fold(pixels, labels, folds, fold, usable=usable, plan=plan, out=Path(path), progress=tell)
    return fold


def _laid_out(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[Any]]:
    """Return a new memory map whose disk space is taken: to run out of it later would kill the process, speechless."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise RunFolderError(
            f"{path.parent} has {free / 1e9:.1f} GB free and the run needs {size / 1e9:.1f} GB for a while; "
            "choose another --out"
        )
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
