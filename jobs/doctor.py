"""Whether this machine is fit for an audit."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.machine import usable_cores, usable_memory

_OLDEST_PYTHON = (3, 11)
_NEEDED = {  # pyproject.toml's distributions: what is imported of each
    "torch": "torch",
    "torchvision": "torchvision",
    "ray": "ray",
    "pyarrow": "pyarrow.parquet",
    "numpy": "numpy",
    "numba": "numba",
    "scipy": "scipy.optimize",
    "pandas": "pandas",
    "pillow": "PIL.Image",
    "pycocotools": "pycocotools.mask",
    "safetensors": "safetensors.torch",
    "scikit-learn": "sklearn.datasets",
    "jinja2": "jinja2",
    "markupsafe": "markupsafe",
    "matplotlib": "matplotlib",
    "contourpy": "contourpy",
    "typer": "typer",
    "rich": "rich.progress",
}
_LITTLE_DISK = 1 << 30
_LITTLE_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    ok: bool = True
    """False where an audit cannot run as it is."""


def examine(folder: Path) -> list[Finding]:
    """Look at what an audit that writes into `folder` needs."""
    old = sys.version_info < _OLDEST_PYTHON
    findings = [Finding("python", platform.python_version() + (", too old: 3.11 is needed" if old else ""), not old)]
    findings += [_package(name, module) for name, module in _NEEDED.items()]
    findings.append(Finding("processors", str(usable_cores())))
    memory = usable_memory()
    if memory is not None:
        findings.append(Finding("memory", f"{memory / 2**30:.1f} GiB", memory >= _LITTLE_MEMORY))
    free = shutil.disk_usage(folder).free
    findings.append(Finding("free disk here", f"{free / 2**30:.1f} GiB", free >= _LITTLE_DISK))
    if findings[1].ok:
        findings += _torch()
    return findings


def _package(name: str, module: str) -> Finding:
    try:
        found = version(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)  # installed is not enough: builds can fail to fit each other
    except PackageNotFoundError:
        return Finding(name, "not installed: run pip install fixaudit again", ok=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(name, f"{found}, but it does not load: {reason}", ok=False)
    return Finding(name, found)


def _torch() -> list[Finding]:
    import torch

    cards = [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of torch"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    weights = sorted(path.name for path in folder.glob("*.pth"))
    return [
        Finding("GPU", f"{', '.join(cards)} ({cuda})" if cards else f"none ({cuda}): networks run on the CPU"),
        Finding("torchvision weights", ", ".join(weights) or f"none in {folder} yet: the first probe downloads them"),
    ]
