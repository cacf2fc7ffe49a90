"""Each protocol against a slow reading of its definition, and against published boxes where they are at hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fixcore
from fixcore import metrics
from fixcore.errors import InputError, TargetError

NAN = float("nan")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet"


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_the_best_of_the_true_boxes_counts_and_missing_ones_do_not() -> None:
    truths = torch.stack(
        [boxes((0, 0, 4, 4), (0, 0, 2, 4)), boxes((9, 9, 10, 10), (NAN,) * 4), boxes((NAN,) * 4, (NAN,) * 4)]
    )
    found = metrics.best_iou(boxes((0, 0, 2, 4), (0, 0, 1, 1), (0, 0, 1, 1)), truths)
    assert found.tolist() == [1, 0, 0]
    assert metrics.best_iou(boxes((NAN,) * 4), truths[:1]).tolist() == [0]
    assert metrics.best_iou(torch.zeros(0, 4), truths[:0]).shape == (0,)
    assert metrics.best_iou(torch.zeros(0, 3, 4), truths[:0]).shape == (0,)
    assert metrics.best_iou(torch.zeros(3, 0, 4), truths).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="true boxes"):
        metrics.best_iou(boxes((0, 0, 1, 1)), truths)
    with pytest.raises(InputError, match="true boxes"):
        metrics.best_iou(torch.zeros(3, 8), truths)


def test_localisation_errors_by_hand() -> None:
    hit = torch.tensor([True, False, True, True])
    rank = torch.tensor([0, 0, 4, 5])  # of the last one the true class is the sixth
    assert metrics.localization(hit, rank) == metrics.Localization(0.75, 0.5, 0.5, 0.5, 0.75)
    nothing = metrics.localization(hit[2:], rank[2:])
    assert nothing.accuracy_if_correct != nothing.accuracy_if_correct  # NaN: no image was classified rightly


def test_what_knows_nothing() -> None:
    whole, centred = metrics.whole_and_centred(2, 80, 40)
    assert whole.tolist() == [[0, 0, 40, 80]] * 2
    assert centred.tolist() == [[5, 10, 35, 70]] * 2


def test_max_box_accuracy_takes_the_best_threshold() -> None:
    maps = torch.zeros(2, 10, 10)
    maps[0, 2:6, 2:6] = 1.0
    maps[0, 0:8, 0:8] += 0.4  # at 0.25 the box is 8 x 8, at 0.9 it is 4 x 4
    maps[1] = maps[0]
    truths = torch.stack([boxes((2, 2, 6, 6)), boxes((0, 0, 8, 8))])
    iou = torch.stack([metrics.best_iou(fixcore.threshold_boxes(maps, at), truths) for at in (0.25, 0.9)], 1)
    assert metrics.max_box_accuracy(iou, iou) == (0.5, 0.5)
    by_hand = torch.tensor([[0.2, 0.4], [0.6, 0.4], [0.8, 0.4]])
    assert metrics.max_box_accuracy(by_hand, by_hand) == (pytest.approx(2 / 3), pytest.approx((1 + 2 / 3 + 1 / 3) / 3))


def test_the_second_max_box_accuracy_takes_the_best_of_all_regions() -> None:
    maps = torch.zeros(1, 10, 10)
    maps[0, 0:5, 0:5] = 1.0
    maps[0, 7:9, 7:9] = 1.0  # the smaller region is the object
    truths = boxes((7, 7, 9, 9))[None]
    largest = metrics.best_iou(fixcore.threshold_boxes(maps, 0.5), truths)[:, None]
    best = metrics.best_iou(fixcore.threshold_region_boxes(maps, 0.5), truths)[:, None]
    assert metrics.max_box_accuracy(largest, best) == (0.0, 1.0)


def test_recall_and_precision_of_one_box_per_image() -> None:
    truths = torch.stack(
        [boxes((0, 0, 4, 4), (0, 0, 4, 5)), boxes((0, 0, 4, 4), (8, 8, 9, 9)), boxes((5, 5, 6, 6), (NAN,) * 4)]
    )
    owner = torch.tensor([[3, 3], [3, 5], [3, -1]])
    found = metrics.class_proposals(boxes((0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 1, 1)), truths, owner)
    assert found == {3: (0.75, pytest.approx(2 / 3)), 5: (0.0, 0.0)}


def test_a_peak_may_miss_by_the_tolerance() -> None:
    maps = torch.zeros(4, 40, 40)
    maps[0, 10, 10] = maps[1, 10, 26] = maps[2, 10, 27] = 1
    truths = boxes((5, 5, 11, 11))[None].expand(4, 1, 4)
    assert metrics.pointing_hits(maps, truths).tolist() == [True, False, False, False]
    assert metrics.pointing_hits(maps, truths, tolerance=15.5).tolist() == [True, True, False, False]
    speckled = torch.zeros(1, 40, 40)
    speckled[0, 8:11, 8:11] = 1
    speckled[0, 35, 35] = 2  # one bright pixel does not make a peak when blurred
    assert metrics.pointing_hits(speckled, truths[:1]).tolist() == [False]
    assert metrics.pointing_hits(speckled, truths[:1], blur=True).tolist() == [True]
    assert metrics.pointing_hits(maps[:1], boxes((NAN,) * 4)[None]).tolist() == [False]


@given(st.lists(st.integers(0, 3), min_size=24, max_size=24), st.lists(st.booleans(), min_size=24, max_size=24))
def test_mask_scores_match_their_definitions(values: list[int], truth: list[bool]) -> None:
    maps = (torch.tensor(values, dtype=torch.float32) / 3).view(2, 3, 4)
    masks = torch.tensor(truth).view(2, 3, 4)
    if not masks.any():
        with pytest.raises(InputError, match="no mask"):
            metrics.mask_scores(maps, masks)
        return
    best = (-1.0, 0.0, 0.0, 0.0)
    for threshold in (0.0, 1 / 3, 2 / 3, 1.0):
        precision, recall = [], []
        for value, mask in zip(maps, masks, strict=True):
            shown = value >= threshold - 1e-6
            precision.append(float((shown & mask).sum()) / max(1, int(shown.sum())))
            recall.append(float((shown & mask).sum()) / max(1, int(mask.sum())))
        p, r = sum(precision) / 2, sum(recall) / 2
        best = max(best, (1.3 * p * r / (0.3 * p + r) if p * r else 0.0, p, r, threshold))
    found = metrics.mask_scores(maps, masks)
    assert found.max_f == pytest.approx(best[0])
    assert found.mean_absolute_error == pytest.approx(float((maps - masks.float()).abs().mean()))
    ordered = sorted(zip(values, truth, strict=True), key=lambda pair: -pair[0])
    count = sum(truth)
    edge = ordered[count - 1][0]
    above = [inside for value, inside in ordered if value > edge]
    tied = [inside for value, inside in ordered if value == edge]
    expected = (sum(above) + (count - len(above)) * sum(tied) / len(tied)) / count
    assert found.precision_at_equal_error == pytest.approx(expected)


def test_scores_do_not_depend_on_the_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(7, 20, 30, generator=draw), torch.rand(7, 20, 30, generator=draw) < 0.3
    masks[2] = False
    tally = metrics.MaskTally()
    for part in torch.arange(7).split(3):
        tally.add(maps[part], masks[part])
    assert asdict(tally.scores()) == pytest.approx(asdict(metrics.mask_scores(maps, masks)))
    above = maps.flatten().sort(descending=True).indices[: int(masks.sum())]
    share = float(masks.flatten()[above].float().mean())
    assert tally.scores().precision_at_equal_error == pytest.approx(share, abs=2e-3)  # 4,200 values, some 16 bits alike


def test_a_perfect_map_and_its_opposite() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 1:7] = True
    right, wrong = metrics.mask_scores(masks.float(), masks), metrics.mask_scores(1 - masks.float(), masks)
    assert (right.max_f, right.iou, right.accuracy, right.mean_absolute_error, right.precision_at_equal_error) == (
        1,
        1,
        1,
        0,
        1,
    )
    assert (wrong.mean_absolute_error, wrong.precision_at_equal_error) == (1, 0)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        metrics.mask_scores(masks.float() * 2, masks)
    with pytest.raises(InputError, match="alike"):
        metrics.mask_scores(masks.float(), masks.float())


class Sum(nn.Module):
    """A network that sees only the upper left quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :14, :14].mean((1, 2, 3))[:, None] * self.scale * 4


