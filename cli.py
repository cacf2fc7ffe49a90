"""The fixaudit command: parse, call, print, exit. Nothing is decided here."""

from __future__ import annotations

import functools
import json
import os
import select
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from pipeline.config import RunConfig, resolve_config
from pipeline.errors import AuditError

if TYPE_CHECKING:  # torch and Ray take seconds to import; --help must not wait for them
    from jobs.result import RunResult

app = typer.Typer(
    name="fixaudit",
    help="Find wrong and ambiguous labels in image datasets, with the pixels that say so.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_EXCEEDED = 1
_WRONG = 2
_STOPPED = 130
_SETTINGS = {setting.name: setting for setting in fields(RunConfig)}

_PROTOCOL_HELP = "What to measure: localization, pointing, ... (see above)."

Command = TypeVar("Command", bound=Callable[..., Any])


def _option(key: str, *names: str, metavar: str | None = "TEXT") -> Any:
    """Return the option of a run's setting; its help is the setting's own documentation."""
    default = _SETTINGS[key].default
    meaning = _SETTINGS[key].metadata["meaning"]
    told = "" if default is None or default is False else f" [{str(default).lower() if default is True else default}]"
    return typer.Option(*(names or [f"--{key.replace('_', '-')}"]), metavar=metavar, help=f"{meaning}{told}")


Text = str | None  # what is said here is parsed and checked with the rest of the settings
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Engine = Annotated[Text, _option("engine")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _one_line_errors(command: Command) -> Command:
    """Turn an error into one line on stderr and exit code 2; the command's `debug` adds the traceback."""

    @functools.wraps(command)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt:
            raise typer.Exit(_STOPPED) from None
        except typer.Exit:
            raise
        except MemoryError:
            line = "out of memory; try a smaller --batch-size or fewer --workers"
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                raise typer.Exit(0) from None
            line = _joined(str(error))
            if not _is_foreseen(error):
                line = f"{type(error).__name__}: {line} (not foreseen; --debug shows where)"
        if options["debug"]:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        raise typer.Exit(_WRONG)

    return cast(Command, guarded)


def _is_foreseen(error: Exception) -> bool:
    core = sys.modules.get("fixcore.errors")  # not there: none of its errors; to import it takes as long as torch
    return isinstance(error, AuditError) or (core is not None and isinstance(error, core.FixcoreError))


def _is_unread() -> bool:
    """Whether nobody reads what is printed any more, having seen enough of it; what is left is then thrown away."""
    try:
        sys.stdout.flush()
        if not hasattr(select, "poll"):  # Windows
            return False
        pipe = select.poll()  # what is not buffered was refused before
        pipe.register(sys.stdout.fileno(), select.POLLOUT)
        if not any(event & select.POLLERR for _, event in pipe.poll(0)):
            return False
    except UnsupportedOperation:  # no file
        return False
    except BrokenPipeError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fixaudit {version('fixaudit')}")
        raise typer.Exit


@app.callback()
def _fixaudit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_one_line_errors
def run(
    ctx: typer.Context,
    dataset: Annotated[Text, typer.Argument(metavar="DATASET", help=_SETTINGS["dataset"].metadata["meaning"])] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of the settings below")] = None,
    out: Annotated[Text, _option("out", metavar="FOLDER")] = None,
    name: Annotated[Text, _option("name")] = None,
    predict: Annotated[Text, _option("predict")] = None,
    model: Annotated[Text, _option("model")] = None,
    weights: Annotated[Text, _option("weights", metavar="FILE")] = None,
    classes: Annotated[Text, _option("classes", metavar="FILE")] = None,
    probs: Annotated[Text, _option("probs", metavar="FILE")] = None,
    reviewed: Annotated[Text, _option("reviewed", metavar="FILE")] = None,
    folds: Annotated[Text, _option("folds", metavar="N")] = None,
    seed: Annotated[Text, _option("seed", metavar="N")] = None,
    epochs: Annotated[Text, _option("epochs", metavar="N")] = None,
    size: Annotated[Text, _option("size", metavar="N")] = None,
    resize: Annotated[Text, _option("resize", metavar="N")] = None,
    fit: Annotated[Text, _option("fit")] = None,
    mean: Annotated[Text, _option("mean", metavar="R,G,B")] = None,
    std: Annotated[Text, _option("std", metavar="R,G,B")] = None,
    drift: Annotated[bool | None, _option("drift", "--drift/--no-drift", metavar=None)] = None,
    finer: Annotated[bool | None, _option("finer", "--finer/--no-finer", metavar=None)] = None,
    shard_size: Annotated[Text, _option("shard_size", metavar="N")] = None,
    batch_size: Annotated[Text, _option("batch_size", metavar="N")] = None,
    engine: Engine = None,
    workers: Annotated[Text, _option("workers", metavar="N")] = None,
    device: Annotated[Text, _option("device")] = None,
    fail_on: Annotated[Text, _option("fail_on", metavar="LIMITS")] = None,
    junit: Annotated[Text, _option("junit", metavar="FILE")] = None,
    overwrite: Annotated[bool | None, _option("overwrite", "--overwrite", metavar=None)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Audit a dataset: judge and trace every image, and report what looks wrong.

    Settings come from a TOML file, are overruled by FIXAUDIT_* variables, and those by what is said here.
    """
    settings = resolve_config(config, os.environ, {key: ctx.params[key] for key in _SETTINGS})
    _conclude(_audit(settings, quiet=quiet), as_json=as_json)


@app.command()
@_one_line_errors
def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the sample and the run.")] = Path("runs"),
    engine: Engine = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Audit 1,797 handwritten digits, 5 % of them mislabeled on purpose, and count how many are found."""
    flags = {
        "dataset": str(out / "digits-sample" / "images"),
        "out": str(out),
        "name": "digits",
        "predict": "train",
        "engine": engine,
        "overwrite": True,
    }
    settings = resolve_config(None, {}, flags)
    from jobs.demo import score_demo, write_demo
    from jobs.told import facts_of, lines_of

    write_demo(out / "digits-sample")
    result = _audit(settings, quiet=quiet)
    score = score_demo(out / "digits-sample", result.folder)
    if as_json:
        _print_json(facts_of(result) | {"planted": score.planted, "flagged": score.flagged, "found": score.found})
        return
    print("\n".join(lines_of(result)))
    print(f"planted errors flagged:  {score.found} of {score.planted} ({score.recall:.1%})")
    print(f"flags that are right:    {score.found} of {score.flagged} ({score.precision:.1%})")


@app.command()
@_one_line_errors
def evaluate(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help=_PROTOCOL_HELP)],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Annotated dataset: its folder, CSV or COCO JSON.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help=_SETTINGS["model"].metadata["meaning"])],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of the model [its own]")] = None,
    classes: Annotated[Path | None, typer.Option(metavar="FILE", help=_SETTINGS["classes"].metadata["meaning"])] = None,
    methods: Annotated[str | None, typer.Option(metavar="A,B", help="Methods to compare, or all [the usual]")] = None,
    form: Annotated[str | None, typer.Option("--format", metavar="NAME", help="Format of DATA [told by it]")] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="VOC's list or COCO's file: test, val2017")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N images")] = None,
    size: Annotated[int | None, typer.Option(metavar="N", min=8, help="Side of the input [the model's]")] = None,
    fit: Annotated[str | None, typer.Option(metavar="FIT", help="squash or crop [squash]")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images at once [16]", show_default=False)] = 16,
    cut: Annotated[
        bool, typer.Option("--cut", help="Saliency, localization, gallery: also cut the object out")
    ] = False,
    layers: Annotated[str | None, typer.Option(metavar="A,B", help="Gallery: layers, or auto, not methods")] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Gallery: images [8]", show_default=False)] = 8,
    plot: Annotated[Path | None, typer.Option("--plot", "-o", metavar="FILE", help="PNG to write")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda [auto]", show_default=False)] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure evidence where people marked the objects: methods side by side, by a published protocol.

    Protocols: localization, saliency, proposals, pointing, faithfulness, sanity, sensitivity, tune, gallery.
    """
    from jobs.evaluate import EvaluateOptions, run_evaluate
    from jobs.progress import Reporter

    result = run_evaluate(
        EvaluateOptions(
            protocol=protocol,
            data=data,
            model=model,
            weights=weights,
            classes=classes,
            methods=methods,
            form=form,
            split=split,
            limit=limit,
            size=size,
            fit=fit,
            batch_size=batch_size,
            cut=cut,
            layers=layers,
            rows=rows,
            plot=plot,
            device=device,
        ),
        Reporter(quiet=quiet),
    )
    if as_json:
        _print_json(result.facts)
    else:
        columns = shutil.get_terminal_size().columns
        room = columns if sys.stdout.isatty() or os.environ.get("COLUMNS") else None  # a file has all the room
        for table in result.tables:
            print(table.text(min(120, columns), room=room) + "\n")
        if result.picture is not None:
            print(f"picture: {result.picture}")


@app.command()
@_one_line_errors
def explain(
    run: RunPath,
    image_id: Annotated[str, typer.Argument(metavar="IMAGE_ID", help="As in audit.parquet: class/file.jpg")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="PNG to write [here, named by run and image]")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw why one image was judged as it was: fixations, box, mask and heat map for both labels."""
    from pipeline.pages.explain import explain as draw
    from pipeline.runfolder import RunFolder

    # by the run, too: another run's picture of the image must not take its place
    target = out or Path(f"{run.resolve().name}-{Path(image_id.replace('/', '_')).stem}-explained.png")
    explanation = draw(RunFolder(run), image_id, target)
    if as_json:
        _print_json({"path": str(explanation.path), "words": explanation.words})
    else:
        print(explanation.words)
        print(f"picture: {explanation.path}")


@app.command()
@_one_line_errors
def report(run: RunPath, as_json: Json = False, debug: Debug = False) -> None:
    """Write the report of a run anew, and print where it lies."""
    from jobs.result import read_facts
    from pipeline.pages.report import write_report
    from pipeline.runfolder import RunFolder

    read_facts(RunFolder(run))
    path = write_report(RunFolder(run))
    if as_json:
        _print_json({"report": str(path)})
    else:
        print(path)


@app.command()
@_one_line_errors
def review(
    run: RunPath,
    verdicts: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="CSV or Parquet of image_id and verdict, right or wrong [RUN/review.csv]"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Weigh what people said of some labels, and conclude the audit anew; nothing is judged again.

    Fifty images wait in RUN/review.html (pictures, keys) and RUN/review.csv (a list); their verdicts tell which of the
    disagreements are wrong labels and which the model's mistakes.
    """
    from jobs.progress import Reporter
    from jobs.review import review_run
    from pipeline.runfolder import RunFolder

    _conclude(review_run(RunFolder(run), verdicts, Reporter(quiet=quiet)), as_json=as_json, judged=False)


@app.command()
@_one_line_errors
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Check this machine: versions, processors, memory, disk, GPU, and which weights are at hand."""
    from jobs.doctor import examine

    findings = examine(Path.cwd())
    if as_json:
        _print_json([{"what": one.what, "found": one.found, "ok": one.ok} for one in findings])
    else:
        for one in findings:
            print(f"{'ok  ' if one.ok else 'FAIL'} {one.what}: {one.found}")
    if not all(one.ok for one in findings):
        raise typer.Exit(_WRONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 findings exceed --fail-on, 2 error, 130 stopped by Ctrl-C."""
    told = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(told or ["--help"], prog_name="fixaudit", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):  # before a command began, or after it ended
        return _STOPPED
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, for a wrong use of the command
            raise
        print(f"error: {_joined(error.format_message())} (fixaudit --help says more)", file=sys.stderr)
        return _WRONG
    _is_unread()
    return code if isinstance(code, int) else 0


def _audit(settings: RunConfig, *, quiet: bool) -> RunResult:
    from jobs.progress import Reporter
    from jobs.run import run_audit

    return run_audit(settings, Reporter(quiet=quiet))


def _conclude(result: RunResult, *, as_json: bool, judged: bool = True) -> None:
    """Print what was found, and end with code 1 where it exceeds a limit; `judged`: whether images were judged."""
    from jobs.told import facts_of, lines_of

    if as_json:
        _print_json(facts_of(result))
    else:
        print("\n".join(lines_of(result, judged=judged)))
    for line in result.exceeded:
        print(f"over the limit: {line}", file=sys.stderr)
    if result.exceeded:
        raise typer.Exit(_EXCEEDED)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _joined(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
