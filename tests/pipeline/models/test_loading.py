"""Networks by name."""

import contextlib
import hashlib
import http.server
import inspect
import json
import sys
import threading

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.geometry import InputSpec
from pipeline.models.loading import LoadedModel, from_anywhere, load_model, resolve_classes
from pipeline.models.weights import digest_of

IMAGENET = tuple(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


def squeezenet(classes=1000, seed=1):
    torch.manual_seed(seed)
    return torchvision.models.squeezenet1_1(num_classes=classes).eval()


def saved(module, path):
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no way around the addresses below."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home" / "hub" / "checkpoints"


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def publish(monkeypatch, url):
    monkeypatch.setattr(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value, "url", url)


# torchvision ---------------------------------------------------------------------------------------------------------


def test_a_torchvision_network_with_a_weights_file(tmp_path):
    path = saved(squeezenet(), tmp_path / "w.pt")
    loaded = load_model("torchvision:SqueezeNet1_1", weights=path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), squeezenet()(images))
    assert not any(module.training for module in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    assert loaded.input == InputSpec(size=224, resize=256)
    assert loaded.categories == IMAGENET
    assert loaded.new_head == ()
    assert loaded.digest == digest_of(squeezenet().state_dict().items())


def test_input_sizes_come_from_the_published_weights():
    published = torchvision.models.EfficientNet_B1_Weights.DEFAULT.transforms()
    loaded = load_model("torchvision:efficientnet_b1", pretrained=False)
    assert loaded.input.size == published.crop_size[0] == 240
    assert loaded.input.resize == published.resize_size[0] == 255


def test_random_weights_are_always_the_same_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = load_model("torchvision:squeezenet1_1", pretrained=False)
    assert torch.equal(torch.rand(3), expected)
    assert load_model("torchvision:squeezenet1_1", pretrained=False).digest == one.digest
    assert load_model("torchvision:squeezenet1_1", pretrained=False, classes=5).digest != one.digest


def test_half_precision_becomes_single(tmp_path):
    save_file(squeezenet().half().state_dict(), tmp_path / "half.safetensors")
    loaded = load_model("torchvision:squeezenet1_1", weights=tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}


def test_the_number_of_classes_is_read_from_the_weights(tmp_path):
    path = saved(squeezenet(7), tmp_path / "w.pt")
    loaded = load_model("torchvision:squeezenet1_1", weights=path)
    assert loaded.module.classifier[1].out_channels == 7
    assert loaded.categories is None
    assert loaded.new_head == ()


def test_another_number_of_classes_gets_a_new_head_that_is_always_the_same(tmp_path):
    path = saved(squeezenet(), tmp_path / "w.pt")
    loaded = load_model("torchvision:squeezenet1_1", weights=path, classes=4)
    assert loaded.new_head == ("classifier.1.weight", "classifier.1.bias")
    assert loaded.module.classifier[1].out_channels == 4
    assert torch.equal(loaded.module.features[0].weight, squeezenet().features[0].weight)
    assert loaded.categories is None
    assert load_model("torchvision:squeezenet1_1", weights=path, classes=4).digest == loaded.digest
    kept = load_model("torchvision:squeezenet1_1", weights=saved(squeezenet(4), path), classes=4)
    assert kept.new_head == ()
    assert torch.equal(kept.module.classifier[1].weight, squeezenet(4).classifier[1].weight)


def test_weights_of_another_network_do_not_fit(tmp_path):
    path = saved(torchvision.models.mnasnet0_5(), tmp_path / "w.pt")
    for classes in (None, 5):
        with pytest.raises(
            ModelError, match=r"the weights in .*w.pt do not fit: .* missing; \d+ are unexpected"
        ) as told:
            load_model("torchvision:squeezenet1_1", weights=path, classes=classes)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_dropped_and_inputs_transformed_as_torchvision_does(tmp_path, name):
    builder = torchvision.models.get_model_builder(name)
    torch.manual_seed(0)
    network = builder(weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    assert any(key.lower().startswith("aux") for key in network.state_dict())
    loaded = load_model(f"torchvision:{name}", weights=saved(network, tmp_path / "w.pt"))
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), network(images))
    assert not any(key.lower().startswith("aux") for key in loaded.module.state_dict())


