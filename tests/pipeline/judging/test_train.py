"""K-fold training: out of sample, repeatable, and never on images that must not be used."""

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from pipeline.errors import ConfigError, DatasetError, ModelError
from pipeline.geometry import InputSpec
from pipeline.judging import train
from pipeline.judging.folds import assign_folds
from pipeline.judging.train import TrainPlan, load_fold_network, train_fold, training_input

SPEC = InputSpec(size=32, fit="squash", mean=(0.5,) * 3, std=(0.25,) * 3)


def plan(**changes):
    return TrainPlan(**{"class_count": 2, "input": SPEC, "threads": 1} | changes)


def classify(network, pixels, spec=SPEC):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return network((images - mean) / std).argmax(1).numpy()


def patterns(count, seed=0):
    """Every image a coarse pattern of its own, so that each can be told from all others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def spots(count, where, seed=0):
    """Noise with a bright spot at one of two places; the label says which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(where)
    pixels = rng.integers(0, 120, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in enumerate(labels):
        row, column = where[label]
        pixels[image, row : row + 8, column : column + 8] = 255
    return pixels, labels, (np.arange(count) // len(where) % 5).astype(np.int16)


TOP_AND_BOTTOM, LEFT_AND_RIGHT = ((2, 12), (22, 12)), ((12, 2), (12, 22))


def trained(tmp_path, pixels, labels, folds, held_out=0, usable=None, name="fold.safetensors", **changes):
    usable = np.ones(len(labels), bool) if usable is None else usable
    train_fold(pixels, labels, folds, held_out, usable=usable, plan=plan(**changes), out=tmp_path / name)
    return load_fold_network(plan(**changes), tmp_path / name)


def test_a_leak_would_show(tmp_path):
    """Random labels on images that can be learned by heart: right on what it saw, at chance on what it did not."""
    count = 100
    labels = np.random.default_rng(1).permutation(count) % 2
    pixels, folds = patterns(count), assign_folds(labels, [str(i) for i in range(count)], 2, 0)
    network = trained(tmp_path, pixels, labels, folds, epochs=60)
    right = classify(network, pixels) == labels
    assert right[folds != 0].mean() > 0.9
    assert abs(right[folds == 0].mean() - 0.5) < 3 * np.sqrt(0.25 / 50)


def test_weights_do_not_depend_on_what_is_held_out_or_unusable(tmp_path):
    pixels, labels, folds = spots(60, TOP_AND_BOTTOM)
    usable = np.arange(60) % 12 != 5
    unknown = np.arange(60) % 12 == 7
    labels[unknown] = -1
    others = (folds == 1) | ~usable | unknown
    first = trained(tmp_path, pixels, labels, folds, 1, usable, "a.safetensors", epochs=2).state_dict()

    changed, relabelled = pixels.copy(), labels.copy()
    changed[others] = 255 - changed[others]
    relabelled[others & ~unknown] = 1 - labels[others & ~unknown]
    second = trained(tmp_path, changed, relabelled, folds, 1, usable, "b.safetensors", epochs=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)

    relabelled[~others] = 1 - labels[~others]
    third = trained(tmp_path, pixels, relabelled, folds, 1, usable, "c.safetensors", epochs=2).state_dict()
    assert not torch.equal(first["0.0.weight"], third["0.0.weight"])


def test_same_seed_same_weights_and_other_seed_or_fold_others(tmp_path):
    pixels, labels, folds = spots(40, TOP_AND_BOTTOM)
    torch.manual_seed(1)
    first = trained(tmp_path, pixels, labels, folds, epochs=1).state_dict()["0.0.weight"]
    torch.manual_seed(2)
    again = trained(tmp_path, pixels, labels, folds, epochs=1).state_dict()["0.0.weight"]
    assert torch.equal(first, again)
    assert not torch.equal(first, trained(tmp_path, pixels, labels, folds, epochs=1, seed=1).state_dict()["0.0.weight"])
    assert not torch.equal(first, trained(tmp_path, pixels, labels, folds, 1, epochs=1).state_dict()["0.0.weight"])


def test_training_leaves_the_process_as_it_was(tmp_path):
    pixels, labels, folds = spots(20, TOP_AND_BOTTOM)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    trained(tmp_path, pixels, labels, folds, epochs=1, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("where", "mirrors"), [(TOP_AND_BOTTOM, True), (LEFT_AND_RIGHT, False)])
def test_mirror_images_are_used_only_where_they_keep_their_label(tmp_path, monkeypatch, where, mirrors):
    pixels, labels, folds = spots(250, where)
    asked = []

    def spy(batch, rng, *, mirror):
        asked.append(mirror)
        return batch

    monkeypatch.setattr(train, "vary", spy)
    network = trained(tmp_path, pixels, labels, folds, epochs=16)
    assert set(asked[:10]) == {False}
    assert set(asked[-10:]) == {mirrors}
    assert np.mean(classify(network, pixels[folds == 0]) == labels[folds == 0]) > 0.95


def test_progress_rises_to_one(tmp_path):
    pixels, labels, folds = spots(40, TOP_AND_BOTTOM)
    seen = []
    out = tmp_path / "fold.safetensors"
    train_fold(pixels, labels, folds, 0, usable=labels >= 0, plan=plan(epochs=4), out=out, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    assert len(seen) == 4 * 4
    assert [file.name for file in tmp_path.iterdir()] == ["fold.safetensors"]


def test_pixels_may_be_a_read_only_memory_map(tmp_path):
    pixels, labels, folds = spots(20, TOP_AND_BOTTOM)
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    expected = trained(tmp_path, pixels, labels, folds, epochs=2).state_dict()["0.0.weight"]
    assert torch.equal(trained(tmp_path, mapped, labels, folds, epochs=2).state_dict()["0.0.weight"], expected)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_very_few_images(tmp_path, count):
    pixels, labels, _ = spots(count, TOP_AND_BOTTOM)
    network = trained(tmp_path, pixels, labels, np.ones(count, np.int16), epochs=2)
    assert classify(network, pixels).shape == (count,)


def test_class_never_seen_is_never_predicted(tmp_path):
    pixels, labels, folds = spots(60, TOP_AND_BOTTOM)
    network = trained(tmp_path, pixels, labels, folds, epochs=6, class_count=4)
    assert set(classify(network, pixels)) <= {0, 1}


def test_nothing_to_train_on(tmp_path):
    pixels, labels, folds = spots(10, TOP_AND_BOTTOM)
    for usable, given in ((np.zeros(10, bool), labels), (np.ones(10, bool), np.full(10, -1))):
        with pytest.raises(DatasetError, match="no readable labelled image outside fold 3"):
            train_fold(pixels, given, folds, 3, usable=usable, plan=plan(), out=tmp_path / "fold.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_diverged_training_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    pixels, labels, folds = spots(20, TOP_AND_BOTTOM)
    monkeypatch.setattr(train.F, "cross_entropy", lambda logits, target, label_smoothing: logits.sum() * float("nan"))
    with pytest.raises(ModelError, match="training without fold 0 did not converge"):
        trained(tmp_path, pixels, labels, folds, epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_the_plan(tmp_path):
    pixels, labels, folds = spots(10, TOP_AND_BOTTOM)
    trained(tmp_path, pixels, labels, folds, epochs=1)
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, classes in (("fold.safetensors", 3), ("text.safetensors", 2), ("absent.safetensors", 2)):
        with pytest.raises(ModelError, match=f"{name} does not hold the network of this run") as caught:
            load_fold_network(plan(class_count=classes), tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("short", "size"), [(1, 32), (28, 32), (32, 32), (35, 32), (37, 40), (64, 64), (94, 96), (4000, 96)]
)
def test_input_follows_the_median_short_side(short, size):
    spec = training_input(np.array([short, 9 * short, short, 0]), np.array([3 * short, short, short + 1, 0]))
    assert spec == InputSpec(size=size, fit="squash", mean=(0.5,) * 3, std=(0.25,) * 3)


def test_input_of_nothing():
    with pytest.raises(DatasetError, match="no image can be read"):
        training_input(np.array([0, 0]), np.array([0, 5]))


def test_plans_are_checked():
    with pytest.raises(ConfigError, match="epochs = 0 is out of range"):
        plan(epochs=0)
    with pytest.raises(ConfigError, match="weights are given without a model"):
        plan(weights="some.safetensors")


def test_epochs_fall_with_the_number_of_images():
    chosen = [train._epochs(count, plan()) for count in (1, 200, 1500, 12_000, 10**6)]
    assert chosen == [60, 55, 28, 14, 3]
    assert train._epochs(1500, plan(model="torchvision:resnet18")) == 7


@pytest.fixture
def squeezenet(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "squeezenet.pt"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return {"model": "torchvision:squeezenet1_1", "weights": str(path), "class_count": 3, "input": InputSpec(size=64)}


def test_fine_tuning_starts_from_the_weights_and_gets_a_new_head(tmp_path, squeezenet):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8)
    labels, folds = np.arange(30) % 3, (np.arange(30) // 3 % 5).astype(np.int16)
    network = trained(tmp_path, pixels, labels, folds, epochs=1, **squeezenet)
    start = torch.load(squeezenet["weights"], weights_only=True)["features.0.weight"]
    tuned = load_file(tmp_path / "fold.safetensors")
    step = (tuned["features.0.weight"] - start).abs().max()
    assert 0 < step < 0.01
    assert tuned["classifier.1.weight"].shape[0] == 3
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert classify(network, pixels, squeezenet["input"]).shape == (30,)


def test_what_cannot_be_fine_tuned_says_so(tmp_path):
    program = torch.export.export(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2)), (torch.zeros(2, 3, 32, 32),)
    )
    torch.export.save(program, tmp_path / "network.pt2")
    pixels, labels, folds = spots(10, TOP_AND_BOTTOM)
    with pytest.raises(ModelError, match=r"network.pt2 is an exported program, whose last layer cannot be replaced"):
        trained(tmp_path, pixels, labels, folds, model=str(tmp_path / "network.pt2"))
    with pytest.raises(ModelError, match=r"returns \(2, 5\) for 2 images, not \(2, 2\)"):
        trained(tmp_path, pixels, labels, folds, model="tests.pipeline.judging.test_train:five_classes")


def five_classes():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 5))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_handwriting_is_read_out_of_sample_through_wrong_labels(tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    truth = digits.target
    pixels = np.repeat((digits.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=3).repeat(4, 1).repeat(4, 2)
    given, rng = truth.copy(), np.random.default_rng(0)
    wrong = rng.choice(len(truth), 90, replace=False)
    given[wrong] = (truth[wrong] + rng.integers(1, 10, 90)) % 10
    folds = assign_folds(given, [str(i) for i in range(len(truth))], 5, 0)
    found = np.empty_like(truth)
    for fold in range(5):
        network = trained(tmp_path, pixels, given, folds, fold, class_count=10, threads=2)
        found[folds == fold] = classify(network, pixels[folds == fold])
    assert np.mean(found == truth) >= 0.97