def test_deletion_is_fast_and_insertion_high_where_the_map_is_right() -> None:
    images = torch.ones(2, 3, 28, 28)
    images[:, :, ::2] = 2
    graph = fixcore.capture(Sum(), images)
    right, wrong = torch.zeros(2, 28, 28), torch.zeros(2, 28, 28)
    right[:, :14, :14] = 1
    wrong[:, 14:, 14:] = 1
    target = torch.tensor([0, 0])
    good, bad = (metrics.insertion_and_deletion(graph, images, target, one) for one in (right, wrong))
    assert (good.deletion < bad.deletion - 0.1).all()
    whole, nothing = (torch.softmax(torch.tensor([mean * 4.0, 0.0]), 0)[0] for mean in (1.5, 0.0))
    # A quarter of the pixels carries the decision: the curve falls within the first quarter, evenly, and stays.
    logits = torch.linspace(6, 0, 8)
    fall = torch.softmax(torch.stack([logits, torch.zeros(8)], 1), 1)[:, 0]
    expected = ((fall[1:] + fall[:-1]).sum() / 2 + nothing * 21) / 28
    assert good.deletion.tolist() == pytest.approx([float(expected)] * 2, abs=2e-3)
    assert float(whole) + 1e-6 > float(good.insertion[0]) > float(nothing)
    with pytest.raises(InputError, match="maps are"):
        metrics.insertion_and_deletion(graph, images, target, right[:, :5])
    for wrong in (target + 2, target - 1, target.bool()):
        with pytest.raises(TargetError, match="target"):
            metrics.insertion_and_deletion(graph, images, wrong, right)


