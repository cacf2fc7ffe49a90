"""The small network: shapes, size, export with a dynamic batch, and evidence at the resolution of its map."""

import pytest
import torch

import fixcore
from pipeline.judging.network import small_network


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (48, 6), (56, 3), (96, 6)])
def test_logits_and_class_map(size, cells):
    network = small_network(7, size).eval()
    images = torch.randn(2, 3, size, size)
    class_map = network[:-3](images)  # before pooling, flattening and the linear layer
    assert class_map.shape == (2, 128, cells, cells)
    torch.testing.assert_close(network(images), network[-1](class_map.mean((2, 3))))
    assert network(images).shape == (2, 7)
    assert 200_000 < sum(weight.numel() for weight in network.parameters()) < 600_000


def test_exports_with_a_dynamic_batch():
    network = small_network(10, 32).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), strict=False, dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), network(images))


@pytest.mark.parametrize("size", [32, 64])
def test_its_decisions_can_be_traced(size):
    torch.manual_seed(0)
    network = small_network(4, size).eval()
    recording = fixcore.capture(network, torch.zeros(2, 3, size, size)).record(torch.randn(3, 3, size, size))
    fixations = fixcore.backtrack(recording, recording.logits.argmax(1))
    assert fixations.image.unique().tolist() == [0, 1, 2]
    assert fixations.row.max() < size