def test_the_dotted_names_of_old_densenets_are_understood(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.densenet121().eval()
    state = network.state_dict()
    old = {
        key.replace("norm1", "norm.1").replace("conv1.w", "conv.1.w").replace("norm2", "norm.2"): value
        for key, value in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pt")
    assert load_model("torchvision:densenet121", weights=tmp_path / "w.pt").digest == digest_of(state.items())


def test_weights_without_layer_versions_load(tmp_path):
    network = torchvision.models.mnasnet0_5(num_classes=3)  # raises when it finds no version
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model("torchvision:mnasnet0_5", weights=tmp_path / "w.safetensors")
    assert loaded.digest == digest_of(network.state_dict().items())


def test_no_torchvision_network_needs_a_line_of_its_own():
    """What `load_model` reads from a builder must be there for all of them."""
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) >= 80
    for name in names:
        made = inspect.signature(torchvision.models.get_model_builder(name)).return_annotation
        asked = inspect.signature(made).parameters
        assert "num_classes" in asked, name
        assert {"aux_logits", "transform_input"} <= asked.keys() or not {"aux_logits", "transform_input"} & asked.keys()
        published = torchvision.models.get_model_weights(name).DEFAULT
        shown = published.transforms()
        assert len(shown.crop_size) == len(shown.resize_size) == 1, name
        assert len(shown.mean) == len(shown.std) == 3, name
        assert len(published.meta["categories"]) == 1000, name
        assert published.meta["num_params"] > 0, name


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("torchvision:resnet5O", r"torchvision has no classifier 'resnet5o'; did you mean torchvision:resnet50\?"),
        ("torchvision:zzz", r"did you mean torchvision:\w+\?"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("resnet18", r"unknown model 'resnet18'; did you mean torchvision:resnet18\?"),
        ("something", r"a model is torchvision:NAME, FILE.pt2, FILE.py:function or package.module:function"),
        ("torchvision:", "unknown model 'torchvision:'"),
        ("none.pt2", "cannot read the exported program none.pt2"),
    ],
)
def test_unknown_names_suggest_the_nearest(spec, told):
    with pytest.raises(ModelError, match=told) as error:
        load_model(spec)
    assert "\n" not in str(error.value)


# the download --------------------------------------------------------------------------------------------------------


def test_weights_are_downloaded_once_and_checked(tmp_path, cache, monkeypatch, capfd):
    data = saved(squeezenet(), tmp_path / "w.pt").read_bytes()
    name = f"squeezenet1_1-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    (tmp_path / "w.pt").rename(tmp_path / name)
    with served(tmp_path) as address:
        publish(monkeypatch, f"{address}/{name}")
        loaded = load_model("torchvision:squeezenet1_1")
    assert loaded.digest == digest_of(squeezenet().state_dict().items())
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "downloading the weights of squeezenet1_1" in shown.err
    assert "100%" in shown.err
    again = load_model("torchvision:squeezenet1_1")  # the server is gone
    assert again.digest == loaded.digest
    assert capfd.readouterr().err == ""
    (cache / name).write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"is damaged .* delete it and run again"):
        load_model("torchvision:squeezenet1_1")


def test_other_bytes_than_published_are_not_kept(tmp_path, cache, monkeypatch):
    saved(squeezenet(), tmp_path / "squeezenet1_1-00000000.pth")
    with served(tmp_path) as address:
        publish(monkeypatch, f"{address}/squeezenet1_1-00000000.pth")
        with pytest.raises(ModelError, match=r"cannot download the weights of squeezenet1_1 \(invalid hash value"):
            load_model("torchvision:squeezenet1_1")
    assert list(cache.iterdir()) == []


def test_an_impossible_download_names_the_ways_on(cache, monkeypatch):
    with served(cache.parent.parent.parent) as address:
        pass
    publish(monkeypatch, f"{address}/squeezenet1_1-00000000.pth")
    with pytest.raises(ModelError) as error:
        load_model("torchvision:squeezenet1_1")
    told = str(error.value)
    assert told.startswith("cannot download the weights of squeezenet1_1 (Connection refused); ")
    for way in ("--weights FILE", "--predict train", f"a model that is cached: none is, in {cache}"):
        assert way in told
    assert "\n" not in told
    assert list(cache.iterdir()) == []
    for name in ("resnet50-11ad3fa6.pth", "resnet18-f37072fd.pth"):
        (cache / name).touch()
    with pytest.raises(ModelError, match=r"--model torchvision:resnet18, --model torchvision:resnet50$"):
        load_model("torchvision:squeezenet1_1")


def test_a_cache_that_cannot_be_made_says_so(tmp_path, cache, monkeypatch):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ModelError, match=r"cannot download the weights of squeezenet1_1 \(Not a directory\)"):
        load_model("torchvision:squeezenet1_1")


# functions -----------------------------------------------------------------------------------------------------------

