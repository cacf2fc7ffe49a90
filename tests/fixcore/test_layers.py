"""Beginning and ending inside of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fixcore
from tests.fixcore.networks import Residual, integer_images, integer_network


@pytest.fixture(scope="module")
def recording() -> fixcore.Recording:
    images = integer_images(0, 3)
    return fixcore.capture(integer_network(Residual, 1), images).record(images)


TARGET = torch.tensor([0, 1, 2])


def test_two_halves_of_the_way_are_the_whole_way(recording):
    """What `stem` receives of each target, walked on from there neuron by neuron, is the target's fixations."""
    whole = fixcore.backtrack(recording, TARGET)
    half = fixcore.backtrack(recording, TARGET, stop_at="bn")  # folded into the first convolution: all must pass it
    shape = recording.shapes[recording.graph.layer("bn")]
    mass = torch.zeros(3).index_add_(0, half.image, half.mass)
    torch.testing.assert_close(mass, torch.ones(3))
    neuron = (half.place[:, 0] * shape[2] + half.place[:, 1]) * shape[3] + half.place[:, 2]
    rest = fixcore.backtrack(recording, fixcore.Start(half.image, neuron, layer="bn"))
    joined = torch.zeros(3, whole.height, whole.width)
    joined.index_put_((half.image[rest.image], rest.row, rest.col), rest.mass * half.mass[rest.image], accumulate=True)
    expected = torch.zeros_like(joined)
    expected[whole.image, whole.row, whole.col] = whole.mass
    torch.testing.assert_close(joined, expected)


def test_neurons_lie_in_the_image_where_their_cell_is(recording):
    found = fixcore.backtrack(recording, TARGET, stop_at="down")
    height, width = recording.shapes[recording.graph.layer("down")][2:]
    assert (height, width) == (3, 4)  # of 6 x 8 pixels
    assert torch.equal(found.row, found.place[:, 1] * 2 + 0.5)
    assert torch.equal(found.col, found.place[:, 2] * 2 + 0.5)


def test_evidence_around_a_layer_is_left_out(recording):
    through = [fixcore.backtrack(recording, TARGET, stop_at=name) for name in ("down", "skip")]
    masses = [torch.zeros(3).index_add_(0, found.image, found.mass) for found in through]
    torch.testing.assert_close(masses[0] + masses[1], torch.ones(3))


def test_several_classes_of_one_image_are_listed_one_after_the_other_at_every_layer(recording):
    both = fixcore.Start(torch.tensor([1, 1]), torch.tensor([0, 2]))
    begins = recording.graph.head.map.meta["position"]
    for node in recording.graph.nodes:
        if node.meta["is_constant"] or node.meta["position"] > begins:
            continue
        found = fixcore.backtrack(recording, both, stop_at=node.name)
        assert found.image.tolist() == sorted(found.image.tolist())
        for target in range(2):
            alone = fixcore.Start(both.image[target, None], both.target[target, None])
            expected = fixcore.backtrack(recording, alone, stop_at=node.name)
            assert torch.equal(found.place[found.image == target], expected.place)
            assert torch.equal(found.mass[found.image == target], expected.mass)


def test_an_operation_may_be_named_as_well(recording):
    node = recording.graph.layer("down")
    assert recording.graph.layer(node.name) is node


def test_unknown_layers_and_neurons_say_what_there_is(recording):
    with pytest.raises(fixcore.TargetError, match=r"no layer 'dwon'; did you mean down"):
        fixcore.backtrack(recording, TARGET, stop_at="dwon")
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(fixcore.TargetError, match=r"has neurons 0\.\.47; target holds 48"):
        fixcore.backtrack(recording, fixcore.Start(one, one + 48, layer="down"))
    with pytest.raises(fixcore.TargetError, match="not both"):
        fixcore.backtrack(recording, fixcore.Start(one, one, torch.zeros(1, 4), layer="down"))


def test_a_layer_that_is_no_map_has_no_place_in_the_image():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    recording = fixcore.capture(network, torch.zeros(2, 3, 2, 2)).record(torch.rand(2, 3, 2, 2))
    found = fixcore.backtrack(recording, torch.tensor([0, 1]), stop_at="1")
    assert found.place.shape[1] == 1
    assert found.row.isnan().all()


def test_layers_behind_the_beginning_and_contrasts_of_neurons_are_refused():
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    recording = fixcore.capture(network.eval(), images).record(images)
    target = torch.tensor([0, 1])
    with pytest.raises(fixcore.TargetError, match=r"layer '4' lies behind '\w+', where the evidence begins"):
        fixcore.backtrack(recording, target, stop_at="4")
    assert len(fixcore.backtrack(recording, target, stop_at="4", rules="paper").mass) == 2
    assert len(fixcore.backtrack(recording, target, stop_at="1").mass) > 2
    neurons = fixcore.Start(torch.tensor([0]), torch.tensor([3]), layer="0")
    with pytest.raises(fixcore.TargetError, match="contrast is for class targets"):
        fixcore.backtrack(recording, neurons, contrast="mean")