def test_rank_correlation_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 5, (3, 6, 7), generator=generator).float() for _ in range(2))
    expected = [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert metrics.rank_correlation(a, b).tolist() == pytest.approx(expected, abs=1e-6)
    assert metrics.rank_correlation(a, a * 3 + 1).tolist() == pytest.approx([1, 1, 1])
    assert metrics.rank_correlation(a[:1], torch.ones(1, 6, 7)).isnan().all()


def test_shuffled_layers_keep_their_values_and_the_original_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert metrics.layers_of(model) == ["2", "0"]
    other = metrics.shuffled(model, ["2"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(other[0].weight, model[0].weight)
    assert not torch.equal(other[2].weight, model[2].weight)
    assert torch.equal(other[2].weight.flatten().sort().values, model[2].weight.flatten().sort().values)
    assert torch.equal(metrics.shuffled(model, ["2", "0"])[2].weight, other[2].weight)  # a cascade goes on
    with pytest.raises(InputError, match="'5'"):
        metrics.shuffled(model, ["5"])


def test_parametrized_layers_are_shuffled_as_others_are() -> None:
    """A layer whose weights are made of others, by weight norm or spectral norm, has its weights in another order."""
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), parametrizations.spectral_norm(nn.Linear(16, 5))
    ).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert metrics.layers_of(model) == ["2", "0"]
    other = metrics.shuffled(model, ["2", "0"])
    for at in (0, 2):
        assert not torch.allclose(other[at].weight, model[at].weight)
        assert torch.equal(other[at].weight.flatten().sort().values, model[at].weight.flatten().sort().values)
    assert torch.equal(metrics.shuffled(model, ["2"])[0].weight, model[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert fixcore.capture(other, torch.zeros(1, 3, 4, 4)).classes == 5


def test_layers_with_weights_are_those_that_own_some() -> None:
    def of(*parts: nn.Module) -> list[str]:
        return metrics.layers_of(nn.Sequential(*parts))

    assert of(nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(2, 1, 1), nn.Linear(1, 1)) == ["2", "1", "0"]
    assert of(nn.BatchNorm2d(4), nn.LayerNorm((4, 4)), nn.GroupNorm(2, 4), nn.PReLU(4), nn.Softmax(1)) == []
    assert of(nn.Embedding(3, 4), nn.LSTMCell(4, 4)) == ["1", "0"]
    encoder = nn.TransformerEncoderLayer(8, 2)
    assert metrics.layers_of(encoder) == ["linear2", "linear1", "self_attn.out_proj", "self_attn"]
    other = metrics.shuffled(encoder, ["self_attn"]).self_attn
    assert not torch.equal(other.in_proj_weight, encoder.self_attn.in_proj_weight)
    assert torch.equal(other.out_proj.weight, encoder.self_attn.out_proj.weight)


def test_overlap_of_maps() -> None:
    a, b = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    a[0, 0, :2] = b[0, 0, 1:3] = 3
    assert metrics.map_overlap(a, b)[0].item() == 0.5
    assert metrics.map_overlap(a, b)[1].isnan()
    assert metrics.map_overlap(a * 5, a)[0].item() == 1


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the published boxes do not lie beside the project (../shared/data)")
@pytest.mark.parametrize(
    ("network", "error"), [("alexnet", 65.69), ("vgg16", 55.19), ("googlenet", 57.49), ("resNet152", 54.30)]
)
def test_published_boxes_have_their_published_error(network: str, error: float) -> None:
    """Top-1 localisation error of the authors' 50,000 boxes; IoU of boxes whose last pixel is included."""
    true = np.load(SHARED / "ilsvrc_val_boxes.npz")
    published = np.load(SHARED / "authors_boxes.npz")
    rows = published[next(name for name in published.files if name.lower() == network.lower())]
    counts = np.diff(true["offsets"])
    truths = np.full((len(counts), counts.max(), 4), np.nan, dtype=np.float32)
    place = np.arange(counts.sum()) - np.repeat(true["offsets"][:-1], counts)
    truths[np.repeat(np.arange(len(counts)), counts), place] = true["boxes"] + np.array([0, 0, 1, 1])
    drawn = torch.from_numpy((rows[:, 1:] + np.array([0, 0, 1, 1])).astype(np.float32))
    right = torch.from_numpy(true["devkit_to_index"][rows[:, 0]] == true["label"])
    hit = metrics.best_iou(drawn, torch.from_numpy(truths)) >= 0.5
    assert 100 * (1 - float((hit & right).float().mean())) == pytest.approx(error, abs=0.01)
