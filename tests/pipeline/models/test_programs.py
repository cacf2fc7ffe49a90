"""Exported programs: good ones load, and nothing in a bad one is run."""

import contextlib
import io
import json
import os
import zipfile

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.programs import NOTES, load_program

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE = "data/sample_inputs/model.pt"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, image):
        maps = nn.functional.gelu(self.norm(self.conv(image)), approximate="tanh") * self.scale
        return self.head(maps.mean((2, 3)).reshape(image.shape[0], -1))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("program") / "good.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Small().eval(), (torch.zeros(2, 3, 16, 16),), strict=False, dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, path, extra_files={NOTES: json.dumps({"mean": [0, 0, 0]})})
    return path


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def rewritten(good, path, changes, added=()):
    """Copy the archive; `changes` maps a member to a function of its bytes, `added` are members to put in."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        root = source.namelist()[0].split("/")[0]
        for name in source.namelist():
            data = source.read(name)
            change = changes.get(name.removeprefix(f"{root}/"))
            target.writestr(name, change(data) if change else data)
        for name, data in added:
            target.writestr(name.replace("ROOT", root), data)
    return path


def edit(change):
    def apply(data):
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return apply


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_good_program_computes_what_it_did(good):
    torch.manual_seed(0)
    network = Small().eval()
    loaded = load_program(good)
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(loaded.program.module()(images), network(images))
    assert loaded.notes == {"mean": [0, 0, 0]}
    assert len(loaded.digest) == 64


def test_a_rewritten_archive_is_read_like_the_original(good, tmp_path):
    """Otherwise the tests below would pass for the wrong reason."""
    copy = rewritten(good, tmp_path / "copy.pt2", {MODEL: edit(lambda graph: None)})
    images = torch.randn(2, 3, 16, 16)
    same = load_program(copy).program.module()(images)
    assert torch.equal(same, load_program(good).program.module()(images))


def test_a_sample_input_that_runs_code_is_refused_and_not_run(good, tmp_path):
    mark = tmp_path / "mark"
    bad = rewritten(good, tmp_path / "bad.pt2", {SAMPLE: lambda _: pickled(((Evil(mark),), {}))})
    with pytest.raises(ModelError, match=r"sample_inputs.*refused: it holds a pickled posix.mkdir"):
        load_program(bad)
    assert not mark.exists()
    with contextlib.suppress(Exception):  # torch stumbles later; what matters is that it ran
        torch.export.load(bad).module()(torch.zeros(1))
    assert mark.exists()


def test_a_symbolic_size_that_runs_code_is_refused_and_not_run(good, tmp_path):
    mark = tmp_path / "mark"

    def change(value):
        (size,) = value["graph_module"]["graph"]["sym_int_values"].values()
        size["as_expr"]["expr_str"] = f"__import__('os').mkdir({str(mark)!r})"

    bad = rewritten(good, tmp_path / "bad.pt2", {MODEL: edit(change)})
    with pytest.raises(ModelError, match=r"refused: it holds expr_str .__import__"):
        load_program(bad)
    assert not mark.exists()
    with contextlib.suppress(Exception):  # torch stumbles later; what matters is that it ran
        torch.export.load(bad)
    assert mark.exists()


def graph(value):
    return value["graph_module"]["graph"]


def set_target(value):
    graph(value)["nodes"][1]["target"] = "torch.hub.load"


def set_other_library(value):
    graph(value)["nodes"][1]["target"] = "torch.ops.mylib.run.default"


def set_file_operator(value):
    graph(value)["nodes"][1]["target"] = "torch.ops.aten.from_file.default"


def set_name(value):
    graph(value)["nodes"][1]["name"] = "x=__import__('os').getcwd();y"


def set_dotted_name(value):
    graph(value)["nodes"][1]["outputs"][0]["as_tensor"]["name"] = "torch.load"


def set_argument_names(value):
    value["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=print(1)"]


def set_guard(value):
    value["guards_code"] = ["__import__('os').getcwd()"]


def set_tree(value):
    call = value["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []})
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    call["out_spec"] = json.dumps([1, spec])


def set_enum(value):
    call = value["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
    call["out_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def set_metadata(value):
    graph(value)["tensor_values"]["metadata"] = {"sizes": [{"as_expr": {"expr_str": "exit()"}}]}


@pytest.mark.parametrize(
    "change",
    [
        set_target, set_other_library, set_file_operator, set_name, set_dotted_name, set_argument_names, set_guard,
        set_tree, set_enum, set_metadata,
    ],
)  # fmt: skip
def test_a_graph_with_more_than_a_network_is_refused(good, tmp_path, change):
    bad = rewritten(good, tmp_path / "bad.pt2", {MODEL: edit(change)})
    with pytest.raises(ModelError, match="is refused: it holds") as error:
        load_program(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "expression",
    [
        "Symbol('s0').subs", "Symbol('os.system')", "sympify('1')", "(lambda: 1)()", "[1 for x in y]", "s0[0]", "_s0",
        "f'{s0}'", "Max(*s0)", "s0 if s1 else s2", "", "Symbol(",
    ],
)  # fmt: skip
def test_an_expression_is_arithmetic_or_refused(good, tmp_path, expression):
    def change(value):
        (size,) = graph(value)["sym_int_values"].values()
        size["as_expr"]["expr_str"] = expression

    bad = rewritten(good, tmp_path / "bad.pt2", {MODEL: edit(change)})
    with pytest.raises(ModelError, match="is refused: it holds expr_str"):
        load_program(bad)


def use_pickle(value):
    next(iter(value["config"].values()))["use_pickle"] = True


def lead_elsewhere(value):
    next(iter(value["config"].values()))["path_name"] = "../../archive_format"


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({WEIGHTS: edit(use_pickle)}, ()),
        ({WEIGHTS: edit(lead_elsewhere)}, ()),
        ({CONSTANTS: edit(use_pickle)}, ()),
        ({WEIGHTS: lambda _: b"[]"}, ()),
        ({}, [("ROOT/data/weights/model.pt", b"a pickle")]),
        ({}, [("ROOT/data/constants/custom_obj_0", b"an object")]),
        ({}, [("ROOT/data/constants/opaque_obj_0", b"a pickle")]),
        ({}, [("ROOT/data/aotinductor/model/model.so", b"a library")]),
        ({}, [("ROOT/models/other.json", b"{}")]),
        ({}, [("version", b"8.20"), ("serialized_state_dict.pt", b"a pickle")]),
    ],
)
def test_an_archive_with_more_than_a_network_is_refused(good, tmp_path, changes, added):
    bad = rewritten(good, tmp_path / "bad.pt2", changes, added)
    with pytest.raises(ModelError, match=r"is refused: it holds|by an old torch"):
        load_program(bad)


def test_files_that_are_no_programs_say_so(good, tmp_path):
    with pytest.raises(ModelError, match=r"cannot read the exported program .*No such file"):
        load_program(tmp_path / "none.pt2")
    for name, data in {"text": b"hello", "empty": b"", "cut": good.read_bytes()[:2000]}.items():
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"is no program saved by torch.export.save"):
            load_program(path)
    path = tmp_path / "weights.pt2"
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"is no program saved by torch.export.save"):
        load_program(path)
    bad = rewritten(good, tmp_path / "bad.pt2", {MODEL: lambda _: b"{"})
    with pytest.raises(ModelError, match=r"is damaged: models/model\.json in it is not JSON"):
        load_program(bad)
    bad = rewritten(good, tmp_path / "bad.pt2", {MODEL: lambda _: b"{}"})
    with pytest.raises(ModelError, match=r"cannot load .*; export it again") as error:
        load_program(bad)
    assert "\n" not in str(error.value)
