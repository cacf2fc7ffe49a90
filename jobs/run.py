"""One audit from folder to report: which steps, in which order, and what each leaves for the next.

manifest -> what the judge needs (`jobs/prepare.py`) -> evidence, shard by shard -> audit -> issues -> summary ->
report -> run.json
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from jobs.claim import check_junit, check_out, claim_folder, held, refuse_complete
from jobs.engine import Engine
from jobs.inprocess import InProcess
from jobs.machine import usable_device
from jobs.prepare import PREVIEW, Preparation, Prepared, check_probabilities
from jobs.progress import Reporter
from jobs.result import RunResult, conclude, result_of, write_pages
from jobs.shards import CommitEvidence, is_committed
from pipeline import schema
from pipeline.audit.review import known_verdicts, read_verdicts
from pipeline.config import FEW_IMAGES, RunConfig
from pipeline.dataset.images import decode_shard
from pipeline.dataset.manifest import Manifest, read_class_names, read_manifest
from pipeline.errors import DatasetError, ModelError, VerdictsError
from pipeline.files import sha256_of, write_json, write_parquet
from pipeline.gate import parse_gates, require_classes, write_junit
from pipeline.judging.evidence import EvidenceStep
from pipeline.judging.folds import fold_warnings
from pipeline.judging.judge import JudgePlan
from pipeline.judging.train import epochs_learned
from pipeline.labels.apart import usual_share
from pipeline.models.loading import LoadedModel, from_anywhere, load_model, resolve_classes
from pipeline.runfolder import RunFolder
from pipeline.wording import amount

_LARGEST_SHARD, _SMALLEST_SHARD = 256, 16
_FEWEST_SHARDS = 32
"""Few images are cut into at least so many shards, of `_SMALLEST_SHARD` images or more, to keep all workers busy."""
_PACKAGES = ("torch", "torchvision", "ray", "pyarrow", "numpy", "pandas", "pillow", "scikit-learn")


def run_audit(config: RunConfig, reporter: Reporter, engine: Engine | None = None) -> RunResult:
    """Audit a dataset and write its run folder; `run.json` last. `engine`: None for the one that the settings name.

    A run that was stopped goes on where it stood: shards that are committed under the same settings, dataset and
    model are not judged again.

    Raises AuditError, or FixcoreError for a network that cannot be traced, for whatever the user can mend; a single
    bad image raises nothing.
    """
    return _Run(config, reporter, engine).audit()


@dataclass(slots=True)
class _Run:
    config: RunConfig
    reporter: Reporter
    given_engine: Engine | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    probs_sha256: str | None = None

    def audit(self) -> RunResult:
        config = self.config
        device = usable_device(self.config.device)
        check_out(Path(config.out), Path(config.dataset))
        if config.junit is not None:
            check_junit(Path(config.junit))
        if config.name is not None and not config.overwrite:
            refuse_complete(self._folder(""))
        with self._timed("manifest"):
            manifest = self._read_manifest(None)
        # before any work, so that a mistake in the file costs none
        verdicts = None if config.reviewed is None else self._verdicts(Path(config.reviewed), manifest)
        with self._timed("model"):
            loaded = self._load_model()
            if config.predict == "direct" and config.classes is None:
                assert loaded is not None
                names = self._names_of_outputs(loaded, manifest)
                manifest = manifest if names == manifest.class_names else self._read_manifest(names)
        gates = parse_gates(config.fail_on or "")
        require_classes(gates, manifest.class_names)
        digest = self._digest(manifest, loaded)
        folder = self._folder(digest)
        if verdicts is None:
            verdicts = self._kept_verdicts(folder, manifest)
        if config.probs is not None and config.overwrite and folder.is_complete:  # which would be gone
            check_probabilities(config, manifest)
        with held(folder):
            goes_on = claim_folder(folder, digest, overwrite=config.overwrite)
            for line in manifest.warnings:
                self._warn(line)
            if goes_on:
                self.reporter.say(f"going on with the run in {folder.path}")
            write_parquet(manifest.table, folder.manifest, schema.MANIFEST)
            try:
                with self.given_engine or _engine_for(config, len(manifest), device) as engine:
                    prepared = self._prepare(engine, folder, manifest, self._plan(manifest, loaded, device))
                    with self._timed("evidence"):
                        self._collect_evidence(engine, folder, manifest, prepared, digest)
            except KeyboardInterrupt:
                self.reporter.say(
                    f"stopped; what is done is kept in {folder.path}, and the same command goes on from there"
                )
                raise
            with self._timed("audit"):
                summary = conclude(folder, manifest.class_names, verdicts)
            with self._timed("report"):
                write_pages(folder, config.dataset)
            result = result_of(folder, summary, gates, seconds=self._seconds(), warnings=self.warnings)
            facts = self._facts(manifest, loaded, prepared.plan, result.counts)
            resolved = _resolved(config, engine, manifest, prepared.plan)
            write_json(facts | {"resolved": resolved}, folder.run_json)
            shutil.rmtree(folder.work, ignore_errors=True)  # complete without it
            if config.junit is not None:
                write_junit(Path(config.junit), gates, summary)
            return result

    def _read_manifest(self, class_names: Sequence[str] | None) -> Manifest:
        config = self.config
        if class_names is None and config.classes is not None:
            class_names = read_class_names(Path(config.classes))
        read = functools.partial(read_manifest, Path(config.dataset), class_names=class_names)
        manifest = read(shard_size=config.shard_size or _LARGEST_SHARD)
        if config.shard_size is None and len(manifest) < _LARGEST_SHARD * _FEWEST_SHARDS:
            # decided by the images alone, so that the shards are the same on any machine
            manifest = read(shard_size=max(_SMALLEST_SHARD, math.ceil(len(manifest) / _FEWEST_SHARDS)))
        labels = np.unique(manifest.table["label"].to_numpy())
        if config.predict in ("probe", "train") and np.count_nonzero(labels >= 0) < 2:
            (label,) = labels[labels >= 0]
            raise DatasetError(
                f"{config.dataset} holds images of one class only ({manifest.class_names[label]}); "
                + (
                    _classes_below(Path(config.dataset), manifest)
                    or f"{config.predict} learns to tell classes apart: add another class, or use --predict direct "
                    "with a model that knows more"
                )
            )
        return manifest

    def _verdicts(self, path: Path, manifest: Manifest, *, may_be_empty: bool = False) -> dict[str, bool]:
        """Read what people said of this dataset's labels."""
        verdicts, left_out = known_verdicts(read_verdicts(path, may_be_empty=may_be_empty), manifest.table, path)
        for line in left_out:
            self._warn(line)
        return verdicts

    def _kept_verdicts(self, folder: RunFolder, manifest: Manifest) -> dict[str, bool]:
        """Read what people said of the run that is replaced: the new run's review.csv takes the place of its own."""
        if not folder.review.is_file() or (folder.is_complete and not self.config.overwrite):
            return {}
        try:
            verdicts = self._verdicts(folder.review, manifest, may_be_empty=True)
        except VerdictsError as error:
            raise VerdictsError(f"{error}; mend it, move it away, or choose another --name") from error
        if verdicts:
            kept = amount(len(verdicts), "verdict")
            self.reporter.say(f"{kept} in {folder.review} will count again; --reviewed FILE takes others")
        return verdicts

    def _load_model(self) -> LoadedModel | None:
        """Load the model here once, so that a wrong name or file is told before any work; workers load their own."""
        if self.config.model is None:
            return None
        return load_model(self.config.model, weights=_path(self.config.weights))

    def _names_of_outputs(self, loaded: LoadedModel, manifest: Manifest) -> tuple[str, ...]:
        try:
            return resolve_classes(loaded, manifest.class_names)
        except ModelError as error:
            below = _classes_below(Path(self.config.dataset), manifest)
            if not below:
                raise
            raise ModelError(f"{error}; {below}") from error

    def _digest(self, manifest: Manifest, loaded: LoadedModel | None) -> str:
        """Fingerprint of all that decides the evidence.

        Columns, settings, dataset, model, versions, probabilities brought.
        """
        parts = [
            f"schema {schema.VERSION}",
            self.config.fingerprint(),
            str(Path(self.config.dataset).resolve()),
            manifest.fingerprint,
            loaded.fingerprint if loaded else "",
            *(f"{package} {version(package)}" for package in ("fixaudit", "torch", "torchvision")),
        ]
        if self.config.probs is not None and Path(self.config.probs).is_file():
            self.probs_sha256 = sha256_of(Path(self.config.probs))
            parts.append(self.probs_sha256)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _folder(self, digest: str) -> RunFolder:
        dataset = Path(self.config.dataset).resolve()
        own = (dataset.name if dataset.is_dir() else dataset.stem) or "dataset"
        return RunFolder(Path(self.config.out) / (self.config.name or f"{own}-{digest[:8]}"))

    def _plan(self, manifest: Manifest, loaded: LoadedModel | None, device: str) -> JudgePlan:
        config = self.config
        return JudgePlan(
            predict=config.predict,
            class_names=manifest.class_names,
            input=config.input_for(loaded.input) if loaded else PREVIEW,
            model=None if config.model is None else from_anywhere(config.model),
            weights=None if config.weights is None else str(Path(config.weights).resolve()),
            device=device,
            batch_size=config.batch_size,
            drift=config.drift,
            finer=config.finer,
            usual_share=usual_share(len(manifest)),
        )

    def _prepare(self, engine: Engine, folder: RunFolder, manifest: Manifest, plan: JudgePlan) -> Prepared:
        """Do what must be done before the first image can be judged out of sample."""
        plan = dataclasses.replace(plan, threads=engine.threads)
        steps = Preparation(self.config, engine, self.reporter, manifest, folder.work.resolve())
        with self._timed("prepare"):
            prepared = {"direct": steps.direct, "probe": steps.probe, "train": steps.train, "probs": steps.probs}[
                self.config.predict
            ](plan)
        if self.config.predict in ("probe", "train"):
            labels = manifest.table["label"].to_numpy()
            for line in fold_warnings(labels, prepared.folds, manifest.class_names):
                self._warn(line)
        return prepared

    def _collect_evidence(
        self, engine: Engine, folder: RunFolder, manifest: Manifest, prepared: Prepared, digest: str
    ) -> None:
        shards = manifest.shards(prepared.folds)
        todo = [shard for shard in shards if not is_committed(folder, shard, digest)]
        before = len(manifest) - sum(len(shard.rows) for shard in todo)
        decode = functools.partial(decode_shard, spec=prepared.plan.input)
        make_step = functools.partial(EvidenceStep, prepared.plan)
        commit = CommitEvidence(RunFolder(folder.path.resolve()), digest)
        with (
            self.reporter.step("judging and tracing", len(manifest), done=before) as advance,
            closing(engine.map_shards(todo, decode, make_step, commit)) as results,
        ):
            for images in results:
                advance(images)

    def _facts(
        self, manifest: Manifest, loaded: LoadedModel | None, plan: JudgePlan, counts: dict[str, int]
    ) -> dict[str, Any]:
        own = version("fixaudit")
        timings = {**self.timings, "total": self._seconds()}
        return {
            "fixaudit": own,
            "schema": schema.VERSION,
            "config": dataclasses.asdict(self.config),
            "dataset": {
                "path": str(Path(self.config.dataset).resolve()),
                "fingerprint": manifest.fingerprint,
                "images": len(manifest),
                "classes": list(manifest.class_names),
            },
            "model": {
                "spec": loaded.spec if loaded else None,
                "digest": loaded.digest if loaded else None,
                "input": dataclasses.asdict(plan.input),
            },
            "probs": None
            if self.config.probs is None
            else {"path": str(Path(self.config.probs).resolve()), "sha256": self.probs_sha256},
            "counts": counts,
            "warnings": self.warnings,
            "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
            "device": torch.cuda.get_device_name() if plan.device == "cuda" else platform.processor() or "cpu",
            "versions": {
                "fixaudit": own,
                "python": platform.python_version(),
                **{name: version(name) for name in _PACKAGES},
            },
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        self.reporter.say(f"note: {line}")

    def _seconds(self) -> float:
        return (datetime.now(UTC) - self.started).total_seconds()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - began


def _engine_for(config: RunConfig, images: int, device: str) -> Engine:
    asks_for_ray = config.workers is not None or bool(os.environ.get("RAY_ADDRESS"))
    if config.engine == "inprocess" or (config.engine == "auto" and images <= FEW_IMAGES and not asks_for_ray):
        return InProcess()
    from jobs.local import LocalRay  # half a second, and an audit of few images needs none of it

    return LocalRay(workers=config.workers, gpu=device == "cuda")


def _resolved(config: RunConfig, engine: Engine, manifest: Manifest, plan: JudgePlan) -> dict[str, Any]:
    """Return what became of the settings that were left to the run; the part of run.json that says what ran."""
    return {
        "engine": "inprocess" if isinstance(engine, InProcess) else "ray",
        "workers": engine.workers,
        "threads": plan.threads,
        "device": plan.device,
        "shard_size": max(len(shard.rows) for shard in manifest.shards()),
        "epochs": [epochs_learned(Path(path)) for path in plan.fold_weights] or None,
        "junit": None if config.junit is None else str(Path(config.junit).resolve()),
    }


def _classes_below(dataset: Path, manifest: Manifest) -> str:
    """Return what to do where all images lie in folders of the one class folder; nothing where they do not."""
    (name, *others) = manifest.class_names
    ids = manifest.table["image_id"]
    is_below = pc.and_(pc.starts_with(ids, f"{name}/"), pc.greater(pc.count_substring(ids, "/"), 1))
    if others or not dataset.is_dir() or not pc.all(is_below).as_py():
        return ""
    return f"if the folders in {name} are the classes, audit {dataset / name}"


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
