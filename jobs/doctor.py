"""Whether this machine is fit for an audit."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_NEEDED = ("torch", "torchvision", "ray", "pyarrow", "pandas", "scikit-learn", "pillow")
_LITTLE_DISK = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    ok: bool = True


def examine() -> list[Finding]:
    """Look at what an audit needs; `ok` is False where it cannot run."""
    findings = [Finding("python", platform.python_version())]
    for name in _NEEDED:
        try:
            findings.append(Finding(name, version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "not installed; run pip install fixaudit again", ok=False))
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings.append(Finding("GPU", ", ".join(cards) or "none; networks run on the CPU"))
    findings.append(Finding("processors", str(os.cpu_count())))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        findings.append(Finding("memory", f"{memory / 2**30:.0f} GiB"))
    free = shutil.disk_usage(Path.cwd()).free
    findings.append(Finding("free disk here", f"{free / 2**30:.0f} GiB", ok=free > _LITTLE_DISK))
    checkpoints = sorted(path.name for path in (Path(torch.hub.get_dir()) / "checkpoints").glob("*.pth"))
    findings.append(Finding("weights at hand", ", ".join(checkpoints) or "none yet; the first probe downloads them"))
    return findings
