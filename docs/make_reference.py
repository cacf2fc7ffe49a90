"""Write the reference pages from the code that they document: `python docs/make_reference.py`.

One function per page; a test compares the committed pages with what these return.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
if str(_ROOT) not in sys.path:  # run as a script, only this folder is there
    sys.path.insert(0, str(_ROOT))

import pyarrow as pa  # noqa: E402
import typer  # noqa: E402

import cli  # noqa: E402
from pipeline import schema  # noqa: E402
from pipeline.audit.summary import ClassSummary, Summary  # noqa: E402

_GENERATED = "<!-- Made by docs/make_reference.py; do not edit. -->\n"
_TABLES = {
    "manifest": ("manifest.parquet", "One row per image found, sorted by `image_id`."),
    "evidence": (
        "evidence/part-00000.parquet ...",
        "One row per image: what it is taken for, and the pixels that say so. An image that cannot be read is a row "
        "with `status` = `error`, never a gap. Points, boxes and masks are null where nothing was traced: for the "
        "given label where it is the prediction, and for both in an audit of probabilities without a model.",
    ),
    "audit": (
        "audit.parquet",
        "One row per image, in the order of the evidence: every score and flag. The file's metadata holds, as JSON, "
        "the names of the classes (`fixaudit.classes`) and the cut between right and wrong labels (`fixaudit.labels`: "
        "`limit`, the highest `label_score` that the probabilities alone call wrong, or -1, and the estimates of "
        "summary.json).",
    ),
    "issues": ("issues.parquet", "Flagged images only, one row per image and issue, ranked; it may be empty."),
}
assert _TABLES.keys() == schema.TABLES.keys()


def schema_page() -> str:
    """Return schema.md: every column of every Parquet file of a run."""
    lines = [
        _GENERATED,
        "# The Parquet files of a run",
        "",
        "Every file is plain Parquet, zstd-compressed, and needs no part of fixaudit to be read:",
        "",
        "```python",
        'pd.read_parquet("RUN/audit.parquet").query("is_mislabeled")',
        'pd.read_parquet("RUN/evidence")  # all parts',
        "```",
        "",
        f"The metadata of each file names its table (`fixaudit.table`) and this version, **{schema.VERSION}** "
        "(`fixaudit.schema`). Coordinates are in pixels of the original image after EXIF rotation; (0, 0) is the "
        "top-left pixel. Scores lie in [0, 1], and low means suspicious.",
    ]
    for table, declared in schema.TABLES.items():
        title, about = _TABLES[table]
        lines += ["", f"## {title}", "", about, "", "| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {_kind(column.type)} | {_cell(_meaning(column))} |" for column in declared]
    return "\n".join(lines) + "\n"


def summary_page() -> str:
    """Return summary.md: every field of summary.json."""
    lines = [
        _GENERATED,
        "# summary.json",
        "",
        "The run in numbers. All shares lie in [0, 1]; what could not be computed is `null`.",
        "",
        *_field_table(fields(Summary)),
        "",
        "## An entry of `classes`",
        "",
        *_field_table(fields(ClassSummary)),
    ]
    return "\n".join(lines) + "\n"


def command_page() -> str:
    """Return command.md: every command and option, as `--help` says them."""
    group = typer.main.get_command(cli.app)
    lines = [
        _GENERATED,
        "# The command",
        "",
        "Exit codes: 0 done, 1 done and findings exceed `--fail-on`, 2 error (one line on stderr; `--debug` adds the "
        "traceback), 130 stopped by Ctrl-C.",
        "Progress and notes go to stderr, results to stdout, as JSON with `--json`.",
        "",
        "The settings of `run` may also stand in a TOML file (`--config`; see `configs/`), or in variables:",
        "`--batch-size` is `batch_size` there and `FIXAUDIT_BATCH_SIZE` here. Defaults < TOML < variables < options.",
        "The default is in brackets.",
    ]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = " ".join(one.metavar if one.required else f"[{one.metavar}]" for one in arguments)
        lines += ["", f"## fixaudit {' '.join([name, usage]).strip()}", ""]
        lines += [" ".join(part.split()) for part in command.help.split("\n\n")]
        lines += ["", "| argument or option | meaning |", "|---|---|"]
        for one in command.params:
            names = (
                f"`{one.metavar}`" if one in arguments else ", ".join(f"`{_option(one, told)}`" for told in one.opts)
            )
            names += "".join(f", `{told}`" for told in one.secondary_opts)
            lines.append(f"| {names} | {_cell(one.help or '')} |")
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "command.md": command_page,
    "schema.md": schema_page,
    "summary.md": summary_page,
}


def main() -> None:
    """Write all pages into docs/reference."""
    folder = _ROOT / "docs" / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


def _option(parameter: Any, name: str) -> str:
    return name if parameter.is_flag or not parameter.metavar else f"{name} {parameter.metavar}"


def _meaning(column: pa.Field[Any]) -> str:
    meaning: bytes = (column.metadata or {})[b"meaning"]
    return meaning.decode()


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_kind(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind):
        return f"list<{_kind(kind.value_type)}>"
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _field_table(described: tuple[Field[Any], ...]) -> Iterator[str]:
    yield from ("| field | type | meaning |", "|---|---|---|")
    for one in described:
        yield f"| `{one.name}` | {_json_type(str(one.type))} | {_cell(one.metadata['meaning'])} |"


def _json_type(annotation: str) -> str:
    words = {
        "int": "integer",
        "float | None": "number or null",
        "str": "string",
        "str | None": "string or null",
        "Mapping[str, int]": "object of integers",
        "tuple[float, float] | None": "two numbers or null",
        "tuple[ClassSummary, ...]": "list of objects",
        "tuple[Shortcut, ...]": "list of objects",
    }
    return words[annotation]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
