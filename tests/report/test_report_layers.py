"""What a report says about layers: FLOPs, path mass, and what an empty layer means."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pxfast
from pxfast import Masks, Scores
from pxfast.errors import DataError, MaskError, PxfastError
from pxfast.report import Report, build
from pxfast.report.flops import count_flops
from pxfast.report.layers import COLLAPSED, CUT_OFF, EMPTY, EMPTY_BRANCH


class Branch(nn.Module):
    """stem, a residual branch of two layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(x + self.second(self.first(x).relu()))


@pytest.fixture
def model() -> Branch:
    torch.manual_seed(0)
    return Branch()


DATA = torch.rand(5, 4)


def masks_of(model: nn.Module, *empty: str, **provenance: object) -> Masks:
    """Everything kept but the layers named."""
    return Masks(
        {
            name: torch.full_like(parameter, name.removesuffix(".weight") not in empty)
            for name, parameter in model.named_parameters()
            if name.endswith("weight")
        },
        provenance,
    )


def marks(report: Report) -> dict[str, str]:
    return {row.name.removesuffix(".weight"): row.mark for row in report.rows if row.mark}


# ---- marks


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        ([], {}),
        (["first"], {"first": EMPTY_BRANCH, "second": CUT_OFF}),
        (["first", "second"], {"first": EMPTY_BRANCH, "second": EMPTY_BRANCH}),
        (["head"], {"head": COLLAPSED}),
        (["first", "head"], {"first": EMPTY_BRANCH, "head": COLLAPSED}),
        (["stem", "head"], {"stem": COLLAPSED, "head": COLLAPSED}),
    ],
)
def test_marks_tell_a_collapse_from_an_empty_branch(model, empty, expected):
    assert marks(build(masks_of(model, *empty), model, DATA)) == expected


def test_layers_that_cut_all_paths_only_together_are_a_collapse():
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    model = Parallel()
    assert marks(build(masks_of(model, "left"), model, DATA)) == {"left": EMPTY_BRANCH}
    both = build(masks_of(model, "left", "right"), model, DATA)
    assert marks(both) == {"left": COLLAPSED, "right": COLLAPSED}


def test_without_a_model_empty_is_all_that_can_be_said(model):
    report = build(masks_of(model, "first", "head"))
    assert marks(report) == {"first": EMPTY, "head": EMPTY}
    assert report.flops is None and not report.has_path_mass


# ---- path mass


def test_path_mass_is_that_of_the_pruned_network(model):
    masks = pxfast.score(model, DATA).masks(density=0.5)
    expected = pxfast.score(model, DATA, masks=masks).totals()
    report = build(masks, model, DATA)
    assert {row.name: row.path_mass for row in report.rows} == expected
    assert expected["stem.weight"] == pytest.approx(1, abs=1e-5)
    assert 0 < expected["first.weight"] < 1


def test_path_mass_is_scored_as_the_masks_were(model):
    masks = pxfast.score(model, DATA, criterion="px-joint").masks(density=0.5)
    expected = pxfast.score(model, DATA, criterion="px-joint", masks=masks).totals()
    assert {row.name: row.path_mass for row in build(masks, model, DATA).rows} == expected
    assert expected != pxfast.score(model, DATA, masks=masks).totals()


def test_scores_give_the_mass_of_kept_weights(model):
    scores = pxfast.score(model, DATA)
    masks = scores.masks(density=0.3)
    report = build(masks, scores=scores)
    for row in report.rows:
        kept = sum(scores[row.name][masks[row.name]].double().tolist())
        assert row.path_mass == pytest.approx(kept, rel=1e-12)
    assert sum(row.path_mass or 0 for row in report.rows) < sum(scores.totals().values())
    assert report.flops is None


def test_a_collapsed_network_has_no_path_mass(model):
    report = build(masks_of(model, "head"), model, DATA)
    assert [row.path_mass for row in report.rows] == [0, 0, 0, 0]


# ---- FLOPs


