"""Masks: the table, the file, and zeros that survive training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pxfast.errors import MaskError
from pxfast.selection import Masks


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def masks(seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (4, 1, 3, 3), "4.weight": (3, 64)}
    return Masks(
        {name: torch.rand(shape, generator=generator) < 0.3 for name, shape in shapes.items()}
    )


def test_is_a_mapping_of_bool_tensors():
    made = Masks({"b": torch.tensor([1.0, 0.0]), "a": torch.tensor([True])}, {"seed": 1})
    assert list(made) == ["b", "a"]
    assert made["b"].dtype == torch.bool
    assert (made.kept, made.total, made.density) == (2, 3, 2 / 3)
    assert made.provenance == {"seed": 1}
    assert repr(made) == "Masks(2 layers, 2 of 3 weights kept, density 0.666667)"


def test_layers():
    layers = masks().layers
    assert [layer.name for layer in layers] == ["0.weight", "4.weight"]
    assert layers[0].shape == (4, 1, 3, 3)
    assert layers[0].weights == 36
    assert layers[1].kept == int(masks()["4.weight"].sum())
    assert layers[1].density == layers[1].kept / 192


@pytest.mark.parametrize("bad", [torch.tensor([0.5]), torch.tensor([2]), torch.tensor([torch.nan])])
def test_values_other_than_0_and_1_are_refused(bad):
    with pytest.raises(MaskError, match="'w' must hold only 0 and 1"):
        Masks({"w": bad})


# ---- the table ----


def test_summary_of_two_layers():
    made = Masks({"stem.weight": torch.ones(2, 3, 1, 1), "fc.weight": torch.zeros(1000, 2)})
    assert made.summary() == (
        "weight        shape    weights  kept   density\n"
        "-----------------------------------------------------\n"
        "stem.weight   2x3x1x1        6     6  100.000%\n"
        "fc.weight     1000x2     2,000     0    0.000%  empty\n"
        "-----------------------------------------------------\n"
        "all 2 layers             2,006     6    0.299%"
    )


@pytest.mark.parametrize("count", [20, 300])
def test_summary_is_one_aligned_line_a_layer(count):
    made = Masks(
        {
            f"blocks.{i}.attention.projection.weight": torch.rand(7 * i, 11) < 0.1
            for i in range(count)
        }
    )
    lines = made.summary().splitlines()
    assert len(lines) == count + 4
    assert max(map(len, lines)) <= 100
    ends = {line.index("%") for line in lines if "%" in line}
    assert len(ends) == 1
    assert lines[-1].startswith(f"all {count} layers ")
    assert f"{made.total:,}" in lines[-1]


# ---- the file ----


def test_saved_and_loaded(tmp_path):
    made = Masks({**masks(), "empty": torch.ones(0, 2)}, {"density": 0.3, "seed": 7})
    made.save(tmp_path / "m.safetensors")
    loaded = Masks.load(tmp_path / "m.safetensors")
    assert loaded == made
    assert list(loaded) == list(made)
    assert loaded.provenance == {"density": 0.3, "seed": 7}
    assert all(mask.device.type == "cpu" for mask in loaded.values())


def test_the_file_holds_one_bit_a_weight(tmp_path):
    big = Masks({"w": torch.rand(1000, 800) < 0.5})
    big.save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 1000 * 800 / 8 + 2000


# ---- applying ----


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name.rpartition(".")[0]).weight == 0 for name in masks()}


@pytest.mark.parametrize("optimiser", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.01),
], ids=["sgd", "nesterov", "adam", "adamw"])  # fmt: skip
def test_training_keeps_exactly_the_same_zeros(optimiser):
    model = masks().apply_(net())
    optimizer = optimiser(model.parameters())
    x, y = torch.randn(16, 1, 4, 4), torch.randint(0, 3, (16,))
    start = model[4].weight.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model(x)
    for name, mask in masks().items():
        module = model.get_submodule(name.removesuffix(".weight"))
        prune.remove(module, "weight")
        assert isinstance(module.weight, nn.Parameter)
        assert torch.equal(module.weight != 0, mask)
    assert not torch.equal(model[4].weight, start)  # it did train
    assert sorted(model.state_dict()) == sorted(net().state_dict())


def test_the_original_weights_are_kept():
    model, original = net(), net()
    assert masks().apply_(model) is model
    assert torch.equal(model[4].weight_orig, original[4].weight)
    assert torch.equal(model[4].weight, original[4].weight * masks()["4.weight"])
    assert prune.is_pruned(model)


def test_in_place_zeroes_the_weights_and_nothing_else():
    model, original = net(), net()
    identity = model[4].weight
    masks().apply_(model, in_place=True)
    assert model[4].weight is identity
    assert not prune.is_pruned(model)
    for name, value in model.state_dict().items():
        expected = original.state_dict()[name]
        assert torch.equal(value, expected * masks()[name] if name in masks() else expected)


def test_in_place_also_clears_what_is_not_finite():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, torch.nan)
    Masks({"weight": torch.tensor([[True, False]])}).apply_(model, in_place=True)
    assert model.weight[0, 1] == 0
    assert model.weight[0, 0].isnan()


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_that_are_already_pruned_keep_both_masks(in_place):
    model = net()
    prune.random_unstructured(model[4], "weight", amount=0.5)
    earlier = model[4].weight_mask.bool()
    masks().apply_(model, in_place=in_place)
    expected = masks()["4.weight"] & earlier
    assert torch.equal(model[4].weight != 0, expected)
    model(torch.randn(2, 1, 4, 4))  # the hook computes the weight again
    assert torch.equal(model[4].weight != 0, expected)
    prune.remove(model[4], "weight")
    assert torch.equal(model[4].weight != 0, expected)


def test_applied_twice_is_the_intersection():
    model = masks(1).apply_(masks(0).apply_(net()))
    both = masks(0)["4.weight"] & masks(1)["4.weight"]
    assert torch.equal(model[4].weight != 0, both)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_a_parametrized_weight_is_masked_last(parametrization, train):
    model = nn.Sequential(parametrization(nn.Linear(6, 5))).train(train)
    mask = torch.rand(5, 6) < 0.5
    Masks({"0.weight": mask}).apply_(model)
    assert torch.equal(model[0].weight != 0, mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight != 0, mask)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.equal(model[0].weight != 0, mask)


def test_a_parametrized_weight_cannot_be_zeroed_in_place():
    model = nn.Sequential(nn.Linear(6, 6), parametrizations.weight_norm(nn.Linear(6, 5)))
    before = copy.deepcopy(model.state_dict())
    made = Masks({"0.weight": torch.zeros(6, 6), "1.weight": torch.zeros(5, 6)})
    with pytest.raises(MaskError, match=r"'1\.weight' .* parametrization .* in_place=False"):
        made.apply_(model, in_place=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_older_weight_norm_hook_is_refused():
    model = nn.utils.weight_norm(nn.Linear(3, 2))
    with pytest.raises(MaskError, match=r"'weight' is no parameter.*nn\.utils\.parametrizations"):
        Masks({"weight": torch.ones(2, 3)}).apply_(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_a_shared_weight_is_masked_wherever_it_is_used():
    model = Tied()
    mask = torch.eye(3)
    Masks({"first.weight": mask}).apply_(model)
    assert torch.equal(model.first.weight != 0, mask.bool())
    assert torch.equal(model.second.weight != 0, mask.bool())
    assert model.first.weight_orig is model.second.weight_orig
    model(torch.randn(2, 3)).sum().backward()


def test_a_shared_weight_under_two_masks_is_refused():
    with pytest.raises(MaskError, match=r"'first\.weight' and 'second\.weight' are one shared"):
        Masks({"first.weight": torch.eye(3), "second.weight": torch.ones(3, 3)}).apply_(Tied())
    Masks({"first.weight": torch.eye(3), "second.weight": torch.eye(3)}).apply_(Tied())


@pytest.mark.parametrize("train", [True, False])
def test_the_output_projection_of_attention_is_masked_too(train):
    """nn.MultiheadAttention never calls out_proj, so a hook on it would not run."""
    model = nn.MultiheadAttention(8, 2, batch_first=True).train(train)
    made = Masks({"in_proj_weight": torch.rand(24, 8) < 0.5, "out_proj.weight": torch.eye(8)})
    expected = copy.deepcopy(model)
    made.apply_(expected, in_place=True)
    made.apply_(model)
    x = torch.randn(2, 5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        assert torch.equal(model(x, x, x)[0] != 0, expected(x, x, x)[0] != 0)
        optimizer.zero_grad()
        model(x, x, x)[0].square().sum().backward()
        optimizer.step()
    assert torch.equal(model.out_proj.weight != 0, torch.eye(8).bool())
    assert model.out_proj.parametrizations.weight.original.grad is not None


def test_wrapped_models_take_the_same_names():
    model = net()
    masks().apply_(nn.DataParallel(model))
    assert torch.equal(model[4].weight != 0, masks()["4.weight"])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("wrong", "message"), [
    ({"4.weigth": torch.ones(3, 64)}, r"no weight '4\.weigth'; it has for example 4\.weight"),
    ({"9.weight": torch.ones(3, 64)}, r"no weight '9\.weight'"),
    ({"4.weight_orig": torch.ones(3, 64)}, r"no weight '4\.weight_orig'; .* 4\.weight"),
    ({"4.weight": torch.ones(64, 3)}, r"'4\.weight' has shape \[64, 3\], the weight has \[3, 64\]"),
])  # fmt: skip
def test_masks_that_do_not_fit_change_nothing(wrong, message, in_place):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MaskError, match=message):
        Masks({"0.weight": torch.zeros(4, 1, 3, 3), **wrong}).apply_(model, in_place=in_place)
    assert not prune.is_pruned(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_move_to_the_weights_device():
    model = net().to("meta")
    masks().apply_(model)
    assert model[4].weight_mask.device.type == "meta"


def test_low_precision_weights():
    model = masks().apply_(net().bfloat16())
    assert model[4].weight.dtype == torch.bfloat16
    assert torch.equal(model[4].weight != 0, masks()["4.weight"])
