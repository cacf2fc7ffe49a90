"""The fixaudit command: parse, call, print, exit. Nothing is decided here."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:  # torch and Ray take seconds to import; --help must not wait for them
    from jobs.run import RunResult

app = typer.Typer(
    name="fixaudit",
    help="Find wrong and ambiguous labels in image datasets, with the pixels that say so.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_debug = False

Result = TypeVar("Result")
Dataset = Annotated[Path, typer.Argument(help="Folder of class folders, or a CSV or Parquet manifest.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fixaudit {version('fixaudit')}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    global _debug
    _debug = debug


@app.command()
def run(
    dataset: Dataset,
    config: Annotated[Path | None, typer.Option(help="TOML file with the settings.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that receives the run folder [runs].")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run folder.")] = None,
    predict: Annotated[str | None, typer.Option(help="direct, probe, train or probs [probe].")] = None,
    model: Annotated[str | None, typer.Option(help="torchvision:NAME, FILE.pt2 or package.module:function.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a state dict.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names in the model's order.")] = None,
    probs: Annotated[Path | None, typer.Option(help="image_id and probabilities, for --predict probs.")] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of probe and train [5].")] = None,
    size: Annotated[int | None, typer.Option(help="Network input in pixels [the model's own].")] = None,
    fit: Annotated[str | None, typer.Option(help="crop or squash [the model's own].")] = None,
    drift: Annotated[bool | None, typer.Option("--drift/--no-drift", help="Judge a smoothed copy too [yes].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass [16].")] = None,
    engine: Annotated[str | None, typer.Option(help="ray, or inprocess [ray].")] = None,
    workers: Annotated[int | None, typer.Option(help="Audit workers [from the cores].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda [auto].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a complete run.")] = False,
    as_json: Json = False,
) -> None:
    """Audit a dataset: judge and trace every image, and report what looks wrong."""
    flags = {
        "dataset": str(dataset), "out": _text(out), "name": name, "predict": predict, "model": model,
        "weights": _text(weights), "classes": _text(classes), "probs": _text(probs), "folds": folds, "size": size,
        "fit": fit, "drift": drift, "batch_size": batch_size, "engine": engine, "workers": workers, "device": device,
        "overwrite": overwrite or None,
    }  # fmt: skip
    result = _guarded(lambda: _audit(config, flags))
    if as_json:
        print(json.dumps({"run": str(result.folder.path), "seconds": result.seconds, "counts": result.counts}))
    else:
        _tell(result)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sample and the run.")] = Path("runs"),
    engine: Annotated[str | None, typer.Option(help="ray, or inprocess [ray].")] = None,
    as_json: Json = False,
) -> None:
    """Audit 1,797 handwritten digits, 5 % of them mislabeled on purpose, and count how many are found."""

    def work() -> tuple[RunResult, Any]:
        import pyarrow.parquet as pq

        from pipeline.sample import read_truth, score_flags, write_digits_sample

        sample = out / "digits-sample"
        if not (sample / "truth.csv").is_file():
            write_digits_sample(sample)
        flags = {
            "dataset": str(sample / "images"), "out": str(out), "name": "digits", "predict": "train",
            "engine": engine, "overwrite": True,
        }  # fmt: skip
        result = _audit(None, flags)
        return result, score_flags(read_truth(sample / "truth.csv"), pq.read_table(result.folder.audit))

    result, score = _guarded(work)
    if as_json:
        found = {"planted": score.planted, "flagged": score.flagged, "found": score.found}
        print(json.dumps({"run": str(result.folder.path), "seconds": result.seconds, **found}))
        return
    _tell(result)
    print(f"planted errors flagged: {score.found} of {score.planted} ({score.recall:.1%})")
    print(f"flags that are right:   {score.found} of {score.flagged} ({score.precision:.1%})")


@app.command()
def explain(
    run: RunPath,
    image_id: Annotated[str, typer.Argument(metavar="IMAGE_ID", help="As in audit.parquet.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to write.")] = None,
    as_json: Json = False,
) -> None:
    """Draw why one image was judged as it was: fixations, box, mask and heat map for both labels."""

    def work() -> Any:
        from pipeline.explain import explain as draw
        from pipeline.runfolder import RunFolder

        target = out or Path(f"{Path(image_id).stem}-explained.png")
        return draw(RunFolder(run), image_id, target)

    explanation = _guarded(work)
    if as_json:
        print(json.dumps({"path": str(explanation.path), "words": explanation.words}))
    else:
        print(explanation.words)
        print(f"picture: {explanation.path}")


@app.command()
def report(run: RunPath) -> None:
    """Write report.html of a run anew."""

    def work() -> Path:
        from jobs.run import read_facts
        from pipeline.report import write_report
        from pipeline.runfolder import RunFolder

        read_facts(RunFolder(run))
        return write_report(RunFolder(run))

    print(_guarded(work))


@app.command()
def doctor() -> None:
    """Check this machine: versions, processors, memory, disk, GPU, and which weights are at hand."""
    from jobs.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.found}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)


def main() -> None:
    """Run the command; the console script's entry."""
    try:
        app()
    except KeyboardInterrupt:
        print("stopped; what is committed is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _audit(config: Path | None, flags: dict[str, Any]) -> RunResult:
    from pipeline.config import resolve_config

    settings = resolve_config(config, os.environ, flags)
    import torch

    from jobs.inprocess import InProcess
    from jobs.local import LocalRay
    from jobs.progress import Reporter
    from jobs.run import run_audit

    gpu = settings.device != "cpu" and torch.cuda.is_available()
    engine = InProcess() if settings.engine == "inprocess" else LocalRay(workers=settings.workers, gpu=gpu)
    return run_audit(settings, engine, Reporter())


def _tell(result: RunResult) -> None:
    counts = result.counts
    speed = counts["images"] / max(result.seconds, 1e-9)
    print(f"{counts['images']:,} images in {result.seconds:.0f} s ({speed:.1f} a second)")
    print(f"mislabeled:        {counts['mislabeled']:,}")
    print(f"ambiguous:         {counts['ambiguous']:,}")
    print(f"adversarial drift: {counts['adversarial_drift']:,}")
    if counts["error"]:
        print(f"unreadable:        {counts['error']:,} (reasons in the report)")
    print(f"report: {result.folder.report}")
    print(f'next:   fixaudit explain "{result.folder.path}" IMAGE_ID')


def _guarded(work: Callable[[], Result]) -> Result:
    """Run `work`; what the user can mend becomes one line and exit code 2."""
    from fixcore.errors import FixcoreError
    from pipeline.errors import AuditError

    try:
        return work()
    except (AuditError, FixcoreError) as error:
        _fail(" ".join(str(error).split()))
    except MemoryError:
        _fail("out of memory; try a smaller --batch-size or fewer --workers")


def _fail(line: str) -> NoReturn:
    if _debug:
        traceback.print_exc()
    print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