PACKAGE = """
import torch
from torch import nn
from pipeline.geometry import InputSpec

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()

def sized(num_classes=3):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    network.input_spec = InputSpec(size=32, fit="squash")
    return network

def broken():
    raise RuntimeError("two\\nlines")

def number():
    return 3

def bad_input():
    network = build()
    network.input_spec = 224
    return network

def maps():
    return nn.Conv2d(3, 4, 3)

def narrow():
    return nn.Linear(7, 3)
"""


BESIDE = """
from dataclasses import dataclass

from my_networks import build

assert __name__ != "statistics"

@dataclass
class Settings:
    width: "int" = 4  # as text, it is looked up in the module by its name
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(PACKAGE)
    (tmp_path / "my_mistake.py").write_text("import a_package_that_is_not_there")
    (tmp_path / "my_folder.py").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield "my_networks"
    sys.modules.pop("my_networks", None)


def test_a_function_of_the_working_directory(package, tmp_path):
    loaded = load_model(f"{package}:build")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert not loaded.module.training
    assert loaded.input == InputSpec(size=224, resize=256)
    assert loaded.categories is None
    assert load_model(f"{package}:build", classes=9).module[3].out_features == 3  # it takes no num_classes
    sized = load_model(f"{package}:sized", classes=9)
    assert sized.module[3].out_features == 9
    assert sized.input == InputSpec(size=32, fit="squash")
    path = saved(sized.module, tmp_path / "w.pt")
    assert load_model(f"{package}:sized", weights=path).digest == sized.digest
    fewer = load_model(f"{package}:sized", weights=path, classes=2)
    assert fewer.new_head == ("3.weight", "3.bias")
    with pytest.raises(ModelError, match=r"do not fit: 3.weight is \(9, 4\) there and \(3, 4\) in the network"):
        load_model(f"{package}:build", weights=path)


def test_a_function_of_a_file_wherever_one_stands(package, tmp_path, monkeypatch):
    """It may be called as a module that is known already, and import what lies beside it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "statistics.py").write_text(BESIDE)
    assert load_model("statistics.py:build").digest == load_model(f"{package}:build").digest
    whole = from_anywhere("statistics.py:build")
    assert whole == f"{tmp_path / 'statistics.py'}:build"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_model(whole).digest == load_model(f"{package}:build").digest
    assert load_model("../statistics.py:build").spec == "../statistics.py:build"
    assert from_anywhere("../kept.pt2") == str(tmp_path / "kept.pt2")
    assert from_anywhere("my_networks:build") == "my_networks:build"
    assert from_anywhere("torchvision:resnet18") == "torchvision:resnet18"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_networks:biuld", r"my_networks has no function 'biuld'; did you mean build\?"),
        ("my_networks:broken", "my_networks:broken failed: RuntimeError: two lines"),
        ("my_networks:number", "returned int; it must return a torch.nn.Module"),
        ("my_networks:bad_input", "input_spec of my_networks:bad_input is int"),
        ("my_mistake:build", "cannot import my_mistake .*: ModuleNotFoundError: No module named 'a_package"),
        ("my_nothing:build", "cannot import my_nothing .*: ModuleNotFoundError"),
        ("my networks:build", "cannot import my networks"),
        ("my_networks.py:biuld", r"my_networks.py has no function 'biuld'; did you mean build\?"),
        ("my_mistake.py:build", "cannot import my_mistake.py .*: ModuleNotFoundError: No module named 'a_package"),
        ("my_nothing.py:build", "cannot import my_nothing.py .*: FileNotFoundError"),
        ("my_folder.py:build", "cannot import my_folder.py .*: IsADirectoryError"),
    ],
)
def test_functions_that_give_no_network_say_why(package, name, told):
    with pytest.raises(ModelError, match=told) as error:
        load_model(name)
    assert "\n" not in str(error.value)


# exported programs ---------------------------------------------------------------------------------------------------


def export(path, network, size=32, **notes):
    program = torch.export.export(
        network.eval(),
        (torch.zeros(2, 3, *size) if isinstance(size, tuple) else torch.zeros(2, 3, size, size),),
        strict=False,
    )
    extra = {"fixaudit.json": json.dumps(notes)} if notes else None
    torch.export.save(program, path, extra_files=extra)
    return str(path)


def small(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def test_an_exported_program(tmp_path):
    spec = export(tmp_path / "a.pt2", small())
    loaded = load_model(spec)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module.module()(images), small()(images))
    assert loaded.input == InputSpec(size=32)
    assert not any(tensor.requires_grad for tensor in loaded.module.state_dict.values())
    assert len(loaded.digest) == 64
    assert resolve_classes(loaded, ["a", "b", "c"]) == ("a", "b", "c")