def test_flops_follow_the_formulas():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, groups=4),
        nn.Flatten(), nn.Linear(8 * 2 * 2, 10),
    )  # fmt: skip
    masks = pxfast.Scores(
        {k: torch.rand_like(v) for k, v in model.named_parameters() if v.dim() > 1}
    )
    report = build(masks.masks(density=0.4), model, torch.rand(7, 3, 6, 6))
    dense = [2 * 6 * 6 * 8 * 3 * 9, 2 * 2 * 2 * 8 * 2 * 9, 2 * 32 * 10]
    assert [row.flops for row in report.rows] == dense
    for row in report.rows:
        uses = row.flops // row.weights  # of every weight of the layer
        assert row.flops_kept == uses * row.kept
    assert report.flops == sum(dense)
    assert report.flops_kept == sum(row.flops_kept or 0 for row in report.rows)


def test_flops_without_a_mask_stay(model):
    masks = Masks({"head.weight": torch.zeros(3, 4)})
    report = build(masks, model, DATA)
    assert report.flops == 2 * (3 * 16 + 12)
    assert report.flops_kept == 2 * 3 * 16


def pruned(layer: nn.Linear) -> nn.Linear:
    return Masks({"weight": torch.ones_like(layer.weight)}).apply_(layer)


@pytest.mark.parametrize("change", [pruned, parametrizations.weight_norm, nn.Sequential])
def test_flops_are_found_wherever_the_weight_comes_from(change):
    model = change(nn.Linear(4, 3))
    name = "0.weight" if isinstance(model, nn.Sequential) else "weight"
    assert count_flops(model, DATA, [name]) == ({name: 24}, 24)


def test_flops_of_attention_belong_to_its_projections():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x, need_weights=False)[0]

    names = ["layer.in_proj_weight", "layer.out_proj.weight"]
    flops, total = count_flops(Attention(), torch.rand(3, 5, 8), names)
    assert flops == {names[0]: 2 * 5 * 8 * 24, names[1]: 2 * 5 * 8 * 8}
    assert total >= sum(flops.values())


def test_tied_weights_count_at_every_use():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert count_flops(model, DATA, ["0.weight"]) == ({"0.weight": 64}, 64)


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_flops(model, DATA, ["0.weight"])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()


# ---- what goes wrong


def test_masks_of_another_model_are_refused(model):
    with pytest.raises(MaskError, match="are the masks of another model"):
        build(Masks({"stem.weight": torch.ones(3, 3)}), model, DATA)
    with pytest.raises(MaskError, match=r"no weight 'tail\.weight'"):
        build(Masks({"tail.weight": torch.ones(3, 3)}), model, DATA)


def test_scores_that_do_not_fit_are_refused(model):
    masks = masks_of(model)
    with pytest.raises(MaskError, match=r"scores: there are none for 'stem\.weight'"):
        build(masks, scores=Scores({"other": torch.rand(2)}, {"criterion": "px"}))
    wrong = Scores({name: torch.rand(2, 2) for name in masks}, {"criterion": "px"})
    with pytest.raises(MaskError, match=r"have shape \[2, 2\], the mask has \[4, 4\]"):
        build(masks, scores=wrong)


@pytest.mark.parametrize(("criterion", "told"), [("snip", "snip"), (None, "an unknown criterion")])
def test_scores_without_path_mass_are_refused(model, criterion, told):
    scores = Scores({name: torch.rand(4, 4) for name in masks_of(model)}, {"criterion": criterion})
    with pytest.raises(PxfastError, match=f"scores by px or px-joint, got those of {told}"):
        build(masks_of(model), scores=scores)


def test_model_and_data_go_together(model):
    with pytest.raises(PxfastError, match="give model and data together"):
        build(masks_of(model), model)


def test_data_that_the_model_cannot_take_are_refused(model):
    with pytest.raises(DataError, match=r"could not be scored on batch 1 .*\[1, 7\]"):
        build(masks_of(model), model, torch.rand(2, 7))


def test_another_model_than_the_pruned_one_is_told(model):
    masks = pxfast.prune(model, DATA, density=0.5, rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(masks, model, DATA)
    with pytest.warns(UserWarning, match="not those that were pruned"):
        build(masks, Branch(), DATA)
