"""Weights files: what is read, what is refused, what fits."""

import argparse
import hashlib
import os
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.weights import digest_of, fit_weights, head_width, read_state_dict


def network(classes=4):
    torch.manual_seed(classes)
    return nn.Sequential(
        OrderedDict(body=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5), head=nn.Linear(5, classes))
    ).eval()


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_every_kind_of_file_gives_the_same_weights(tmp_path):
    state = network().state_dict()
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "d.pt")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "e.pt")
    torch.save(OrderedDict((f"_orig_mod.module.{name}", value) for name, value in state.items()), tmp_path / "f.pt")
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, tmp_path / "g.pt")
    for path in sorted(tmp_path.iterdir()):
        other = network()
        nn.init.zeros_(other.body.weight)
        assert fit_weights(other, read_state_dict(path), "w", new_head=False) == ()
        assert same(other, network()), path.name
    torch.save(half, tmp_path / "h.pt")
    other = network()
    fit_weights(other, read_state_dict(tmp_path / "h.pt"), "w", new_head=False)
    assert other.body.weight.dtype == torch.float32
    assert torch.equal(other.body.weight, state["body.weight"].half().float())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_could_run_code_is_refused_and_not_run(tmp_path, legacy):
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pt"
    torch.save({"w": torch.zeros(2), "x": Evil(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=r"refused: it holds a pickled posix.mkdir.*state_dict") as told:
        read_state_dict(path)
    assert "\n" not in str(told.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert mark.exists()


@pytest.mark.parametrize(
    "held",
    [network(), {"state_dict": {"w": torch.zeros(2)}, "args": argparse.Namespace(a=1)}, {"best": np.float64(0.5)}],
    ids=["module", "namespace", "numpy"],
)
def test_pickled_objects_are_refused_by_name(tmp_path, held):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"refused: it holds a pickled (torch|argparse|numpy)\."):
        read_state_dict(tmp_path / "w.pt")


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages it; people have the files
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(ModelError, match="refused: it is a TorchScript program"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("text.pt", b"these are no weights\n", "not a file of weights|refused"),
        ("empty.pt", b"", "not a file of weights"),
        ("zip.pt", b"PK\x03\x04 broken", "cannot be read as weights|not a file of weights"),
        ("text.safetensors", b"these are no weights either\n", "not a readable safetensors file"),
        ("empty.safetensors", b"", "not a readable safetensors file"),
    ],
)
def test_damaged_files_say_so_in_one_line(tmp_path, name, data, told):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=told) as error:
        read_state_dict(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_empty_weights_say_so(tmp_path):
    with pytest.raises(ModelError, match="there are no weights at"):
        read_state_dict(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="there are no weights at"):
        read_state_dict(tmp_path)
    for held in ({}, [torch.zeros(2)], {"epoch": 3}, torch.zeros(2)):
        torch.save(held, tmp_path / "w.pt")
        with pytest.raises(ModelError, match="holds no state dict"):
            read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (torch.eye(3).to_sparse(), "body.weight is sparse, quantized or nested; save plain tensors"),
        (torch.empty(3, 3, device="meta"), "body.weight has a shape but no numbers; save plain tensors"),
    ],
)
def test_tensors_that_are_not_plain_numbers_are_refused(tmp_path, odd, told):
    torch.save({**network().state_dict(), "body.weight": odd}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=told):
        read_state_dict(tmp_path / "w.pt")


def test_weights_that_do_not_fit_name_the_first_tensor_and_count_the_others():
    state = network().state_dict()
    wider = nn.Sequential(OrderedDict(body=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6), head=nn.Linear(6, 4)))
    with pytest.raises(ModelError) as error:
        fit_weights(wider, state, "the weights in w.pt", new_head=True)
    assert str(error.value) == (
        "the weights in w.pt do not fit: body.weight is (5, 3, 3, 3) there and (6, 3, 3, 3) in the network "
        "(of 9 tensors 7 differ and 0 are missing; 0 are unexpected)"
    )
    del state["body.bias"]
    with pytest.raises(ModelError, match=r"do not fit: body.bias is missing \(of 9 tensors 0 differ and 1 are missing"):
        fit_weights(network(), state, "w", new_head=False)
    state = {**network().state_dict(), "tail.weight": torch.zeros(2)}
    with pytest.raises(ModelError, match=r"the network has no tail.weight .*; 1 are unexpected"):
        fit_weights(network(), state, "w", new_head=False)


def test_integers_are_not_taken_for_weights():
    state = network().state_dict()
    state["body.weight"] = state["body.weight"].to(torch.int8)
    with pytest.raises(ModelError, match=r"body.weight is \(5, 3, 3, 3\) int8 there and \(5, 3, 3, 3\) in the network"):
        fit_weights(network(), state, "w", new_head=False)


def test_only_a_head_may_be_left_out_and_only_when_asked():
    trained, other = network(10), network(4)
    before = other.head.weight.clone()
    with pytest.raises(ModelError, match=r"head\.weight is"):
        fit_weights(other, trained.state_dict(), "w", new_head=False)
    assert fit_weights(other, trained.state_dict(), "w", new_head=True) == ("head.weight", "head.bias")
    assert torch.equal(other.head.weight, before)
    assert torch.equal(other.body.weight, trained.body.weight)
    assert head_width(network(4).state_dict(), trained.state_dict()) == 10
    assert head_width(network(4).state_dict(), network(4).state_dict()) is None


def test_a_layer_inside_is_no_head():
    small, large = (nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)) for width in (5, 6))
    assert head_width(small.state_dict(), large.state_dict()) is None
    with pytest.raises(ModelError, match=r"0\.weight is"):
        fit_weights(small, large.state_dict(), "w", new_head=True)


def test_names_may_differ_by_dots_and_auxiliary_heads_are_dropped():
    state = network().state_dict()
    old = {name.replace("norm.", "no.rm."): value for name, value in state.items()}
    other = network()
    nn.init.zeros_(other.norm.weight)
    fit_weights(other, {**old, "aux1.fc.weight": torch.zeros(3), "AuxLogits.w": torch.zeros(3)}, "w", new_head=False)
    assert same(other, network())


def test_a_prefix_that_the_network_has_itself_stays():
    wrapped = nn.Sequential(OrderedDict(module=network()))
    state = wrapped.state_dict()
    assert all(name.startswith("module.") for name in state)
    other = nn.Sequential(OrderedDict(module=network(4)))
    nn.init.zeros_(other.module.body.weight)
    fit_weights(other, state, "w", new_head=False)
    assert same(other, wrapped)


def test_the_digest_is_of_names_shapes_and_bytes():
    tensors = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor(7)}
    expected = hashlib.sha256()
    for name in ("a", "b"):
        value = tensors[name]
        expected.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode() + value.numpy().tobytes())
    assert digest_of(tensors.items()) == expected.hexdigest()
    assert digest_of(reversed(tensors.items())) == expected.hexdigest()
    assert digest_of({**tensors, "b": tensors["b"].T.contiguous().T}.items()) == expected.hexdigest()
    assert digest_of({**tensors, "b": tensors["b"].reshape(3, 2)}.items()) != expected.hexdigest()
    assert digest_of({**tensors, "c": torch.zeros(0)}.items()) != expected.hexdigest()
