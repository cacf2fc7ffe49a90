"""Compiling plain loops over points with numba, and running them on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any, TypeVar

import numba
import torch
from torch import Tensor

_SMALL = 1 << 12
"""Products below which one thread is as fast."""
_LARGE = 1 << 20
"""Products below which handing parts to Python's threads costs more than it brings."""

_numba: Any = numba  # whose own types are incomplete
_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compiler(**options: Any) -> Callable[[_Loop], _Loop]:
    def compiled(loop: _Loop) -> _Loop:
        try:
            return _numba.njit(nogil=True, cache=True, **options)(loop)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder to keep machine code in, in a container that may write nowhere, say
            return _numba.njit(nogil=True, **options)(loop)  # type: ignore[no-any-return]

    return compiled


alone = _compiler()
"""Compiles a loop for one thread."""
reordered = _compiler(fastmath={"reassoc", "contract"})
"""As `alone`, and may add in any order, as torch's matrix products do."""
on_all = _compiler(parallel=True)
"""Compiles a loop whose `numba.prange` runs on several. Every search has its own: one that took the search as an
argument would be compiled anew by each process, and hand out work in four times the time."""


def is_compiled_for(*values: Tensor) -> bool:
    """Whether the loops read these values: float32 on a CPU."""
    # asked at every step of a walk: of so few, a list takes half of a generator's time
    return all([value.is_cpu and value.dtype == torch.float32 for value in values])


def on_threads(
    find: Callable[..., None], find_on_threads: Callable[..., None], given: tuple[Any, ...], count: int, work: int
) -> None:
    """Do `count` pieces of work, on as many threads as torch uses if there is enough to do.

    `find(*given, begin, end)` does some of them; `find_on_threads(parts, *given, count)` all, in so many parts. `work`
    is how many products, or as much, that takes in all.
    """
    threads = min(torch.get_num_threads(), _numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or work < (_SMALL if _has_openmp() else _LARGE):
        find(*given, 0, count)
    elif _has_openmp():
        before = numba.get_num_threads()
        if before == threads:
            find_on_threads(threads, *given, count)
            return
        numba.set_num_threads(threads)
        try:
            find_on_threads(threads, *given, count)
        finally:
            numba.set_num_threads(before)
    else:
        bounds = [count * part // threads for part in range(threads + 1)]
        list(_pool(threads).map(lambda own: find(*given, *own), pairwise(bounds)))


@cache
def _has_openmp() -> bool:
    """Whether numba's threads are OpenMP's, which wait for work awake: handing it out takes microseconds.

    So it is where the system has the library, unless somebody chose other threads for numba.
    """
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    if _numba.config.THREADING_LAYER == "default":
        _numba.config.THREADING_LAYER = "omp"
    try:
        return bool(_numba.threading_layer() == "omp")
    except ValueError:  # nothing ran on threads before
        return bool(_numba.config.THREADING_LAYER == "omp")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fixcore")
