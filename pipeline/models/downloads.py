"""torchvision's published weights: fetched once into torch.hub's cache, checked against the digest in their name."""

from __future__ import annotations

import re
import socket
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision

from pipeline.errors import ModelError
from pipeline.files import sha256_of

_PATIENCE = 30.0  # seconds without a byte until a server counts as unreachable
_SHOWN = 3


def fetch_weights(name: str, url: str) -> Path:
    """Return the file with the weights of torchvision's `name`; download it with a progress bar on stderr if need be.

    Raises ModelError: no connection, no room, or a file whose bytes are not the published ones. A download that fails
    leaves no file behind.
    """
    path = _cached_path(url)
    expected = _digest_in(path.name)
    if path.is_file():
        if expected is not None and not sha256_of(path).startswith(expected):
            raise ModelError(f"{path} is damaged (its sha256 does not start with {expected}); delete it and run again")
        return path
    patience = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(f"downloading the weights of {name} from {url}\n")
        socket.setdefaulttimeout(_PATIENCE)  # torch.hub waits for ever otherwise
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected, progress=True)
    except (OSError, HTTPException, RuntimeError) as error:
        there = cached_networks()
        smaller = ", ".join(f"--model torchvision:{known}" for known in there[:_SHOWN])
        raise ModelError(
            f"cannot download the weights of {name} ({_reason(error)}); give them with --weights FILE, learn from the "
            "dataset alone with --predict train, or use a model that is cached: "
            f"{smaller or f'none is, in {path.parent}'}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return path


def cached_networks() -> list[str]:
    """Return torchvision's classifiers whose weights are in the cache, smallest first."""
    found = []
    for name in torchvision.models.list_models(module=torchvision.models):
        published = torchvision.models.get_model_weights(name).DEFAULT
        if _cached_path(published.url).is_file():
            found.append((published.meta["num_params"], name))
    return [name for _, name in sorted(found)]


def _cached_path(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _digest_in(file_name: str) -> str | None:
    """Return the first digits of the sha256, which torch.hub's file names end with."""
    found = re.search(r"-([a-f0-9]{8,})\.", file_name)
    return found[1] if found else None


def _reason(error: BaseException) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return " ".join(str(reason).split())[:200] or type(error).__name__