def test_an_exported_program_may_say_how_it_sees(tmp_path):
    notes = {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1], "fit": "squash", "categories": ["a", "b", "c"]}
    loaded = load_model(export(tmp_path / "a.pt2", small(), **notes))
    assert loaded.input == InputSpec(size=32, fit="squash", mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    assert loaded.categories == ("a", "b", "c")
    for notes, told in [
        ({"men": [0, 0, 0]}, "unknown key 'men'"),
        ({"mean": [0, 0]}, "does not say how images are seen"),
        ({"fit": "stretch"}, "does not say how images are seen: fit is 'stretch'"),
        ({"resize": "large"}, "does not say how images are seen"),
    ]:
        with pytest.raises(ModelError, match=told):
            load_model(export(tmp_path / "b.pt2", small(), **notes))


def test_exported_programs_that_do_not_serve(tmp_path):
    spec = export(tmp_path / "a.pt2", small())
    with pytest.raises(ModelError, match="holds its own weights; leave out --weights"):
        load_model(spec, weights=tmp_path / "w.pt")
    with pytest.raises(ModelError, match="whose last layer cannot be replaced"):
        load_model(spec, classes=4)
    with pytest.raises(ModelError, match="takes images of 32 x 48 pixels; export it for a fixed square size"):
        load_model(export(tmp_path / "b.pt2", small(), size=(32, 48)))
    program = torch.export.export(small().double().eval(), (torch.zeros(2, 3, 32, 32).double(),), strict=False)
    torch.export.save(program, tmp_path / "c.pt2")
    with pytest.raises(ModelError, match=r"is torch.float64; call .float\(\)"):
        load_model(str(tmp_path / "c.pt2"))
    program = torch.export.export(nn.Linear(7, 3), (torch.zeros(2, 7),), strict=False)
    torch.export.save(program, tmp_path / "d.pt2")
    with pytest.raises(ModelError, match=r"takes 1 inputs, of shape \(2, 7\)"):
        load_model(str(tmp_path / "d.pt2"))


# classes -------------------------------------------------------------------------------------------------------------


def judging(outputs, categories=None):
    return LoadedModel(
        module=small(outputs).eval(), input=InputSpec(size=32), categories=categories, spec="m:f", digest=""
    )


@pytest.mark.parametrize(
    ("outputs", "categories", "names", "expected"),
    [
        (3, None, ["b", "a", "c"], ("b", "a", "c")),  # by order
        (3, ("c", "b", "a"), ["a", "b", "c"], ("c", "b", "a")),  # by name
        (3, ("c", "b", "a"), ["a"], ("c", "b", "a")),  # some of them
        (3, ("c", "b", "a"), ["n01", "n02", "n03"], ("n01", "n02", "n03")),  # other words for all
        (3, ("c", "b"), ["x", "y", "z"], ("x", "y", "z")),  # categories that are not its outputs
        (4, None, ["0", "3"], ("0", "1", "2", "3")),  # positions
        (4, ("a", "b", "c", "d"), ["1", "3"], ("a", "b", "c", "d")),
        (3, None, ["1", "2", "3"], ("1", "2", "3")),
    ],
)
def test_outputs_get_their_names(outputs, categories, names, expected):
    assert resolve_classes(judging(outputs, categories), names) == expected


@pytest.mark.parametrize(
    ("outputs", "categories", "names", "told"),
    [
        (4, None, ["a", "b"], "m:f tells 4 classes apart, the dataset has 2; .* --classes FILE"),
        (3, None, ["1", "2", "3", "4"], "tells 3 classes apart, the dataset has 4"),
        (4, None, ["2", "4"], "tells 4 classes apart, the dataset has 2"),
        (
            3,
            ("cat", "dog", "bird"),
            ["cat", "dogs", "bird"],
            "1 of the dataset's 3 .* 'dogs' .the nearest is 'dog'.*FILE",
        ),
        (3, ("cat", "dog", "bird"), ["cat", "qqq"], "1 of the dataset's 2 classes .* the first is 'qqq'; name its 3"),
    ],
)
def test_names_that_do_not_fit_the_outputs(outputs, categories, names, told):
    with pytest.raises(ModelError, match=told) as error:
        resolve_classes(judging(outputs, categories), names)
    assert "\n" not in str(error.value)


def test_networks_that_are_no_classifiers_say_so(package):
    with pytest.raises(ModelError, match="my_networks:maps is no classifier"):
        resolve_classes(load_model("my_networks:maps"), ["a"])
    with pytest.raises(ModelError, match=r"my_networks:narrow cannot judge an image of 224 x 224 pixels: RuntimeError"):
        resolve_classes(load_model("my_networks:narrow"), ["a"])
