from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from libraries import library
from tolerances import ARCHITECTURE, DEEP_NET, close
from torch import Tensor, nn

import pxfast
from pxfast.errors import DataError, MaskError
from pxfast.reference import px as reference

T = library("transformers")
library("transformers.modeling_utils")

from pxfast.integrations.transformers import (  # noqa: E402
    MASKS_FILE,
    load_masks,
    save_pretrained,
)

TOKENS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
VIT = TOKENS | {"intermediate_size": 32}
STAGES = {"hidden_sizes": [4, 8, 8, 16], "depths": [1, 1, 2, 1], "image_size": 32}
WINDOWS = {
    "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2],
    "window_size": 4,
}  # fmt: skip
# name: the model, the selector of its output
MODELS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "ViT": (lambda: T.ViTForImageClassification(T.ViTConfig(**VIT, num_labels=5)), None),
    "ViT tower": (lambda: T.ViTModel(T.ViTConfig(**VIT)), "pooler_output"),
    "DeiT": (
        lambda: T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(**VIT, num_labels=5)),
        None,
    ),
    "Swin": (lambda: T.SwinForImageClassification(T.SwinConfig(**WINDOWS, num_labels=5)), None),
    "DINOv2": (
        lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**TOKENS, num_labels=5)),
        None,
    ),
    "DINOv2 tower": (lambda: T.Dinov2Model(T.Dinov2Config(**TOKENS)), "last_hidden_state"),
    "ConvNeXt": (
        lambda: T.ConvNextForImageClassification(T.ConvNextConfig(**STAGES, num_labels=5)),
        None,
    ),
    "ConvNeXtV2": (
        lambda: T.ConvNextV2ForImageClassification(T.ConvNextV2Config(**STAGES, num_labels=5)),
        None,
    ),
    "CLIP": (lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**VIT)), "pooler_output"),
}
EACH = pytest.mark.parametrize("name", MODELS)


def built(name: str) -> tuple[nn.Module, str | None]:
    torch.manual_seed(0)
    make, output = MODELS[name]
    model = make().eval()
    with torch.no_grad():  # norms and layer scales that differ from their initial constants
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape) * 0.5 + 0.2)
    return model, output


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def first_weight(scores: pxfast.Scores) -> Tensor:
    return next(iter(scores.values()))


class Plain(nn.Module):
    """The same model as a function of a tensor that returns a tensor."""

    def __init__(self, model: nn.Module, output: str | None):
        super().__init__()
        self.model, self.output = model, output or "logits"

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x)[self.output]


@EACH
def test_dictionaries_and_selectors_give_the_scores_of_the_plain_function(name):
    model, output = built(name)
    batch = {"pixel_values": images(), "labels": torch.zeros(3, dtype=torch.long)}
    scores = pxfast.score(model, batch, output=output)
    expected = pxfast.score(Plain(model, output), images())
    assert [f"model.{name}" for name in scores] == list(expected)
    assert all(torch.equal(scores[n], expected[f"model.{n}"]) for n in scores)


@EACH
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_scores_are_those_of_the_reference(name, criterion, density):
    model, output = built(name)
    plain, data = Plain(model.double(), output), images(2).double()
    masks = pxfast.score(plain, data).masks(density=density)
    scores = pxfast.score(plain, data, criterion=criterion, masks=masks)
    expected = reference.score(plain, data, criterion=criterion, masks=masks)
    assert set(scores) == set(expected)
    for weight, score in scores.items():
        close(score, expected[weight], ARCHITECTURE, weight)


@EACH
@pytest.mark.parametrize("criterion", ["px", "px-joint"])
def test_all_paths_pass_the_patches_and_every_layer_has_scores(name, criterion):
    model, output = built(name)
    scores = pxfast.score(model, {"pixel_values": images()}, output=output, criterion=criterion)
    close(first_weight(scores).sum(), torch.tensor(1.0), DEEP_NET[torch.float32])
    assert all(bool(score.any()) for score in scores.values())
    assert scores.provenance["unused"] == []


@EACH
def test_the_model_is_left_as_it_is(name):
    model, output = built(name)
    state, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    pxfast.score(model.train(), {"pixel_values": images()}, output=output, criterion="px-joint")
    assert model.training
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())


@EACH
def test_zeros_and_masks_survive_save_and_from_pretrained(name, tmp_path):
    model, output = built(name)
    batch = {"pixel_values": images()}
    masks = pxfast.score(model, batch, output=output).masks(density=0.3)
    masks.apply_(model)
    expected = model(**batch)[output or "logits"]
    keys = list(model.state_dict())

    assert save_pretrained(model, tmp_path) == masks
    assert list(model.state_dict()) == keys  # still masked

    loaded = type(model).from_pretrained(tmp_path).eval()
    for weight, mask in masks.items():
        assert not loaded.get_parameter(weight)[~mask].any(), weight
    assert torch.equal(loaded(**batch)[output or "logits"], expected)
    assert load_masks(tmp_path) == masks
    load_masks(tmp_path).apply_(loaded)
    assert torch.equal(loaded(**batch)[output or "logits"], expected)


@pytest.mark.parametrize("name", ["ViT", "Swin", "DINOv2"])
def test_attention_written_out_scores_as_the_fused_one(name):
    model, output = built(name)
    batch = {"pixel_values": images()}
    fused = pxfast.score(model, batch, output=output, criterion="px-joint")
    model.set_attn_implementation("eager")
    written_out = pxfast.score(model, batch, output=output, criterion="px-joint")
    for weight, score in fused.items():
        close(score, written_out[weight], DEEP_NET[torch.float32], weight)


@pytest.mark.parametrize(
    "select", ["pooler_output", 1, lambda result: result.pooler_output], ids=["key", "index", "def"]
)
def test_every_kind_of_selector_finds_the_same_output(select):
    model, _ = built("ViT tower")
    expected = pxfast.score(Plain(model, "pooler_output"), images())
    scores = pxfast.score(model, {"pixel_values": images()}, output=select)
    assert all(torch.equal(scores[n], expected[f"model.{n}"]) for n in scores)


def test_an_output_that_is_not_there_is_named_with_those_that_are():
    model, _ = built("ViT")
    with pytest.raises(DataError, match=r"output='pooled' selects nothing .* \['logits'\]"):
        pxfast.score(model, {"pixel_values": images()}, output="pooled")


def test_prune_takes_a_loader_of_dictionaries():
    model, _ = built("ConvNeXt")
    data = [{"pixel_values": part, "labels": torch.zeros(1).long()} for part in images().split(1)]
    masks = pxfast.prune(model, data, density=0.2, rounds=2, progress=False)
    expected = pxfast.prune(Plain(model, None), images(), density=0.2, rounds=2, progress=False)
    assert {f"model.{name}": mask for name, mask in masks.items()}.keys() == expected.keys()
    assert masks.kept == expected.kept


def test_masks_of_a_model_with_zeros_in_place_are_given(tmp_path):
    model, _ = built("ViT")
    masks = pxfast.score(model, {"pixel_values": images()}).masks(density=0.3)
    masks.apply_(model, in_place=True)
    with pytest.raises(MaskError, match="the model carries no masks"):
        save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path, masks)
    assert (tmp_path / MASKS_FILE).is_file()
    assert load_masks(tmp_path) == masks


def test_masks_of_another_model_are_refused_before_anything_is_saved(tmp_path):
    model, _ = built("ViT")
    masks: Any = pxfast.Masks({"weight": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(MaskError, match="the model has no weight 'weight'"):
        save_pretrained(model, tmp_path, masks)
    assert not list(tmp_path.iterdir())
