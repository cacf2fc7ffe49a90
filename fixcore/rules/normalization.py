"""Normalisation: the element stays where it is; of a vector, what each feature added to those behind the norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fixcore.points import Points, by_vector
from fixcore.rules.table import Flow, Visit, rule

aten = torch.ops.aten


@rule(
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
    keeps_of_vectors=("input",),
)
def normalised(visit: Visit, points: Points) -> Flow:
    """Stay: normalisation rescales the element. Mass: kept whole, but for what a shift takes among vectors.

    Among vectors, where evidence is net, what normalisation adds and takes away matters: a feature below the mean of
    its vector speaks, behind a layer norm, by what the others have. There each target's evidence goes to the features
    in proportion to what they added, the mean's part taken away: with the scale of each image as it is, a norm is
    linear, and `x * d(y)/d(x)` is what a linear layer's products are.

    A batch norm behind a convolution never comes here, it is folded in at capture: with a negative scale the
    convolution's winner would otherwise be its most inhibiting input.
    """
    if not points.signed:
        return [(visit.source("input"), points)]
    values = visit.tensor("input").float().flatten(1)
    features = values.shape[1]
    groups = _groups(visit, features)
    if groups is None:
        return [(visit.source("input"), points)]
    trace, vector, mass = by_vector(points, features)
    result = visit.again().float().flatten(1)[vector]
    weight = torch.where(result != 0, mass / result, 0.0) * _slope(visit, values, groups)[vector]
    if groups:
        by_group = weight.view(len(trace), groups, -1)
        weight = (by_group - by_group.mean(2, keepdim=True)).flatten(1)
    moved = values[vector] * weight
    row, feature = moved.nonzero(as_tuple=True)
    found = Points(vector[row] * features + feature, trace[row], moved[row, feature], distinct=True, signed=True)
    return [(visit.source("input"), found)]


def _groups(visit: Visit, features: int) -> int | None:
    """In how many groups a vector's own mean is taken away: 0 for a batch norm.

    None where a feature just stays: a batch norm by the batch at hand, a norm of each feature alone.
    """
    if visit.node.target is aten.batch_norm.default:
        return None if visit.arguments["running_var"] is None else 0
    if visit.node.target is aten.group_norm.default:
        return int(visit.plain("num_groups"))
    whole = visit.node.target is aten.layer_norm.default and math.prod(visit.plain("normalized_shape")) == features
    return 1 if whole else None


def _slope(visit: Visit, values: Tensor, groups: int) -> Tensor:
    """What each feature of vectors (N, D) is multiplied by, (N, D)."""
    if groups:
        spread = values.view(len(values), groups, -1).var(2, correction=0, keepdim=True)
        spread = spread.expand(-1, -1, values.shape[1] // groups).flatten(1)
    else:
        spread = visit.tensor("running_var").float().expand_as(values)
    slope: Tensor = (spread + visit.arguments["eps"]).rsqrt()
    if visit.arguments["weight"] is not None:
        slope = slope * visit.tensor("weight").float().flatten()
    return slope
