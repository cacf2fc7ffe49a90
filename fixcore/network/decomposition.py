"""Operations that no rule knows, taken apart into simpler ones: torch says what most of its operations consist of."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from fixcore.network.products import PRODUCTS
from fixcore.network.simplify import FILLED
from fixcore.network.spelling import SPELLED
from fixcore.rules import rule
from fixcore.structure import measures

FOLLOWED: frozenset[Any] = frozenset({*rule, *SPELLED, *PRODUCTS, operator.getitem})
"""Operations that stay whole: they have a rule, or are said in another way that has one."""


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Return a program that does the same, in which evidence meets operations with a rule as far as torch knows how.

    Recurrent layers, einsum, distances, norms and so on become the simpler operations that they consist of. Whatever
    has a rule stays as it is, and so does what carries no evidence: all that does not depend on the images. What an
    operation consists of may consist of something in turn.
    """
    every = torch.export.default_decompositions()
    tried: set[Any] = set()
    is_plain = False
    while apart := {operation for operation in _unknown(program) if operation in every} - tried:
        tried |= apart
        with suppress(Exception):  # not for any number of images: it stays whole, and is named if evidence meets it
            program = program.run_decompositions({operation: every[operation] for operation in apart})
            is_plain = True
    return program if is_plain else program.run_decompositions({})  # which says in-place operations as plain ones


def _unknown(program: ExportedProgram) -> Iterator[Any]:
    """Yield the operations between images and logits that no rule knows."""
    inputs = (spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT)
    images = set(inputs)
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in images:
            reached.add(node)
        elif node.op == "call_function" and node.target not in FILLED and reached.intersection(node.all_input_nodes):
            value = node.meta.get("val")
            if any(isinstance(part, Tensor) and measures(part.dtype) for part in _parts(value)):
                reached.add(node)
                if node.target not in FOLLOWED:
                    yield node.target


def _parts(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)
