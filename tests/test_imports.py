"""Imports run one way, cli -> jobs -> pipeline -> fixcore, and each layer keeps to what it may know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("fixcore", "pipeline", "jobs", "cli")
"""From the core outwards: a layer may import itself and those before it."""


def files_of(layer: str) -> list[Path]:
    single = ROOT / f"{layer}.py"
    return [single] if single.is_file() else sorted((ROOT / layer).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where they lead"
            yield node.lineno, node.module or ""


def found(layer: str) -> list[tuple[str, str]]:
    """Where, and the top-level package, of every import of a layer."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", name.partition(".")[0])
        for path in files_of(layer)
        for line, name in imported(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_there_and_imports_no_outer_layer(layer: str) -> None:
    assert files_of(layer), f"no file of {layer} was found"
    outer = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks"}
    assert [(where, name) for where, name in found(layer) if name in outer] == []


ROOMS = {
    "fixcore": ("compiled", "rules", "network", "evidence", "metrics", "baselines"),
    "pipeline": ("annotated", "dataset", "models", "evaluate", "labels", "judging", "audit", "pages"),
}
"""Folders of a layer: each may import those before it. What stands in none of them is theirs, or above them all."""


@pytest.mark.parametrize("layer", ROOMS)
def test_rooms_of_a_layer_import_one_way(layer: str) -> None:
    rooms = ROOMS[layer]
    assert {path.parent.name for path in (ROOT / layer).glob("*/__init__.py")} == set(rooms)
    back = []
    for path in (ROOT / layer).glob("*/*.py"):
        later = rooms[rooms.index(path.parent.name) + 1 :]
        names = (name for _, name in imported(path.read_text(encoding="utf-8")))
        back += [(path.stem, name) for name in names if name.startswith(tuple(f"{layer}.{room}" for room in later))]
    assert back == []


def test_common_ground_of_the_pipeline_imports_no_room() -> None:
    rooms = tuple(f"pipeline.{room}" for room in ROOMS["pipeline"])
    ground = (ROOT / "pipeline").glob("*.py")
    names = [(path.stem, name) for path in ground for _, name in imported(path.read_text(encoding="utf-8"))]
    assert [(stem, name) for stem, name in names if name.startswith(rooms)] == []


def test_fixcore_knows_torch_only_but_for_its_compiled_loops_regions_and_cuts() -> None:
    allowed = {"fixcore", "torch", *sys.stdlib_module_names}
    strangers = {(where.partition(":")[0], name) for where, name in found("fixcore") if name not in allowed}
    assert strangers == {
        ("fixcore/baselines/graph_cut.py", "numpy"),
        ("fixcore/baselines/graph_cut.py", "scipy"),
        ("fixcore/baselines/graph_cut.py", "sklearn"),
        ("fixcore/compiled/class_maps.py", "numba"),
        ("fixcore/compiled/class_maps.py", "numpy"),
        ("fixcore/compiled/concatenation.py", "numba"),
        ("fixcore/compiled/concatenation.py", "numpy"),
        ("fixcore/compiled/join.py", "numpy"),
        ("fixcore/compiled/parts.py", "numpy"),
        ("fixcore/compiled/pooling.py", "numba"),
        ("fixcore/compiled/pooling.py", "numpy"),
        ("fixcore/compiled/threads.py", "numba"),
        ("fixcore/compiled/windows.py", "numba"),
        ("fixcore/compiled/windows.py", "numpy"),
        ("fixcore/evidence/regions.py", "numpy"),
        ("fixcore/evidence/regions.py", "scipy"),
    }


def test_fixcore_touches_no_files() -> None:
    files = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "pickle", "urllib"}
    assert [(where, name) for where, name in found("fixcore") if name in files] == []


def test_the_pipeline_does_not_know_ray_nor_the_terminal() -> None:
    strangers = {"ray", "typer", "click", "rich"}
    assert [(where, name) for where, name in found("pipeline") if name in strangers] == []


def test_only_the_ray_engine_knows_ray() -> None:
    assert {where.partition(":")[0] for where, name in found("jobs") if name == "ray"} <= {"jobs/local.py"}


def test_the_finder_sees_imports_wherever_they_stand() -> None:
    source = "import a.b, c\nfrom d.e import f\ndef g():\n    if True:\n        import h\n"
    assert sorted(imported(source)) == [(1, "a.b"), (1, "c"), (2, "d.e"), (5, "h")]


@pytest.mark.parametrize(
    ("modules", "strangers"),
    [
        ("pipeline.dataset.images", ("torch", "scipy", "sklearn", "ray")),
        ("jobs.local, jobs.shards", ("torch", "scipy", "sklearn")),
    ],
)
def test_reading_and_keeping_images_needs_no_network_library(modules, strangers):
    """Ray starts a process for each worker and decoding task; torch alone would cost each seconds and 300 MB."""
    told = f"import sys, {modules}; print([it for it in {strangers} if it in sys.modules])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_command_says_its_help_without_what_takes_long_to_import() -> None:
    slow = ("torch", "ray", "pyarrow", "numpy", "matplotlib")
    told = f"import sys, cli; print([it for it in {slow} if it in sys.modules])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
